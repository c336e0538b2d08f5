"""Text written by a causal language model for an input: data to text and its like."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import TaskType
from torch import LongTensor, Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from applications import processes
from applications.data.batches import Batch, Collator, Encoded, evaluation_batches
from applications.data.examples import TaskData
from applications.data.inputs import input_texts
from applications.data.meaning_representations import (
    SOURCE_COLUMNS,
    linearised,
    load_generation_task,
)
from applications.errors import UsageError
from applications.families.family import Setting, Stage
from applications.families.metrics import Evaluation
from applications.families.prediction import evaluating, predictor
from applications.families.text_metrics import check_packages, text_scores
from applications.models import smollm2
from applications.models.loading import device, load_pretrained
from applications.models.soundness import check_lengths
from applications.options.arguments import DataOptions, GenerationOptions, ModelOptions, Options
from applications.pages.writing import write_whole

IGNORED = -100
"""The label of a token that is read and not to be predicted."""
UNCUT = "prompt and reference must fit in the model, which reads {most} tokens; shorten them"
MAX_TOKENS = 2048
"""Most tokens of a batch in an evaluation: a vocabulary's logits for each must fit in memory."""


@dataclass(frozen=True)
class TextGeneration:
    """The family of ``applications.nlg``: a causal language model continues a prompt."""

    command: str = "nlg"
    task_type: TaskType = TaskType.CAUSAL_LM
    auto_model: type[Any] = AutoModelForCausalLM

    def load_task(
        self, options: DataOptions, *, part: bool = False, unread: Collection[str] = ()
    ) -> TaskData:
        """The inputs that the options ask for, each with all its references; columns are known by
        name.

        Raises:
            UsageError: unknown or missing data, or what texts are scored with is not installed.
        """
        check_packages()
        return load_generation_task(options)

    def load_base(
        self, options: ModelOptions, task: TaskData
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The pre-trained language model and its tokenizer, which gets a token to pad with.

        The model's own defaults for generating (temperatures, penalties) are dropped.

        Raises:
            UsageError: the tokenizer has no token that ends a text, or the weights no head.
        """
        if options.model_name_or_path == smollm2.NAME:
            options = replace(options, model_name_or_path=str(smollm2.smollm2_folder()))
        model, tokenizer = load_pretrained(self.auto_model, options)
        missing: Sequence[str] = getattr(model, "new_parts", ())
        if missing:
            raise UsageError(
                f"argument --model_name_or_path: {options.model_name_or_path!r} holds no weights "
                f"for {', '.join(missing)}, without which it writes at random; take a checkpoint "
                f"of a language model"
            )
        if tokenizer.eos_token_id is None:
            raise UsageError(
                f"argument --model_name_or_path: the tokenizer of {options.model_name_or_path!r} "
                f"has no token that ends a text (eos_token); take another model"
            )
        if tokenizer.pad_token_id is None:
            # Attention masks and labels say what is padding, not the token.
            tokenizer.pad_token = tokenizer.eos_token
        positions = getattr(model.config, "max_position_embeddings", None)
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions or math.inf)
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return model, tokenizer

    def encode(
        self, examples: Dataset, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> Encoded:
        """A row for each input and reference, in training; too long ones lose their end.

        Raises:
            UsageError: a prompt fills all of ``max_seq_length``, or leaves no room to generate in.
        """
        limit = min(options.data.max_seq_length, tokenizer.model_max_length)
        prompts = prompt_tokens(list(examples["source"]), tokenizer, options)
        longest = max(map(len, prompts))
        if longest >= limit:
            raise UsageError(
                f"argument --max_seq_length: a prompt has {longest} tokens, which leaves no room "
                f"for a text to be written, got {limit}; use a larger one"
            )
        check_room(longest, tokenizer, options)
        rows = encoded(examples, tokenizer, options)
        return [{name: values[:limit] for name, values in row.items()} for row in rows]

    def texts(self, examples: Dataset) -> Iterable[str]:
        """The inputs."""
        return list(examples["source"])

    def check(self, model: PreTrainedModel, splits: Mapping[str, Dataset], work: Setting) -> None:
        """Raise a UsageError for prompts that leave no room to generate in, and for references that
        are longer than the model reads: they are evaluated uncut.
        """
        options, tokenizer = work.options, work.tokenizer
        asked = (options.generation or GenerationOptions()).generate_on or ()
        for split, examples in splits.items():
            rows = encoded(examples, tokenizer, options)
            check_lengths((row["input_ids"] for row in rows), model, split, UNCUT)
            if split in asked:
                prompts = prompt_tokens(list(examples["source"]), tokenizer, options)
                check_room(max(map(len, prompts)), tokenizer, options)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads on the right to the longest row."""
        return partial(padded_right, padding=int(tokenizer.pad_token_id or 0))

    def evaluate(
        self, model: nn.Module, examples: Dataset, setting: Setting, *, split: str, stage: Stage
    ) -> Evaluation:
        """Loss, perplexity and, for text generated, the scores against all references.

        ``loss`` is the mean negative log-likelihood of a token of the references, their ends
        included, over all of them, uncut. Text is generated for the splits of ``generate_on`` when
        training is over, and in every evaluation during training with ``predict_with_generate``;
        else its scores are None. The former goes to generated.jsonl in the run folder.
        """
        options, tokenizer = setting.options, setting.tokenizer
        how = options.generation or GenerationOptions()
        rows = encoded(examples, tokenizer, options)
        with evaluating(model, options):
            loss = mean_loss(model, rows, self.collator(tokenizer), options)
            scores = text_scores([], [])
            asked = split in (how.generate_on or ())
            if how.predict_with_generate if stage == "training" else asked:
                sources, references = list(examples["source"]), list(examples["references"])
                texts = generated(model, sources, tokenizer, options, split)
                scores = text_scores(texts, references)
                if stage != "training" and options.run.output_dir is not None:
                    file = Path(options.run.output_dir) / file_name(split, stage)
                    write_texts(file, sources, references, texts)
        perplexity = math.exp(loss) if loss < 700 else None
        return Evaluation(loss, {**scores, "perplexity": perplexity})

    def predict(
        self, model: nn.Module, rows: Dataset, setting: Setting, columns: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The text that is written for each input."""
        options, tokenizer = setting.options, setting.tokenizer
        (inputs,) = input_texts(rows, columns, options.data, usual=SOURCE_COLUMNS)
        sources = [linearised(meaning) for meaning in inputs]
        with evaluating(model, options):
            texts = generated(model, sources, tokenizer, options, "predictions")
        return [{"prediction": text} for text in texts]


def prompt_tokens(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, options: Options
) -> list[list[int]]:
    """The prompt of each input: a beginning of the text where the tokenizer sets one, no end."""
    template = (options.generation or GenerationOptions()).prompt_template
    texts = [template.replace("{source}", source) for source in sources]
    found: list[list[int]] = tokenizer(texts)["input_ids"]
    end = tokenizer.eos_token_id
    return [tokens[:-1] if tokens[-1] == end else tokens for tokens in found]


def encoded(examples: Dataset, tokenizer: PreTrainedTokenizerBase, options: Options) -> Encoded:
    """A row for each input and reference: the prompt, the reference, the end of the text.

    The labels are the reference's tokens and the end.
    """
    prompts = prompt_tokens(list(examples["source"]), tokenizer, options)
    pairs = [
        (prompt, f" {text}")
        for prompt, texts in zip(prompts, examples["references"], strict=True)
        for text in texts
    ]
    references = tokenizer([text for _, text in pairs], add_special_tokens=False)["input_ids"]
    rows: Encoded = []
    for (prompt, _), reference in zip(pairs, references, strict=True):
        written = [*reference, tokenizer.eos_token_id]
        labels = [IGNORED] * len(prompt) + written
        rows.append({"input_ids": [*prompt, *written], "labels": labels})
    return rows


def check_room(longest: int, tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
    """Raise a UsageError unless the longest prompt and a text fit in the model's positions."""
    new = (options.generation or GenerationOptions()).max_new_tokens
    positions = tokenizer.model_max_length
    if longest + new > positions:
        raise UsageError(
            f"argument --max_new_tokens: a prompt of {longest} tokens and {new} new ones do not "
            f"fit in the {positions} positions of the model; use fewer"
        )


def padded_right(rows: Sequence[dict[str, Any]], *, padding: int) -> Batch:
    """A batch for training: ``input_ids``, ``attention_mask``, ``labels``, ``(rows, tokens)``."""
    length = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, value: int) -> Tensor:
        return torch.tensor([[*row[name], *[value] * (length - len(row[name]))] for row in rows])

    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    return {
        "input_ids": filled("input_ids", padding),
        "attention_mask": (torch.arange(length) < lengths).long(),
        "labels": filled("labels", IGNORED),
    }


def padded_left(prompts: Sequence[Sequence[int]], *, padding: int) -> Batch:
    """A batch to be continued: every prompt ends at the right edge."""
    length = max(map(len, prompts))
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])
    return {
        "input_ids": torch.tensor([[*[padding] * (length - len(p)), *p] for p in prompts]),
        "attention_mask": (torch.arange(length) >= length - lengths).long(),
    }


def mean_loss(model: nn.Module, rows: Encoded, collator: Collator, options: Options) -> float:
    """The mean negative log-likelihood of the labels, a token counting as much as any other."""
    predict = predictor(model, options)
    longest = max(len(row["input_ids"]) for row in rows)
    size = min(options.run.per_device_eval_batch_size, max(1, MAX_TOKENS // longest))
    total, count = 0.0, 0
    for batch in evaluation_batches(processes.own_share(rows), collator, size=size):
        labels = batch["labels"][:, 1:]
        written = labels != IGNORED
        logits = predict(batch)[:, :-1][written]
        total += float(F.cross_entropy(logits, labels[written], reduction="none").double().sum())
        count += int(written.sum())
    shares = processes.gathered((total, count))
    return sum(total for total, _ in shares) / sum(count for _, count in shares)


class NoRepetition(LogitsProcessor):
    """No sequence of n tokens occurs twice in what was generated.

    The host library's own reads the prompt too, and forbids a text to name what it is about where
    the name has n tokens.
    """

    def __init__(self, size: int, prompt_length: int) -> None:
        self.processor = NoRepeatNGramLogitsProcessor(size)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: LongTensor, scores: Tensor) -> Tensor:
        """The scores of the next tokens, minus infinity where one would repeat."""
        written = input_ids[:, self.prompt_length :]
        allowed: Tensor = self.processor(written, scores)
        return allowed


def generated(
    model: nn.Module,
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
    split: str,
) -> list[str]:
    """The text that beam search finds for each input; no random number is drawn.

    A batch holds ``per_device_eval_batch_size`` beams. LoRA Dropout generates without masks.

    Raises:
        UsageError: prompt and text do not fit in the positions of the model.
    """
    how = options.generation or GenerationOptions()
    prompts = prompt_tokens(sources, tokenizer, options)
    check_room(max(map(len, prompts)), tokenizer, options)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        num_beams=how.num_beams,
        do_sample=False,
        early_stopping=False,
        length_penalty=how.length_penalty if how.num_beams > 1 else None,
        max_new_tokens=how.max_new_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    size = max(1, options.run.per_device_eval_batch_size // how.num_beams)
    own = processes.own_share(order)
    texts = [""] * len(prompts)
    hidden = True if options.run.disable_tqdm else None
    with tqdm(total=len(own), desc=f"generate {split}", unit="text", disable=hidden) as bar:
        for start in range(0, len(own), size):
            chosen = own[start : start + size]
            batch = padded_left([prompts[n] for n in chosen], padding=tokenizer.pad_token_id)
            length = batch["input_ids"].shape[1]
            repeats = how.no_repeat_ngram_size
            rules = [NoRepetition(repeats, length)] if repeats else []
            written = model.generate(  # type: ignore[operator]
                **{name: value.to(device(options.model)) for name, value in batch.items()},
                generation_config=settings,
                logits_processor=LogitsProcessorList(rules),
            )[:, length:]
            found = tokenizer.batch_decode(written, skip_special_tokens=True)
            for number, text in zip(chosen, found, strict=True):
                texts[number] = " ".join(text.split())
            bar.update(len(chosen))
    written_here = processes.gathered([texts[number] for number in own])
    for number, text in zip(order, processes.whole(written_here), strict=True):
        texts[number] = text
    return texts


def file_name(split: str, stage: Stage) -> str:
    """``generated.jsonl`` for the test split at the end; others are told apart by their name."""
    parts = ("generated", "" if stage == "final" else stage, "" if split == "test" else split)
    return "-".join(part for part in parts if part) + ".jsonl"


def write_texts(
    file: Path,
    sources: Sequence[str],
    references: Sequence[Sequence[str]],
    texts: Sequence[str],
) -> None:
    """Write a line an input: ``source``, ``references``, ``hypothesis``."""
    rows = [
        {"source": source, "references": list(known), "hypothesis": text}
        for source, known, text in zip(sources, references, texts, strict=True)
    ]
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(file, lambda draft: draft.write_text(whole, encoding="utf-8"))
