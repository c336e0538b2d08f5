"""Texts, or pairs of texts, with a class or a number each."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from applications import processes
from applications.data.batches import Collator, Encoded, evaluation_batches
from applications.data.examples import TaskData, load_task
from applications.data.inputs import input_texts
from applications.errors import UsageError
from applications.families.details import of_classes, of_numbers
from applications.families.family import Setting, Stage, wants_details
from applications.families.metrics import Evaluation, evaluation
from applications.families.prediction import evaluating, predictor
from applications.models.loading import load_pretrained
from applications.models.soundness import TOO_LONG, check_lengths, positions
from applications.options.arguments import DataOptions, ModelOptions, Options


@dataclass(frozen=True)
class TextClassification:
    """The family of ``applications.nlu``: classification and regression."""

    command: str = "nlu"
    task_type: TaskType = TaskType.SEQ_CLS
    auto_model: type[Any] = AutoModelForSequenceClassification

    def load_task(
        self, options: DataOptions, *, part: bool = False, unread: Collection[str] = ()
    ) -> TaskData:
        """The examples that the options ask for."""
        return load_task(options, part=part, unread=unread)

    def load_base(
        self, options: ModelOptions, task: TaskData
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The pre-trained model with a new head for the task, and its tokenizer."""
        settings: dict[str, Any] = {"problem_type": "regression"}
        if task.kind == "classification":
            settings = {
                "problem_type": "single_label_classification",
                "id2label": dict(enumerate(task.label_names)),
                "label2id": {name: number for number, name in enumerate(task.label_names)},
            }
        model, tokenizer = load_pretrained(
            self.auto_model,
            options,
            num_labels=task.num_labels,
            # A checkpoint with a head of another size gets a new one, as one without a head does.
            ignore_mismatched_sizes=True,
            **settings,
        )
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise UsageError(
                    f"argument --model_name_or_path: the tokenizer of "
                    f"{options.model_name_or_path!r} has no token to pad with (pad_token), nor one "
                    f"that ends a text; take another model"
                )
            tokenizer.pad_token = tokenizer.eos_token
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        return model, tokenizer

    def encode(
        self, examples: Dataset, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> Encoded:
        """The examples as token numbers, with their label; too long inputs are cut."""
        texts = [list(examples[name]) for name in ("text", "pair") if name in examples.column_names]
        tokens = tokenizer(*texts, truncation=True, max_length=options.data.max_seq_length)
        rows = [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]
        labels = examples["label"]
        return [row | {"labels": label} for row, label in zip(rows, labels, strict=True)]

    def texts(self, examples: Dataset) -> Iterable[str]:
        """The texts, those of a pair one after the other."""
        pairs = examples["pair"] if "pair" in examples.column_names else [""] * len(examples)
        return (
            f"{text} {pair}".strip() for text, pair in zip(examples["text"], pairs, strict=True)
        )

    def check(self, model: PreTrainedModel, splits: Mapping[str, Dataset], work: Setting) -> None:
        """Raise a UsageError where ``max_seq_length`` leaves texts longer than the model reads."""
        if work.options.data.max_seq_length > (positions(model) or math.inf):
            for split, examples in splits.items():
                rows = self.encode(examples, work.tokenizer, work.options)
                tokens = (row["input_ids"] for row in rows)
                check_lengths(tokens, model, split, TOO_LONG)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads to the longest row."""
        return DataCollatorWithPadding(tokenizer)

    def evaluate(
        self, model: nn.Module, examples: Dataset, setting: Setting, *, split: str, stage: Stage
    ) -> Evaluation:
        """Loss and metrics of the model on the examples."""
        options, tokenizer = setting.options, setting.tokenizer
        encoded = self.encode(examples, tokenizer, options)
        order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]["input_ids"]))
        rows = [encoded[number] for number in order]
        size = options.run.per_device_eval_batch_size
        predict = predictor(model, options)
        own, collator = processes.own_share(rows), self.collator(tokenizer)
        with evaluating(model, options):
            found = [predict(batch) for batch in evaluation_batches(own, collator, size=size)]
        shares = [[row for part in share for row in part] for share in processes.gathered(found)]
        labels = torch.tensor([row["labels"] for row in rows])
        outputs, task = torch.stack(processes.whole(shares)), setting.task
        scores = evaluation(outputs, labels, task.kind)
        if not wants_details(split, stage):
            return scores
        texts = list(self.texts(examples))
        read = [texts[number] for number in order]
        if task.kind == "regression":
            return replace(scores, details=of_numbers(outputs, labels, read))
        return replace(scores, details=of_classes(outputs, labels, task.label_names, read))

    def predict(
        self, model: nn.Module, rows: Dataset, setting: Setting, columns: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The most probable class and the probability of each, or the number."""
        options, tokenizer, task = setting.options, setting.tokenizer, setting.task
        texts = input_texts(rows, columns, options.data)
        examples = Dataset.from_dict(
            dict(zip(columns, texts, strict=True)) | {"label": [0] * len(rows)}
        )
        encoded = self.encode(examples, tokenizer, options)
        order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]["input_ids"]))
        predict, size = predictor(model, options), options.run.per_device_eval_batch_size
        with evaluating(model, options):
            batches = evaluation_batches(encoded, self.collator(tokenizer), size=size)
            found = torch.cat([predict(batch) for batch in batches]).double()
        outputs = torch.empty_like(found)
        outputs[order] = found  # the batches are sorted by length, and sorting is stable
        if task.kind == "regression":
            return [{"prediction": value} for value in outputs.squeeze(-1).tolist()]
        return [
            {"prediction": task.label_names[row.argmax()]}
            | {f"probability_{n}": p for n, p in zip(task.label_names, row.tolist(), strict=True)}
            for row in outputs.softmax(-1)
        ]
