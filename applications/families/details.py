"""What lies behind the metrics of a split: scores of each class, confusions, examples of errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

NUM_MISTAKES = 20


class ClassScores(TypedDict):
    """How well one class is found; a ratio 0/0 is None."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Mistake:
    """An example that the model gets wrong.

    Attributes:
        text: what the model read.
        truth: the answer.
        predicted: the model's.
        weight: by which examples of errors are ordered: the probability of what was predicted, or
            the distance of a number.
    """

    text: str
    truth: str
    predicted: str
    weight: float


@dataclass(frozen=True)
class Details:
    """What lies behind the metrics.

    Attributes:
        per_class: by name of the class; empty where there are none.
        confusion: ``confusion[i][j]`` examples of class i were taken for class j; empty where that
            is not counted.
        mistakes: the worst `NUM_MISTAKES`, worst first.
        num_mistakes: of all examples.
    """

    per_class: dict[str, ClassScores]
    confusion: tuple[tuple[int, ...], ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    num_mistakes: int = 0


def of_classes(
    outputs: Tensor, labels: Tensor, names: Sequence[str], texts: Sequence[str]
) -> Details:
    """The details of classified texts.

    Args:
        outputs: ``(examples, classes)`` logits.
        labels: ``(examples,)`` class numbers.
        names: of the classes.
        texts: the examples.
    """
    count = len(names)
    confidence, predictions = outputs.double().softmax(-1).max(-1)
    pairs = torch.bincount(labels * count + predictions, minlength=count * count)
    confusion = tuple(tuple(row) for row in pairs.reshape(count, count).tolist())
    wrong = torch.nonzero(predictions != labels).flatten().tolist()
    found = [
        Mistake(texts[n], names[int(labels[n])], names[int(predictions[n])], float(confidence[n]))
        for n in wrong
    ]
    scores = {name: class_scores(confusion, place) for place, name in enumerate(names)}
    return Details(scores, confusion, worst(found), len(found))


def class_scores(confusion: Sequence[Sequence[int]], place: int) -> ClassScores:
    """The scores of one class: precision TP / (TP + FP), recall TP / (TP + FN), and their harmonic
    mean, F1 = 2 TP / (2 TP + FP + FN).
    """
    right = confusion[place][place]
    predicted, support = sum(row[place] for row in confusion), sum(confusion[place])
    return {
        "precision": ratio(right, predicted),
        "recall": ratio(right, support),
        "f1": ratio(2 * right, predicted + support),
        "support": support,
    }


def ratio(part: float, whole: float) -> float | None:
    """The ratio, None where there is nothing below."""
    return part / whole if whole else None


def of_numbers(outputs: Tensor, labels: Tensor, texts: Sequence[str]) -> Details:
    """The details of predicted numbers: those furthest from the truth."""
    values = outputs.double().flatten().tolist()
    found = [
        Mistake(text, f"{truth:.4g}", f"{value:.4g}", abs(value - truth))
        for text, truth, value in zip(texts, labels.tolist(), values, strict=True)
    ]
    return Details({}, (), worst(found), len(found))


def worst(found: Sequence[Mistake]) -> tuple[Mistake, ...]:
    """The first `NUM_MISTAKES` by weight, the largest first."""
    return tuple(sorted(found, key=lambda one: -one.weight)[:NUM_MISTAKES])
