"""How good predictions are: torchmetrics on the outputs for a whole split."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchmetrics.classification as tc
from torch import Tensor, nn
from torchmetrics import MetricCollection, PearsonCorrCoef, SpearmanCorrCoef

from applications.common.batches import Batch
from applications.common.examples import Kind

ECE_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """What one split says about a model.

    ``loss`` is the mean negative log-likelihood (classification) or squared error (regression);
    ``metrics`` holds every metric of the task by name, ``ece`` included.
    """

    loss: float
    metrics: dict[str, float]


def collection(num_classes: int) -> MetricCollection:
    """The classification metrics; F1 is that of class 1 for two classes, else the macro mean."""
    f1: tc.BinaryF1Score | tc.MulticlassF1Score = tc.MulticlassF1Score(num_classes)
    if num_classes == 2:
        f1 = tc.MulticlassF1Score(2, average="none")
    return MetricCollection(
        {
            "accuracy": tc.MulticlassAccuracy(num_classes, average="micro"),
            "f1": f1,
            "matthews": tc.MulticlassMatthewsCorrCoef(num_classes),
            "ece": tc.MulticlassCalibrationError(num_classes, n_bins=ECE_BINS, norm="l1"),
        }
    )


def evaluation(outputs: Tensor, labels: Tensor, kind: Kind) -> Evaluation:
    """Loss and metrics of a split's predictions.

    Args:
        outputs: ``(examples, classes)`` logits, or ``(examples, 1)`` predictions for regression.
        labels: ``(examples,)`` class numbers or decimals.
        kind: classification or regression.
    """
    outputs = outputs.double()
    if kind == "regression":
        predictions, targets = outputs.squeeze(-1), labels.double()
        pearson, spearman = PearsonCorrCoef(), SpearmanCorrCoef()
        metrics = {
            "pearson": float(pearson(predictions, targets)),
            "spearman": float(spearman(predictions, targets)),
        }
        return Evaluation(float(F.mse_loss(predictions, targets)), metrics)
    probabilities = outputs.softmax(-1)
    found = collection(outputs.shape[-1])(probabilities, labels)
    metrics = {name: float(value[1] if value.ndim else value) for name, value in found.items()}
    return Evaluation(float(F.cross_entropy(outputs, labels)), metrics)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    kind: Kind,
    device: torch.device,
    precision: torch.dtype | None = None,
) -> Evaluation:
    """Loss and metrics of the model, in evaluation mode, on all batches; the mode is restored.

    Draws no random numbers, so that an evaluation in between does not change a training run.
    """
    was_training = model.training
    model.eval()
    outputs, labels = [], []
    context = torch.autocast(device.type, precision) if precision else nullcontext()
    with context:
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            outputs.append(model(**inputs).logits.float().cpu())
            labels.append(batch["labels"])
    model.train(was_training)
    return evaluation(torch.cat(outputs), torch.cat(labels), kind)
