"""First derivatives of averaged losses, for methods that need no second ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from blo.methods.context import Context
from blo.methods.objective import Objective
from blo.methods.products import DEFAULT_RADIUS
from blo.methods.tensors import Tensors, average, detach, leaves, norm, numel


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


def difference_length(context: Context, *, one_sided: bool) -> float:
    """Return how far to move the lower parameters for a difference of gradients.

    ``r max(|y|, 1e-3 sqrt(numel))``, with `r` the value measured best for the coarsest type that
    the lower loss is computed in (`DEFAULT_RADIUS`).
    """
    y = context.after.lower
    types = [t.dtype for t in y]
    types += [o.precision for o in context.objectives if o.precision is not None]
    coarsest = max(types, key=lambda dtype: torch.finfo(dtype).eps)
    radius = DEFAULT_RADIUS[coarsest][1 if one_sided else 0]
    return radius * max(float(norm(y)), math.sqrt(numel(y)) * 1e-3)
