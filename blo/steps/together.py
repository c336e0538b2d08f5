"""Steps of SGD and Adam on many tensors at once, and their pull-backs in closed form.

The updates of `blo.steps.rules`, with the same bits, by one call of a foreach kernel for all
tensors that share their options and the number of steps that they have taken. Written for options
that are plain numbers; automatic differentiation of the rule serves where they are not, and for
other optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from blo.linear.tensors import Tensors
from blo.steps.rules import Options, State

Columns: TypeAlias = tuple[Tensors, ...]  # of the optimizer's state: one slot of all tensors each


class Taken(NamedTuple):
    """A step of several tensors.

    Attributes:
        lower: the parameters after it.
        slots: the optimizer's tensors after it.
        kept: what the pull-back needs beside those.
    """

    lower: Tensors
    slots: Columns
    kept: Tensors = ()


class Cotangents(NamedTuple):
    """The cotangents of what a step is a function of: parameters, slots and gradient."""

    lower: Tensors
    slots: Columns
    gradient: Tensors


class ClosedForm(NamedTuple):
    """A step and its pull-back.

    Attributes:
        step: from parameters, slots, gradient, options and the steps taken before.
        pulled_back: from the step, whether there were slots before it, the options, the steps taken
            before it, and the cotangents of the parameters and slots after it (None for zeros).
        serves: whether it is written for these options.
    """

    step: Callable[[Tensors, Columns, Tensors, Options, int], Taken]
    pulled_back: Callable[[Taken, bool, Options, int, Tensors, Columns | None], Cotangents]
    serves: Callable[[Options], bool]


def sgd_step(y: Tensors, slots: Columns, g: Tensors, options: Options, num_steps: int) -> Taken:
    """Return the step of `rules.sgd`."""
    lr, momentum = float(options["lr"]), float(options["momentum"])
    g = _with_decay(y, _signed(g, options), options)
    if momentum != 0.0:
        if slots:
            b = torch._foreach_mul(slots[0], momentum)
            torch._foreach_add_(b, g, alpha=1 - float(options["dampening"]))
        else:
            b = torch._foreach_clone(g)
        slots = (tuple(b),)
        g = tuple(torch._foreach_add(g, b, alpha=momentum)) if options["nesterov"] else slots[0]
    return Taken(tuple(torch._foreach_add(y, g, alpha=-lr)), slots)


def sgd_pulled_back(
    taken: Taken,
    had_slots: bool,
    options: Options,
    num_steps: int,
    of_y: Tensors,
    of_slots: Columns | None,
) -> Cotangents:
    """Return `sgd_step` pulled back: with ``d`` what is stepped along, ``d_bar = -lr y_bar'``,
    ``b_bar' += momentum d_bar`` (nesterov) or ``d_bar``, ``g_bar = (1 - dampening) b_bar'`` (plus
    ``d_bar`` with nesterov), ``b_bar = momentum b_bar'``, ``y_bar = y_bar' + weight_decay g_bar``.
    """
    momentum, decay = float(options["momentum"]), float(options["weight_decay"])
    along = torch._foreach_mul(of_y, -float(options["lr"]))
    of_g = along
    slots: Columns = ()
    if momentum != 0.0:
        of_b = torch._foreach_mul(along, momentum) if options["nesterov"] else along
        if of_slots:
            of_b = torch._foreach_add(of_b, of_slots[0])
        share = 1 - float(options["dampening"]) if had_slots else 1.0
        of_g = of_b if share == 1.0 else torch._foreach_mul(of_b, share)
        of_g = torch._foreach_add(of_g, along) if options["nesterov"] else of_g
        slots = (torch._foreach_mul(of_b, momentum),) if had_slots else ()
    if decay != 0.0:
        of_y = torch._foreach_add(of_y, of_g, alpha=decay)
    return Cotangents(of_y, slots, torch._foreach_neg(of_g) if options["maximize"] else of_g)


def adam_step(y: Tensors, slots: Columns, g: Tensors, options: Options, num_steps: int) -> Taken:
    """Return the step of `rules.adam` without amsgrad; kept is the gradient with sign and decay."""
    lr, eps, decay = (float(options[name]) for name in ("lr", "eps", "weight_decay"))
    beta1, beta2 = (float(beta) for beta in options["betas"])
    t = float(num_steps + 1)
    g = _signed(g, options)
    if decay != 0.0 and options["decoupled_weight_decay"]:
        y = tuple(torch._foreach_mul(y, 1 - lr * decay))
    else:
        g = _with_decay(y, g, options)
    m = torch._foreach_lerp(slots[0], g, 1 - beta1)
    v = torch._foreach_mul(slots[1], beta2)
    torch._foreach_addcmul_(v, g, g, value=1 - beta2)
    bottom = torch._foreach_sqrt(v)
    torch._foreach_div_(bottom, (1 - beta2**t) ** 0.5)
    torch._foreach_add_(bottom, eps)
    end = torch._foreach_addcdiv(y, m, bottom, value=-lr / (1 - beta1**t))
    return Taken(tuple(end), (tuple(m), tuple(v)), g)


def adam_pulled_back(
    taken: Taken,
    had_slots: bool,
    options: Options,
    num_steps: int,
    of_y: Tensors,
    of_slots: Columns | None,
) -> Cotangents:
    """Return `adam_step` pulled back.

    With ``r = sqrt(v') / sqrt(1 - beta2^t) + eps`` and ``c = lr / (1 - beta1^t)``: ``m_bar' -=
    c y_bar' / r``, ``v_bar' += c y_bar' m' / (2 r^2 sqrt(v') sqrt(1 - beta2^t))`` (0 where ``v'``
    is), ``g_bar = (1 - beta1) m_bar' + 2 (1 - beta2) g v_bar'``, ``m_bar = beta1 m_bar'``, ``v_bar
    = beta2 v_bar'``; decoupled decay multiplies ``y_bar'`` by ``1 - lr weight_decay``, coupled
    decay adds ``weight_decay g_bar``.
    """
    lr, eps, decay = (float(options[name]) for name in ("lr", "eps", "weight_decay"))
    beta1, beta2 = (float(beta) for beta in options["betas"])
    t = float(num_steps + 1)
    g, (m, v) = taken.kept, taken.slots
    root = torch._foreach_sqrt(v)
    bottom = torch._foreach_div(root, (1 - beta2**t) ** 0.5)
    torch._foreach_add_(bottom, eps)
    of_m = torch._foreach_mul(of_y, -lr / (1 - beta1**t))
    torch._foreach_div_(of_m, bottom)
    # No more than m where v' is above zero, and 0 where it is zero.
    of_v = torch._foreach_mul(torch._foreach_sign(root), m)
    torch._foreach_clamp_min_(root, torch.finfo(root[0].dtype).tiny)
    torch._foreach_mul_(of_v, of_m)
    torch._foreach_div_(of_v, bottom)
    torch._foreach_div_(of_v, root)
    torch._foreach_mul_(of_v, -0.5 / (1 - beta2**t) ** 0.5)
    if of_slots:
        torch._foreach_add_(of_m, of_slots[0])
        torch._foreach_add_(of_v, of_slots[1])
    of_g = torch._foreach_mul(of_m, 1 - beta1)
    torch._foreach_addcmul_(of_g, g, of_v, value=2 * (1 - beta2))
    if decay != 0.0:
        if options["decoupled_weight_decay"]:
            of_y = torch._foreach_mul(of_y, 1 - lr * decay)
        else:
            of_y = torch._foreach_add(of_y, of_g, alpha=decay)
    torch._foreach_mul_(of_m, beta1)
    torch._foreach_mul_(of_v, beta2)
    if options["maximize"]:
        torch._foreach_neg_(of_g)
    return Cotangents(of_y, (of_m, of_v), of_g)


def together(
    lower: Sequence[Tensor],
    states: Sequence[State],
    gradient: Sequence[Tensor | None],
    options: Sequence[Options],
) -> list[list[int]]:
    """Return the positions of the tensors that have a gradient, those in one list that share their
    options, the number of their steps and slots, type and device.
    """
    found: dict[tuple[object, ...], list[int]] = {}
    for i, (y, s, g, o) in enumerate(zip(lower, states, gradient, options, strict=True)):
        if g is not None:
            key = id(o), s.num_steps, len(s.slots), y.dtype, y.device
            found.setdefault(key, []).append(i)
    return list(found.values())


def _signed(g: Tensors, options: Options) -> Tensors:
    return tuple(torch._foreach_neg(g)) if options["maximize"] else g


def _with_decay(y: Tensors, g: Tensors, options: Options) -> Tensors:
    decay = float(options["weight_decay"])
    return tuple(torch._foreach_add(g, y, alpha=decay)) if decay != 0.0 else g


def _with_its_decay(options: Options) -> Options:
    # Torch before 2.7 does not write into AdamW's groups that its decay is decoupled.
    return {"decoupled_weight_decay": True, **options}


def _without_amsgrad(options: Options) -> bool:
    return not options["amsgrad"]


SGD = ClosedForm(sgd_step, sgd_pulled_back, lambda _: True)
ADAM = ClosedForm(adam_step, adam_pulled_back, _without_amsgrad)
ADAMW = ClosedForm(
    lambda y, slots, g, options, n: adam_step(y, slots, g, _with_its_decay(options), n),
    lambda taken, had, options, *rest: adam_pulled_back(
        taken, had, _with_its_decay(options), *rest
    ),
    _without_amsgrad,
)
