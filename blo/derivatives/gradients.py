"""First derivatives of averaged losses, for methods that need no second ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from blo.derivatives.objective import Objective
from blo.linear.tensors import Tensors, average, detach, leaves


class Gradients(NamedTuple):
    """The gradient of a loss with respect to both of its arguments.

    Attributes:
        upper: ``dg/d(upper)``; empty where it was not asked for.
        lower: ``dg/d(lower)``.
        reached: whether the loss depends on any upper tensor; False where that was not asked for.
    """

    upper: Tensors
    lower: Tensors
    reached: bool


def gradients(
    objectives: Sequence[Objective], upper: Tensors, lower: Tensors, *, with_upper: bool
) -> Gradients:
    """Return the gradient of the mean of `objectives`: one forward and one backward pass of each.

    Zeros stand where a loss does not depend on a tensor. Without `with_upper` the upper tensors
    require no gradient, which saves the part of the backward pass that leads to them alone.
    """
    uppers, lowers, reached = [], [], False
    for objective in objectives:
        x = leaves(upper) if with_upper else detach(upper)
        y = leaves(lower)
        inputs = (*x, *y) if with_upper else y
        with objective.scope(x, y) as evaluate:
            grads = torch.autograd.grad(evaluate(), inputs, allow_unused=True)
        filled = tuple(
            torch.zeros_like(t) if g is None else g for g, t in zip(grads, inputs, strict=True)
        )
        split = len(inputs) - len(y)
        reached = reached or any(g is not None for g in grads[:split])
        uppers.append(filled[:split])
        lowers.append(filled[split:])
    return Gradients(average(uppers), average(lowers), reached)
