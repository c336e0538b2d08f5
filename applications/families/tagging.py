"""Sentences with a tag for each word: named entities."""

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import TaskType
from torch import Tensor, nn
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from applications import processes
from applications.data.batches import Collator, Encoded, evaluation_batches
from applications.data.conll import read_conll
from applications.data.examples import TaskData
from applications.data.inputs import input_texts
from applications.data.local_files import Readers, read_parquet
from applications.data.sentences import TAG_COLUMNS, WORD_COLUMNS, column, tagging_data
from applications.data.sources import load_source
from applications.data.tags import OUTSIDE, entity_type
from applications.data.text_files import read_rows
from applications.errors import UsageError
from applications.families.entities import entity_scores, of_entities
from applications.families.family import Setting, Stage, wants_details
from applications.families.metrics import Evaluation, calibration, numbers, reliability
from applications.families.prediction import evaluating, predictor
from applications.models.loading import load_pretrained
from applications.models.soundness import TOO_LONG, check_lengths, positions
from applications.options.arguments import DataOptions, ModelOptions, Options

IGNORED = -100
READERS: Readers = {
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio", ".tsv", ".txt"), read_conll),
    **dict.fromkeys((".json", ".jsonl"), read_rows),
    ".parquet": read_parquet,
}


@dataclass(frozen=True)
class TokenClassification:
    """The family of ``applications.token_classification``: named-entity recognition.

    As in the token classification example of transformers, the first piece of a word carries its
    tag and the other pieces none. Differs from it: words that have no piece, because the sentence
    is longer than ``max_seq_length`` or because the tokenizer drops them, stay in the evaluation,
    where they count as tagged ``O`` for entities (so an entity they belong to is missed) and as
    wrong for accuracy; loss and calibration are means over the other words. The metric
    ``coverage`` is the share of words that the model tags.
    """

    command: str = "token_classification"
    task_type: TaskType = TaskType.TOKEN_CLS
    auto_model: type[Any] = AutoModelForTokenClassification

    def load_task(
        self, options: DataOptions, *, part: bool = False, unread: Collection[str] = ()
    ) -> TaskData:
        """The sentences that the options ask for; columns of words and tags are known by name."""
        source = load_source(options, self.command, READERS)
        training = source.splits["train"]
        asked = options.text_columns
        if asked is not None and len(asked) > 1:
            raise UsageError(f"argument --text_columns: name one column of words, got {asked}")
        label = options.label_column
        chosen = label if label != "label" or label in training.column_names else None
        return tagging_data(
            source.name,
            source.splits,
            words=column(training, asked[0] if asked else None, (*source.texts, *WORD_COLUMNS)),
            tags=column(training, chosen, (source.label, *TAG_COLUMNS)),
            tag_names=source.label_names,
            metric=source.metric or "f1",
            notes=source.notes,
            place=source.where,
            part=part,
        )

    def load_base(
        self, options: ModelOptions, task: TaskData
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The pre-trained model with a new head for the tags, and its tokenizer.

        Raises:
            UsageError: the tokenizer cannot say to which word a piece belongs.
        """
        model, tokenizer = load_pretrained(
            self.auto_model,
            options,
            num_labels=task.num_labels,
            id2label=dict(enumerate(task.label_names)),
            label2id={name: number for number, name in enumerate(task.label_names)},
            # A checkpoint with a head of another size gets a new one, as one without a head does.
            ignore_mismatched_sizes=True,
        )
        if not tokenizer.is_fast:
            raise UsageError(
                f"argument --model_name_or_path: the tokenizer of {options.model_name_or_path!r} "
                f"does not say which piece belongs to which word; token classification needs one "
                f"with a tokenizer.json"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return model, tokenizer

    def encode(
        self, examples: Dataset, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> Encoded:
        """A row a sentence; ``labels`` has a word's tag at its first piece and -100 elsewhere.

        A sentence of which no word has a piece teaches nothing and is left out.
        """
        rows, words = aligned(examples, tokenizer, options.data.max_seq_length)
        return [row for row, tagged in zip(rows, words, strict=True) if tagged]

    def texts(self, examples: Dataset) -> Iterable[str]:
        """The words of every sentence."""
        return (" ".join(words) for words in examples["tokens"])

    def check(self, model: PreTrainedModel, splits: Mapping[str, Dataset], work: Setting) -> None:
        """Raise a UsageError where ``max_seq_length`` leaves more pieces than the model reads."""
        length = work.options.data.max_seq_length
        if length > (positions(model) or math.inf):
            for split, examples in splits.items():
                rows, _ = aligned(examples, work.tokenizer, length)
                check_lengths((row["input_ids"] for row in rows), model, split, TOO_LONG)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads to the longest row, labels with -100."""
        return DataCollatorForTokenClassification(tokenizer)

    def evaluate(
        self, model: nn.Module, examples: Dataset, setting: Setting, *, split: str, stage: Stage
    ) -> Evaluation:
        """Loss and metrics of the model on the sentences."""
        outputs, words = self.outputs(model, examples, setting)
        names, tags = setting.task.label_names, list(examples["tags"])
        scores = tagging_evaluation(outputs, words, tags, names)
        if not wants_details(split, stage):
            return scores
        truth = [[names[tag] for tag in sentence] for sentence in tags]
        predictions = predicted_tags(outputs, words, tags, names)
        return replace(scores, details=of_entities(truth, predictions, list(examples["tokens"])))

    def outputs(
        self, model: nn.Module, examples: Dataset, setting: Setting
    ) -> tuple[list[Tensor], list[list[int]]]:
        """For each sentence the logits of its words that have a piece, and where these stand."""
        options, tokenizer = setting.options, setting.tokenizer
        rows, words = aligned(examples, tokenizer, options.data.max_seq_length)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
        predict = predictor(model, options)
        found: list[Tensor] = []
        size = options.run.per_device_eval_batch_size
        with evaluating(model, options):
            ordered = [rows[number] for number in processes.own_share(order)]
            for batch in evaluation_batches(ordered, self.collator(tokenizer), size=size):
                marked = batch["labels"] != IGNORED
                logits = predict(batch)
                found += [each[mask] for each, mask in zip(logits, marked, strict=True)]
        position = {number: place for place, number in enumerate(order)}
        found = processes.whole(processes.gathered(found))
        return [found[position[number]] for number in range(len(rows))], words

    def predict(
        self, model: nn.Module, rows: Dataset, setting: Setting, columns: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The tags of each row's words; O for words that the model never sees, as in evaluation.

        A text that is not a list of words is divided at white space.
        """
        names = setting.task.label_names
        (texts,) = input_texts(rows, columns, setting.options.data)
        sentences = [text.split() if isinstance(text, str) else list(text) for text in texts]
        empty = [number for number, sentence in enumerate(sentences) if not sentence]
        if empty:
            raise UsageError(f"row {empty[0]} of the input has no words; remove it")
        untagged = [[0] * len(sentence) for sentence in sentences]
        examples = Dataset.from_dict({"tokens": sentences, "tags": untagged})
        found = []
        outputs, places = self.outputs(model, examples, setting)
        for text, sentence, logits, seen in zip(texts, sentences, outputs, places, strict=True):
            tags = [OUTSIDE] * len(sentence)
            for place, tag in zip(seen, logits.argmax(-1).tolist(), strict=True):
                tags[place] = names[tag]
            divided = {"words": sentence} if isinstance(text, str) else {}
            found.append({**divided, "prediction": tags})
        return found


def aligned(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Encoded, list[list[int]]]:
    """Each sentence as token numbers with labels, and the positions of its words that have a label.

    A byte-level tokenizer (RoBERTa, GPT-2) tells words inside a sentence by the space before them,
    so every word is given one; that is what ``add_prefix_space`` does.
    """
    space = " " if byte_level(tokenizer) else ""
    sentences = [[space + word for word in sentence] for sentence in examples["tokens"]]
    if not sentences:
        return [], []
    encoded = tokenizer(sentences, is_split_into_words=True, truncation=True, max_length=max_length)
    rows: Encoded = []
    words: list[list[int]] = []
    for number, tags in enumerate(examples["tags"]):
        labels: list[int] = []
        tagged: list[int] = []
        before = None
        for word in encoded.word_ids(number):
            first = word is not None and word != before
            labels.append(tags[word] if first else IGNORED)
            if first:
                tagged.append(word)
            before = word
        rows.append({name: encoded[name][number] for name in encoded} | {"labels": labels})
        words.append(tagged)
    return rows, words


def byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer divides text into bytes, where a space is part of the word after it."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return '"ByteLevel"' in json.dumps(backend["pre_tokenizer"])


def tagging_evaluation(
    outputs: Sequence[Tensor],
    words: Sequence[Sequence[int]],
    tags: Sequence[Sequence[int]],
    names: Sequence[str],
) -> Evaluation:
    """Loss and metrics of the tags predicted for sentences.

    Entities as in `entity_scores`. ``accuracy`` is the share of all words whose tag is right; the
    loss, ``ece``, ``brier`` and the reliability bins are means over the words with an output.

    Args:
        outputs: for each sentence ``(words with an output, tags)`` logits.
        words: for each sentence the positions of these words, increasing.
        tags: for each sentence the number of every word's tag.
        names: the names of the tags, ``O`` among them.
    """
    predictions = predicted_tags(outputs, words, tags, names)
    labels, right = list[int](), 0
    for logits, places, truth in zip(outputs, words, tags, strict=True):
        own = [truth[position] for position in places]
        right += sum(tag == n for tag, n in zip(logits.argmax(-1).tolist(), own, strict=True))
        labels += own
    total = sum(map(len, tags))
    truth_names = [[names[tag] for tag in truth] for truth in tags]
    types = sorted({str(entity_type(name)) for name in names if name != OUTSIDE})
    scores: dict[str, float | None] = {
        **entity_scores(truth_names, predictions, types),
        "accuracy": right / total,
        "coverage": len(labels) / total,
    }
    if not labels:
        raise UsageError(
            "argument --max_seq_length: no word of the examples is left; choose a larger value"
        )
    logits, targets = torch.cat(list(outputs)).double(), torch.tensor(labels)
    probabilities = logits.softmax(-1)
    return Evaluation(
        float(F.cross_entropy(logits, targets)),
        scores | numbers(calibration(probabilities, targets)),
        reliability(probabilities, targets),
        (logits, targets),
    )


def predicted_tags(
    outputs: Sequence[Tensor],
    words: Sequence[Sequence[int]],
    tags: Sequence[Sequence[int]],
    names: Sequence[str],
) -> list[list[str]]:
    """For each sentence the name of every word's predicted tag; ``O`` for words without output."""
    predictions = []
    for logits, places, truth in zip(outputs, words, tags, strict=True):
        found = [OUTSIDE] * len(truth)
        for position, tag in zip(places, logits.argmax(-1).tolist(), strict=True):
            found[position] = names[tag]
        predictions.append(found)
    return predictions
