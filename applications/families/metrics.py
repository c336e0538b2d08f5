"""How good predictions are: torchmetrics on the outputs for a whole split."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import torch
import torch.nn.functional as F
import torchmetrics.functional.classification as tc
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

from applications.families.details import Details

ECE_BINS = 15


class Bin(TypedDict):
    """Predictions of similar confidence: means over them, None where there are none."""

    confidence: float | None
    accuracy: float | None
    count: int


@dataclass(frozen=True)
class Evaluation:
    """What one split says about a model.

    ``loss`` is the mean negative log-likelihood (classification) or squared error (regression);
    ``metrics`` holds every metric of the task by name, ``ece`` and ``brier`` included where there
    are classes; ``reliability`` the bins behind the first of them; ``outputs`` the logits and the
    labels behind all of them; ``details`` what the report shows of the test split when training is
    over.
    """

    loss: float
    metrics: dict[str, float | None]
    reliability: tuple[Bin, ...] | None = None
    outputs: tuple[Tensor, Tensor] | None = field(default=None, repr=False, compare=False)
    details: Details | None = None


def evaluation(outputs: Tensor, labels: Tensor, kind: str) -> Evaluation:
    """Loss and metrics of a split's predictions.

    F1 is that of class 1 for two classes, else the mean over the classes; calibration as in
    `calibration`.

    Args:
        outputs: ``(examples, classes)`` logits, or ``(examples, 1)`` predictions for regression.
        labels: ``(examples,)`` class numbers or decimals.
        kind: classification or regression.
    """
    outputs = outputs.double()
    if kind == "regression":
        predictions, targets = outputs.squeeze(-1), labels.double()
        found = {
            "pearson": pearson_corrcoef(predictions, targets),
            "spearman": spearman_corrcoef(predictions, targets),
        }
        return Evaluation(float(F.mse_loss(predictions, targets)), numbers(found))
    classes = outputs.shape[-1]
    probabilities, predictions = outputs.softmax(-1), outputs.argmax(-1)
    f1 = (
        tc.binary_f1_score(predictions, labels)
        if classes == 2
        else tc.multiclass_f1_score(predictions, labels, classes, average="macro")
    )
    found = {
        "accuracy": tc.multiclass_accuracy(predictions, labels, classes, average="micro"),
        "f1": f1,
        "matthews": tc.multiclass_matthews_corrcoef(predictions, labels, classes),
        **calibration(probabilities, labels),
    }
    loss = float(F.cross_entropy(outputs, labels))
    bins = reliability(probabilities, labels)
    return Evaluation(loss, numbers(found), bins, (outputs, labels))


def calibration(probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """How far probabilities are from frequencies.

    ``ece`` is the expected calibration error of the most probable class, in 15 bins of equal width,
    l1 (Guo et al., 2017, arXiv:1706.04599, equation 3); ``brier`` the mean over the examples of
    ``sum_k (p_k - 1[y = k])^2``, between 0 and 2 (Brier, 1950).

    Args:
        probabilities: ``(examples, classes)``.
        labels: ``(examples,)`` class numbers.
    """
    classes = probabilities.shape[-1]
    truth = F.one_hot(labels, classes).to(probabilities)
    return {
        "ece": tc.multiclass_calibration_error(probabilities, labels, classes, ECE_BINS, "l1"),
        "brier": (probabilities - truth).square().sum(-1).mean(),
    }


def reliability(probabilities: Tensor, labels: Tensor) -> tuple[Bin, ...]:
    """The bins of a reliability diagram: the most probable class in 15 bins of equal width.

    Bin k holds confidences in ``(k/15, (k+1)/15]``, the bins of ``ece``, which is
    ``sum_k count_k / n |accuracy_k - confidence_k|``.

    Args:
        probabilities: ``(examples, classes)``.
        labels: ``(examples,)`` class numbers.
    """
    confidence, predictions = probabilities.max(-1)
    right = (predictions == labels).to(confidence)
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=confidence.dtype)
    bins = (torch.bucketize(confidence, edges) - 1).clamp(0, ECE_BINS - 1)
    found: list[Bin] = []
    for k in range(ECE_BINS):
        inside = bins == k
        count = int(inside.sum())
        means = [float(values[inside].mean()) if count else None for values in (confidence, right)]
        found.append({"confidence": means[0], "accuracy": means[1], "count": count})
    return tuple(found)


def numbers(found: Mapping[str, Tensor]) -> dict[str, float | None]:
    """The metrics as numbers; None where one is not defined (equal predictions correlate with
    nothing).
    """
    return {name: float(value) if torch.isfinite(value) else None for name, value in found.items()}
