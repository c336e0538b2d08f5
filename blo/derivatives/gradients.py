"""First derivatives of averaged losses, for methods that need no second ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from blo.derivatives.objective import Objective
from blo.derivatives.pullback import filled, pulled_back, reached
from blo.derivatives.reduction import LOCAL, Reduction
from blo.derivatives.sharded import any_sharded, is_sharded
from blo.linear.tensors import Tensors, average, detach, leaves


class Gradients(NamedTuple):
    """The gradient of a loss with respect to both of its arguments.

    Attributes:
        upper: ``dg/d(upper)``; empty where it was not asked for.
        lower: ``dg/d(lower)``; empty where it was not asked for.
        reached: whether the loss depends on any upper tensor, or, where these were not asked for,
            on any lower one.
    """

    upper: Tensors
    lower: Tensors
    reached: bool


def gradients(
    objectives: Sequence[Objective],
    upper: Tensors,
    lower: Tensors,
    *,
    with_upper: bool = True,
    with_lower: bool = True,
    reduction: Reduction = LOCAL,
) -> Gradients:
    """Return the gradient of the mean of `objectives`: one forward and one backward pass of each.

    Zeros stand where a loss does not depend on a tensor. What is not asked for requires no
    gradient, which saves the part of the backward pass that leads to it alone. The mean is over the
    processes of `reduction`, too.
    """
    uppers, lowers, found = [], [], False
    sharded = any_sharded((*upper, *lower))
    for objective in objectives:
        x = leaves(upper) if with_upper else detach(upper)
        y = leaves(lower) if with_lower else detach(lower)
        inputs = (*x, *y) if with_upper and with_lower else x if with_upper else y
        if sharded:
            both = objective.by_backward(upper, lower)
            cut = slice(None if with_upper else len(upper), None if with_lower else len(upper))
            grads = both[cut]
        else:
            with objective.scope(x, y) as evaluate:
                loss = evaluate()
                grads = pulled_back((loss,), inputs, (torch.ones_like(loss),))
        split = len(x) if with_upper else 0
        found = found or reached(grads[:split] if with_upper else grads)
        uppers.append(filled(grads[:split], inputs[:split]))
        lowers.append(filled(grads[split:], inputs[split:]))
    of_upper, of_lower = average(uppers), average(lowers)
    if reduction.is_local:
        return Gradients(of_upper, of_lower, found)
    taken = (*of_upper, *of_lower)
    like = next((t for t in taken if not is_sharded(t)), taken[0])
    flag = torch.tensor(float(found), dtype=like.dtype, device=like.device)
    *means, anywhere = reduction.means((*taken, flag))
    n = len(of_upper)
    return Gradients(tuple(means[:n]), tuple(means[n:]), bool(anywhere > 0))
