"""The updates of torch's optimizers, one pure function each.

A rule takes one tensor, the optimizer's state of it and its gradient to the new tensor and the new
state,

    (y_t, s_t) = U(y_{t-1}, s_{t-1}, g_t; options),

out of place, by the operations of torch's own loop in their order: a step taken again gives the
same bits where torch runs that loop (``foreach=False``), and the same up to rounding where it runs
its fused kernels. An option that is a tensor in a graph (a learning rate that the problems above
set) stays in it, and the step is differentiable in it; all others are read as plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from blo.linear.tensors import Tensors

Options: TypeAlias = Mapping[str, Any]
Scalar: TypeAlias = float | Tensor  # a tensor only where it is part of a graph

# Value of an entry of the state before the optimizer has written it: a number that fills a tensor
# in the parameter's shape, a tensor that is taken as it is, or None for an entry that is absent.
Initial: TypeAlias = float | Tensor | None
Slots: TypeAlias = Mapping[str, Initial]


class State(NamedTuple):
    """The optimizer's state of one tensor: its steps so far, and the tensors that it carries on, in
    the order of the rule's slots.
    """

    num_steps: int
    slots: Tensors


Step: TypeAlias = Callable[[Tensor, State, Tensor, Options], tuple[Tensor, State]]


def number(options: Options, name: str) -> Scalar:
    """Return an option as a plain number, or as a tensor in double precision if it is in a graph.

    Raises:
        ValueError: if it is None.
    """
    return _number(options[name], "learning rate" if name == "lr" else name)


def _number(value: Any, name: str) -> Scalar:
    if value is None:
        raise ValueError(
            f"{name} is None: the optimizer sets its own, which cannot be read from its options; "
            "give it a number, or use a method that does not need it, such as cg(10)"
        )
    if isinstance(value, Tensor) and value.requires_grad:
        return value.double()
    return float(value)


def sgd(y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
    """Return the step of `torch.optim.SGD`.

    ``g <- +-g + weight_decay y``, ``b <- momentum b + (1 - dampening) g`` (``b = g`` at first),
    ``y <- y - lr b``, or ``y <- y - lr (g + momentum b)`` with nesterov.

    Raises:
        ValueError: for a momentum in a graph that is zero, with dampening: there the step of torch
            jumps, and has no derivative.
    """
    momentum, dampening = number(options, "momentum"), number(options, "dampening")
    g = _with_decay(y, _signed(g, options), options)
    slots = state.slots
    if _is_on(momentum):
        if isinstance(momentum, Tensor) and _is_on(dampening) and momentum.item() == 0:
            raise ValueError(
                "momentum is a function of other parameters and 0 while dampening is not: torch "
                "leaves dampening out there, and the step jumps; take dampening=0, or a momentum "
                "above 0"
            )
        b = _plus(_times(slots[0], momentum), g, 1 - dampening) if slots else g
        g = _plus(g, b, momentum) if options["nesterov"] else b
        slots = (b,)
    return _plus(y, g, -number(options, "lr")), State(state.num_steps + 1, slots)


def adam(y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
    """Return the step of `torch.optim.Adam`.

    ``m <- beta1 m + (1 - beta1) g``, ``v <- beta2 v + (1 - beta2) g^2``,
    ``y <- y - lr m' / (sqrt(v') + eps)`` with ``m' = m / (1 - beta1^t)``, ``v' = v / (1 -
    beta2^t)``; amsgrad takes the largest `v` so far. Before that, decoupled decay multiplies `y` by
    ``1 - lr weight_decay``, and coupled decay adds ``weight_decay y`` to `g`.
    """
    lr, eps, (beta1, beta2) = number(options, "lr"), number(options, "eps"), _betas(options)
    t = float(state.num_steps + 1)
    y, g = _decayed(y, _signed(g, options), lr, options)
    m = _mixed(state.slots[0], g, 1 - beta1)
    v = _plus_square(_times(state.slots[1], beta2), g, 1 - beta2)
    slots: Tensors = (m, v)
    if options["amsgrad"]:
        v = torch.maximum(state.slots[2], v)
        slots = (*slots, v)
    root = _over(_root(v), (1 - beta2**t) ** 0.5)
    y = _plus_ratio(y, m, _shifted(root, eps), -lr / (1 - beta1**t))
    return y, State(state.num_steps + 1, slots)


def adamw(y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
    """Return the step of `torch.optim.AdamW`: that of `adam` with decoupled decay."""
    # Torch before 2.7 does not write into AdamW's groups that its decay is decoupled.
    return adam(y, state, g, {"decoupled_weight_decay": True, **options})


def rmsprop(y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
    """Return the step of `torch.optim.RMSprop`.

    ``g <- +-g + weight_decay y``, ``v <- alpha v + (1 - alpha) g^2``, ``d = g / (sqrt(v) + eps)``,
    with ``v - m^2`` in place of `v` if centered, ``m <- alpha m + (1 - alpha) g``;
    ``y <- y - lr d``, or ``b <- momentum b + d``, ``y <- y - lr b`` with momentum.
    """
    lr, eps, alpha = (number(options, name) for name in ("lr", "eps", "alpha"))
    momentum = number(options, "momentum")
    slots = dict(zip(rmsprop_slots(options), state.slots, strict=True))
    g = _with_decay(y, _signed(g, options), options)
    v = spread = _plus_square(_times(slots["square_avg"], alpha), g, 1 - alpha)
    slots["square_avg"] = v
    if options["centered"]:
        m = slots["grad_avg"] = _mixed(slots["grad_avg"], g, 1 - alpha)
        spread = v.addcmul(m, m, value=-1)
    root = _shifted(_root(spread), eps)
    if _is_on(momentum):
        b = _times(slots["momentum_buffer"], momentum).addcdiv(g, root)
        slots["momentum_buffer"] = b
        y = _plus(y, b, -lr)
    else:
        y = _plus_ratio(y, g, root, -lr)
    return y, State(state.num_steps + 1, tuple(slots.values()))


def adagrad(y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
    """Return the step of `torch.optim.Adagrad`.

    ``g <- +-g + weight_decay y``, ``v <- v + g^2``, ``y <- y - lr' g / (sqrt(v) + eps)`` with
    ``lr' = lr / (1 + (t - 1) lr_decay)``.
    """
    lr, eps, lr_decay = (number(options, name) for name in ("lr", "eps", "lr_decay"))
    g = _with_decay(y, _signed(g, options), options)
    v = state.slots[0].addcmul(g, g, value=1)
    y = _plus_ratio(y, g, _shifted(_root(v), eps), -(lr / (1 + state.num_steps * lr_decay)))
    return y, State(state.num_steps + 1, (v,))


def nadam(y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
    """Return the step of `torch.optim.NAdam`.

    ``mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)``, with ``P_t = mu_1 ... mu_t`` in the state,
    `m` and `v` as in `adam`, ``r = sqrt(v / (1 - beta2^t)) + eps``, and
    ``y <- y - lr (1 - mu_t) / (1 - P_t) g / r - lr mu_{t+1} / (1 - P_{t+1}) m / r``; decay as in
    `adam`.
    """
    lr, eps, (beta1, beta2) = number(options, "lr"), number(options, "eps"), _betas(options)
    slowing, t = number(options, "momentum_decay"), float(state.num_steps + 1)
    y, g = _decayed(y, _signed(g, options), lr, options)
    mu = beta1 * (1.0 - 0.5 * (0.96 ** (t * slowing)))
    mu_next = beta1 * (1.0 - 0.5 * (0.96 ** ((t + 1) * slowing)))
    m = _mixed(state.slots[0], g, 1 - beta1)
    v = _plus_square(_times(state.slots[1], beta2), g, 1 - beta2)
    product = _times(state.slots[2], mu)
    root = _shifted(_root(_over(v, 1 - beta2**t)), eps)
    p = _number(product.to(y.device) if product.requires_grad else product, "mu_product")
    y = _plus_ratio(y, g, root, -lr * (1.0 - mu) / (1.0 - p))
    y = _plus_ratio(y, m, root, (-lr * mu_next) / (1.0 - p * mu_next))
    return y, State(state.num_steps + 1, (m, v, product))


def adamax(y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
    """Return the step of `torch.optim.Adamax`.

    ``g <- +-g + weight_decay y``, ``m <- beta1 m + (1 - beta1) g``, ``u <- max(beta2 u, |g| +
    eps)``, ``y <- y - lr / (1 - beta1^t) m / u``.
    """
    lr, eps, (beta1, beta2) = number(options, "lr"), number(options, "eps"), _betas(options)
    g = _with_decay(y, _signed(g, options), options)
    m = _mixed(state.slots[0], g, 1 - beta1)
    u = torch.maximum(_times(state.slots[1], beta2), _shifted(g.abs(), eps))
    y = _plus_ratio(y, m, u, -(lr / (1 - beta1 ** float(state.num_steps + 1))))
    return y, State(state.num_steps + 1, (m, u))


def sgd_slots(options: Options) -> Slots:
    """Return what `sgd` carries on."""
    return {"momentum_buffer": None}


def adam_slots(options: Options) -> Slots:
    """Return what `adam` carries on."""
    slots = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
    return {**slots, "max_exp_avg_sq": 0.0} if options["amsgrad"] else slots


def rmsprop_slots(options: Options) -> Slots:
    """Return what `rmsprop` carries on."""
    slots = {"square_avg": 0.0}
    if _is_on(number(options, "momentum")):
        slots["momentum_buffer"] = 0.0
    if options["centered"]:
        slots["grad_avg"] = 0.0
    return slots


def adagrad_slots(options: Options) -> Slots:
    """Return what `adagrad` carries on."""
    return {"sum": options["initial_accumulator_value"]}


def nadam_slots(options: Options) -> Slots:
    """Return what `nadam` carries on."""
    double = torch.get_default_dtype() == torch.float64
    one = torch.ones((), dtype=torch.float64 if double else torch.float32)
    return {"exp_avg": 0.0, "exp_avg_sq": 0.0, "mu_product": one}


def adamax_slots(options: Options) -> Slots:
    """Return what `adamax` carries on."""
    return {"exp_avg": 0.0, "exp_inf": 0.0}


def _signed(g: Tensor, options: Options) -> Tensor:
    return -g if options["maximize"] else g


def _betas(options: Options) -> tuple[Scalar, Scalar]:
    beta1, beta2 = options["betas"]
    return _number(beta1, "betas[0]"), _number(beta2, "betas[1]")


def _with_decay(y: Tensor, g: Tensor, options: Options) -> Tensor:
    decay = number(options, "weight_decay")
    return _plus(g, y, decay) if _is_on(decay) else g


def _decayed(y: Tensor, g: Tensor, lr: Scalar, options: Options) -> tuple[Tensor, Tensor]:
    """Return `y` after decoupled decay, or `g` with coupled decay."""
    decay = number(options, "weight_decay")
    if options["decoupled_weight_decay"] and _is_on(decay):
        return _times(y, 1 - lr * decay), g
    return y, _with_decay(y, g, options)


def _is_on(option: Scalar) -> bool:
    """Return whether a term takes part in the step: one in a graph does even at zero, for its
    derivative.
    """
    return isinstance(option, Tensor) or option != 0


def _root(v: Tensor) -> Tensor:
    """Return ``sqrt(v)`` with derivative zero in place of infinity at zero, where `v` is stationary
    as a function of the gradient.
    """
    away = v != 0
    return torch.where(away, torch.where(away, v, 1.0).sqrt(), 0.0)


# The operations of torch's loop. Those with a tensor for a factor keep the type of `x`, which a
# double factor would raise where `x` has no dimensions.


def _times(x: Tensor, a: Scalar) -> Tensor:
    return x.mul(_at(a, x)).to(x.dtype)


def _over(x: Tensor, a: Scalar) -> Tensor:
    return x.div(_at(a, x)).to(x.dtype)


def _shifted(x: Tensor, a: Scalar) -> Tensor:
    return x.add(_at(a, x)).to(x.dtype)


def _plus(x: Tensor, y: Tensor, a: Scalar) -> Tensor:
    """Return ``x + a y``."""
    return x.add(_times(y, a)) if isinstance(a, Tensor) else x.add(y, alpha=a)


def _mixed(x: Tensor, y: Tensor, a: Scalar) -> Tensor:
    """Return ``x + a (y - x)``."""
    return x.add(_times(y - x, a)) if isinstance(a, Tensor) else x.lerp(y, a)


def _plus_square(x: Tensor, y: Tensor, a: Scalar) -> Tensor:
    """Return ``x + a y^2``."""
    return x.add(_times(y * y, a)) if isinstance(a, Tensor) else x.addcmul(y, y, value=a)


def _plus_ratio(x: Tensor, y: Tensor, z: Tensor, a: Scalar) -> Tensor:
    """Return ``x + a y / z``."""
    return x.add(_times(y / z, a)) if isinstance(a, Tensor) else x.addcdiv(y, z, value=a)


def _at(a: Scalar, x: Tensor) -> Scalar:
    return a.to(x.device) if isinstance(a, Tensor) else a
