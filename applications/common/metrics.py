"""How good predictions are: torchmetrics on the outputs for a whole split."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchmetrics.functional.classification as tc
from torch import Tensor, nn
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef

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
    metrics: dict[str, float | None]


def evaluation(outputs: Tensor, labels: Tensor, kind: Kind) -> Evaluation:
    """Loss and metrics of a split's predictions.

    F1 is that of class 1 for two classes, else the mean over the classes; ``ece`` is the expected
    calibration error of the most probable class, in 15 bins of equal width, l1.

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
        "ece": tc.multiclass_calibration_error(probabilities, labels, classes, ECE_BINS, "l1"),
    }
    return Evaluation(float(F.cross_entropy(outputs, labels)), numbers(found))


def numbers(found: Mapping[str, Tensor]) -> dict[str, float | None]:
    """The metrics as numbers; None where one is not defined (equal predictions correlate with
    nothing).
    """
    return {name: float(value) if torch.isfinite(value) else None for name, value in found.items()}


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
