"""What the loops written by hand share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = list[Tensor]


def step(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], grads: Tensors) -> None:
    """Take a step along given gradients."""
    for parameter, gradient in zip(parameters, grads, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def fetched(loss: Tensor) -> Tensor:
    """Return the loss, looked at as every training loop does; FloatingPointError if not finite."""
    if not math.isfinite(float(loss.detach())):
        raise FloatingPointError("the loss is not finite")
    return loss


def put(parameters: Sequence[Tensor], values: Tensors) -> None:
    """Write values into parameters."""
    with torch.no_grad():
        torch._foreach_copy_([p.detach() for p in parameters], values)


def through_adam(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], grads: Tensors, c: Tensors
) -> Tensors:
    """Return ``D c``, D the derivative of Adam's last step in its gradient (a diagonal).

    With m and v as they are after the step, ``d/dg [-lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) +
    eps)]``; 0 where it is not finite.
    """
    group = optimizer.param_groups[0]
    (b1, b2), eps, lr = group["betas"], group["eps"], group["lr"]
    found = []
    for p, g, cotangent in zip(parameters, grads, c, strict=True):
        state = optimizer.state[p]
        t = float(state["step"])
        first, second = 1 - b1**t, 1 - b2**t
        m, root = state["exp_avg"] / first, (state["exp_avg_sq"] / second).sqrt()
        bottom = root + eps
        by_m = (1 - b1) / first / bottom
        by_v = m / bottom.square() * (1 - b2) * g / (second * root)
        scale = torch.nan_to_num(by_m - by_v, nan=0.0, posinf=0.0, neginf=0.0)
        found.append(-lr * scale * cotangent)
    return found
