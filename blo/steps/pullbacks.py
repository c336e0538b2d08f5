"""Updates pulled back in closed form: cotangents of what a step is a function of, without a graph.

Written for options that are plain numbers; automatic differentiation of the rule serves where they
are not, and for other optimizers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from blo.linear.tensors import Tensors
from blo.steps.rules import Options, State, adam, sgd


class Pulled(NamedTuple):
    """The cotangents of a step of one tensor, and where it leads.

    Attributes:
        y: cotangent of the parameter before the step.
        slots: of the optimizer's tensors before it.
        g: of the gradient; None where the optimizer passed over the tensor.
        end: the parameter after the step.
        state: the optimizer's state after it.
    """

    y: Tensor
    slots: Tensors
    g: Tensor | None
    end: Tensor
    state: State


class Weighted(NamedTuple):
    """The cotangent of the gradient alone, and where the step leads; see `Pulled`."""

    g: Tensor
    end: Tensor
    state: State


PullBack: TypeAlias = Callable[
    [Tensor, State, Tensor, Options, Tensor, "Tensors | None"], "Pulled | None"
]
ByGradient: TypeAlias = Callable[[Tensor, State, Tensor, Options, Tensor], "Weighted | None"]


def sgd_pulled_back(
    y: Tensor, state: State, g: Tensor, options: Options, of_y: Tensor, of_slots: Tensors | None
) -> Pulled:
    """Return `sgd` pulled back: with ``d`` what is stepped along, ``d_bar = -lr y_bar'``,
    ``b_bar' += momentum d_bar`` (nesterov) or ``d_bar``, ``g_bar = (1 - dampening) b_bar'`` (plus
    ``d_bar`` with nesterov), ``b_bar = momentum b_bar'``, ``y_bar = y_bar' + weight_decay g_bar``.

    Args:
        y: the parameter before the step.
        state: the optimizer's state of it.
        g: the gradient.
        options: of its group, plain numbers.
        of_y: cotangent of the parameter after the step.
        of_slots: of the state's tensors after it; None for zeros.
    """
    end, after = sgd(y, state, g, options)
    momentum, decay = float(options["momentum"]), float(options["weight_decay"])
    along = of_y.mul(-float(options["lr"]))
    of_g, slots = along, state.slots
    if momentum != 0.0:
        of_b = along.mul(momentum) if options["nesterov"] else along
        if of_slots:
            of_b = of_b.add(of_slots[0])
        share = 1 - float(options["dampening"]) if state.slots else 1.0
        of_g = of_b if share == 1.0 else of_b.mul(share)
        of_g = of_g.add(along) if options["nesterov"] else of_g
        slots = (of_b.mul(momentum),) if state.slots else ()
    if decay != 0.0:
        of_y = of_y.add(of_g, alpha=decay)
    return Pulled(of_y, slots, -of_g if options["maximize"] else of_g, end, after)


def adam_pulled_back(
    y: Tensor, state: State, g: Tensor, options: Options, of_y: Tensor, of_slots: Tensors | None
) -> Pulled | None:
    """Return `adam` pulled back; None with amsgrad, whose largest `v` may be an earlier one.

    With ``r = sqrt(v') / sqrt(1 - beta2^t) + eps`` and ``c = lr / (1 - beta1^t)``: ``m_bar' -=
    c y_bar' / r``, ``v_bar' += c y_bar' m' / (2 r^2 sqrt(v') sqrt(1 - beta2^t))`` (0 where ``v'``
    is), ``g_bar = (1 - beta1) m_bar' + 2 (1 - beta2) g v_bar'``, ``m_bar = beta1 m_bar'``, ``v_bar
    = beta2 v_bar'``; decoupled decay multiplies ``y_bar'`` by ``1 - lr weight_decay``, coupled
    decay adds ``weight_decay g_bar``. Arguments as for `sgd_pulled_back`.
    """
    if options["amsgrad"]:
        return None
    end, after = adam(y, state, g, options)
    lr, eps, decay = (float(options[name]) for name in ("lr", "eps", "weight_decay"))
    beta1, beta2 = (float(beta) for beta in options["betas"])
    t, is_decoupled = float(after.num_steps), bool(options["decoupled_weight_decay"])
    g = -g if options["maximize"] else g
    if decay != 0.0 and not is_decoupled:
        g = g.add(y, alpha=decay)
    m, v = after.slots
    root = v.sqrt()
    bottom = root.div((1 - beta2**t) ** 0.5).add_(eps)
    scaled = of_y.mul(lr / (1 - beta1**t)).div_(bottom)
    of_v = scaled.mul(m).div_(bottom).div_(root).mul_(0.5 / (1 - beta2**t) ** 0.5)
    of_v.masked_fill_(v == 0, 0.0)
    of_m = scaled.neg_()
    if of_slots:
        of_m, of_v = of_m.add_(of_slots[0]), of_v.add_(of_slots[1])
    of_g = of_m.mul(1 - beta1).addcmul_(g, of_v, value=2 * (1 - beta2))
    if decay != 0.0:
        of_y = of_y.mul(1 - lr * decay) if is_decoupled else of_y.add(of_g, alpha=decay)
    slots = (of_m.mul_(beta1), of_v.mul_(beta2))
    return Pulled(of_y, slots, of_g.neg_() if options["maximize"] else of_g, end, after)


def adamw_pulled_back(
    y: Tensor, state: State, g: Tensor, options: Options, of_y: Tensor, of_slots: Tensors | None
) -> Pulled | None:
    """Return `adamw` pulled back; see `adam_pulled_back`."""
    options = {"decoupled_weight_decay": True, **options}
    return adam_pulled_back(y, state, g, options, of_y, of_slots)


def sgd_by_gradient(
    y: Tensor, state: State, g: Tensor, options: Options, of_y: Tensor
) -> Weighted | None:
    """Return `sgd` pulled back to its gradient alone: ``-lr y_bar'``, times ``1 - dampening`` with
    momentum (after its first step), or times ``1 + momentum (1 - dampening)`` with nesterov.
    Arguments as for `sgd_pulled_back`.
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
    is zero, so is the fraction. Arguments as for `sgd_pulled_back`.
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
