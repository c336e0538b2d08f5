"""Temperature scaling: one number, fitted on held-out data, that makes probabilities honest.

Reference: Guo et al. (2017), On calibration of modern neural networks, arXiv:1706.04599, section 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from applications.families.metrics import Evaluation, calibration, numbers

MAX_ITERATIONS = 100
LIMITS = (1e-2, 1e2)
CALIBRATED = ("temperature", "calibrated_loss", "calibrated_ece", "calibrated_brier")


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The T > 0 at which the mean negative log-likelihood of ``softmax(logits / T)`` is least.

    The loss is convex in 1 / T, so that L-BFGS over log T from T = 1 ends at the minimum. There is
    none where every prediction is right (T falls to 0) or no logit helps (T grows): the search
    ends where the loss no longer changes, and T is kept between 0.01 and 100.

    Args:
        logits: ``(examples, classes)``, of data that nothing was trained on.
        labels: ``(examples,)`` class numbers.
    """
    logits, low, high = logits.detach().double(), *LIMITS
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([log_t], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        value = F.cross_entropy(logits * torch.exp(-log_t), labels)
        (log_t.grad,) = torch.autograd.grad(value, [log_t])
        return value

    with torch.enable_grad():
        search.step(loss)
    found = float(log_t.detach().nan_to_num(0.0).exp())
    return min(max(found, low), high)


def calibrated(held_out: Evaluation | None, test: Evaluation) -> dict[str, float | None]:
    """The temperature of held-out data, and loss, ECE and Brier score of the test data with it.

    None for each where there are no classes, or no held-out data.
    """
    if held_out is None or held_out.outputs is None or test.outputs is None:
        return dict.fromkeys(CALIBRATED)
    scale = temperature(*held_out.outputs)
    logits, labels = test.outputs
    scaled = logits.double() / scale
    found = numbers(calibration(scaled.softmax(-1), labels))
    values = (scale, float(F.cross_entropy(scaled, labels)), found["ece"], found["brier"])
    return dict(zip(CALIBRATED, values, strict=True))
