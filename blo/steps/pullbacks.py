"""Updates pulled back in closed form to their gradient alone, tensor by tensor, without a graph.

Written for options that are plain numbers; automatic differentiation of the rule serves where they
are not, and for other optimizers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from blo.steps.rules import Options, State, sgd


class Weighted(NamedTuple):
    """The cotangent of the gradient of one tensor, and where its step leads.

    Attributes:
        g: cotangent of the gradient.
        end: the parameter after the step.
        state: the optimizer's state after it.
    """

    g: Tensor
    end: Tensor
    state: State


ByGradient: TypeAlias = Callable[[Tensor, State, Tensor, Options, Tensor], "Weighted | None"]


def sgd_by_gradient(
    y: Tensor, state: State, g: Tensor, options: Options, of_y: Tensor
) -> Weighted | None:
    """Return `sgd` pulled back to its gradient alone: ``-lr y_bar'``, times ``1 - dampening`` with
    momentum (after its first step), or times ``1 + momentum (1 - dampening)`` with nesterov.

    Args:
        y: the parameter before the step.
        state: the optimizer's state of it.
        g: the gradient.
        options: of its group, plain numbers.
        of_y: cotangent of the parameter after the step.
    """
    end, after = sgd(y, state, g, options)
    momentum, factor = float(options["momentum"]), 1.0
    if momentum != 0.0:
        factor = 1 - float(options["dampening"]) if state.slots else 1.0
        factor = 1 + momentum * factor if options["nesterov"] else factor
    sign = 1.0 if options["maximize"] else -1.0
    return Weighted(of_y.mul(sign * factor * float(options["lr"])), end, after)


def adam_by_gradient(
    y: Tensor, state: State, g: Tensor, options: Options, of_y: Tensor
) -> Weighted | None:
    """Return `adam` pulled back to its gradient alone, ``D y_bar'``; None with amsgrad.

    ``D = -lr / (1 - beta1^t) [((1 - beta1) beta2 v - beta1 (1 - beta2) m g) / ((1 - beta2^t) r) +
    (1 - beta1) eps] / (r + eps)^2`` with the moments `m` and `v` before the step and ``r =
    sqrt(v')`` after it. The terms that cancel in the first step are cancelled in it. Where ``v'``
    is zero, so is the fraction. Arguments as for `sgd_by_gradient`.
    """
    if options["amsgrad"]:
        return None
    lr, eps, decay = (float(options[name]) for name in ("lr", "eps", "weight_decay"))
    beta1, beta2 = (float(beta) for beta in options["betas"])
    t = state.num_steps + 1
    factor, correction = -lr / (1 - beta1**t), 1 - beta2**t
    g = -g if options["maximize"] else g
    if decay != 0.0:
        if options["decoupled_weight_decay"]:
            y = y.mul(1 - lr * decay)
        else:
            g = g.add(y, alpha=decay)
    m, v = state.slots
    after = m.lerp(g, 1 - beta1), v.mul(beta2).addcmul_(g, g, value=1 - beta2)
    root = after[1].sqrt().div_(correction**0.5).clamp_(min=torch.finfo(y.dtype).tiny)
    signed = -factor if options["maximize"] else factor
    found = v.mul(signed * (1 - beta1) * beta2 / correction)
    found.addcmul_(m, g, value=-signed * beta1 * (1 - beta2) / correction).div_(root)
    bottom = root.add_(eps)
    found.add_(signed * (1 - beta1) * eps).div_(bottom).div_(bottom).mul_(of_y)
    return Weighted(found, y.addcdiv(after[0], bottom, value=factor), State(t, after))


def adamw_by_gradient(
    y: Tensor, state: State, g: Tensor, options: Options, of_y: Tensor
) -> Weighted | None:
    """Return `adamw` pulled back to its gradient alone; see `adam_by_gradient`."""
    return adam_by_gradient(y, state, g, {"decoupled_weight_decay": True, **options}, of_y)
