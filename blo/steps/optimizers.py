"""The updates of torch's SGD, Adam and AdamW as differentiable functions.

One step takes the parameters, the optimizer's state and the gradient to new parameters and a new
state,

    (y_t, s_t) = U(y_{t-1}, s_{t-1}, g_t),

out of place, element by element, by the operations of torch's own loop in their order: a step taken
again gives the same bits where torch runs that loop, and the same up to rounding where it runs its
fused kernels. Since `U` acts on each element by itself, its Jacobian is a few diagonals.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from blo.linear.tensors import Tensors, detach, leaves

Options: TypeAlias = Mapping[str, Any]


Gradient: TypeAlias = Sequence[Tensor | None]  # None for a tensor that the optimizer passed over


class State(NamedTuple):
    """The optimizer's state of one tensor: its steps so far, and the tensors that it carries on.

    The tensors are the momentum of SGD (none before its first step), and the first and the second
    moment of Adam with, under amsgrad, the largest second moment.
    """

    num_steps: int
    slots: Tensors


class Iterate(NamedTuple):
    """What a step starts from: the lower parameters and the optimizer's state of each."""

    lower: Tensors
    states: tuple[State, ...]


class Adjoint(NamedTuple):
    """A cotangent of an `Iterate`; None in place of slots that are all zero."""

    lower: Tensors
    slots: tuple[Tensors, ...] | None = None


class Tangent(NamedTuple):
    """Several tangents of an `Iterate`, stacked along a new first dimension."""

    lower: Tensors
    slots: tuple[Tensors, ...]


class Pullback(NamedTuple):
    """What `UpdateMap.pulled_back` returns.

    Attributes:
        adjoint: cotangent of the iterate before the step, at fixed gradient.
        gradient: cotangent of each tensor's gradient; None where that is None.
        end: the iterate after the step, without graph.
    """

    adjoint: Adjoint
    gradient: tuple[Tensor | None, ...]
    end: Iterate


Rule: TypeAlias = Callable[[Tensor, State, Tensor, Options], tuple[Tensor, State]]


def sgd(y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
    """Return the step of `torch.optim.SGD`.

    ``g <- +-g + weight_decay y``, ``b <- momentum b + (1 - dampening) g`` (``b = g`` at first),
    ``y <- y - lr b``, or ``y <- y - lr (g + momentum b)`` with nesterov.
    """
    lr, decay = float(options["lr"]), float(options["weight_decay"])
    momentum = float(options["momentum"])
    g = -g if options["maximize"] else g
    g = g.add(y, alpha=decay) if decay else g
    slots = state.slots
    if momentum:
        b = slots[0].mul(momentum).add(g, alpha=1 - float(options["dampening"])) if slots else g
        g = g.add(b, alpha=momentum) if options["nesterov"] else b
        slots = (b,)
    return y.add(g, alpha=-lr), State(state.num_steps + 1, slots)


def adam(y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
    """Return the step of `torch.optim.Adam`, or of AdamW where the decay is decoupled.

    ``m <- beta1 m + (1 - beta1) g``, ``v <- beta2 v + (1 - beta2) g^2``,
    ``y <- y - lr m' / (sqrt(v') + eps)`` with ``m' = m / (1 - beta1^t)``, ``v' = v / (1 -
    beta2^t)``; amsgrad takes the largest `v` so far. Before that, decoupled decay multiplies `y` by
    ``1 - lr weight_decay``, and coupled decay adds ``weight_decay y`` to `g`.
    """
    lr, decay = float(options["lr"]), float(options["weight_decay"])
    beta1, beta2 = (float(beta) for beta in options["betas"])
    t = float(state.num_steps + 1)
    g = -g if options["maximize"] else g
    if decay and options["decoupled_weight_decay"]:
        y = y.mul(1 - lr * decay)
    elif decay:
        g = g.add(y, alpha=decay)
    m = state.slots[0].lerp(g, 1 - beta1)
    v = state.slots[1].mul(beta2).addcmul(g, g, value=1 - beta2)
    slots: Tensors = (m, v)
    if options["amsgrad"]:
        v = torch.maximum(state.slots[2], v)
        slots = (*slots, v)
    root = _root(v) / (1 - beta2**t) ** 0.5
    y = y.addcdiv(m, root.add(float(options["eps"])), value=-lr / (1 - beta1**t))
    return y, State(state.num_steps + 1, slots)


def _root(v: Tensor) -> Tensor:
    """Return ``sqrt(v)`` with derivative zero in place of infinity at zero, where `v` is stationary
    as a function of the gradient.
    """
    positive = v > 0
    return torch.where(positive, torch.where(positive, v, 1.0).sqrt(), 0.0)


@dataclass(frozen=True)
class UpdateMap:
    """The update `U` of one of torch's optimizers, with its derivatives.

    Args:
        optimizer: `torch.optim.SGD`, `torch.optim.Adam` or `torch.optim.AdamW`, or a subclass that
            takes the same step.

    Raises:
        TypeError: for any other optimizer, naming those.

    Example:
        >>> optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1, momentum=0.9)
        >>> update = UpdateMap(torch.optim.SGD)
        >>> start = update.start((torch.ones(1),), ({},), (optimizer.defaults,))
        >>> update.step(start, (torch.ones(1),), (optimizer.defaults,)).lower
        (tensor([0.9000]),)
    """

    optimizer: type

    def __post_init__(self) -> None:
        """Check that the optimizer is known."""
        for known in SUPPORTED:
            if issubclass(self.optimizer, known):
                if _own_step(self.optimizer) is _own_step(known):
                    return
                break
        names = ", ".join(f"torch.optim.{known.__name__}" for known in SUPPORTED)
        raise TypeError(
            f"the steps of {self.optimizer.__module__}.{self.optimizer.__qualname__} cannot be "
            f"taken again: only those of {names} can. Use one of them for the lower problem, or a "
            "method that does not look at the optimizer, such as cg(10) or darts(scale=...)"
        )

    @property
    def is_adaptive(self) -> bool:
        """Whether the step is divided by the root of a second moment."""
        return issubclass(self.optimizer, torch.optim.Adam | torch.optim.AdamW)

    def start(
        self, lower: Tensors, states: Sequence[Mapping[str, Any]], options: Sequence[Options]
    ) -> Iterate:
        """Return the iterate of some parameters and the optimizer's own states (empty before its
        first step).

        Args:
            lower: the parameters.
            states: the optimizer's state of each.
            options: the options of each for the step to come.
        """
        counts = _num_steps(states)
        columns = zip(lower, states, options, counts, strict=True)
        return Iterate(lower, tuple(State(n, self._slots(y, s, o)) for y, s, o, n in columns))

    def step(self, iterate: Iterate, gradient: Gradient, options: Sequence[Options]) -> Iterate:
        """Return the next iterate, in the graph of the arguments.

        Args:
            iterate: the one before.
            gradient: of the lower loss, for each tensor; one whose gradient is None stays as it is.
            options: of each tensor's parameter group.
        """
        columns = zip(*iterate, gradient, options, strict=True)
        taken = [(y, s) if g is None else self._rule(y, s, g, o) for y, s, g, o in columns]
        return Iterate(tuple(y for y, _ in taken), tuple(s for _, s in taken))

    def without_history(self, iterate: Iterate) -> tuple[Tensor | None, ...]:
        """Return where an adaptive optimizer has seen no gradient but zero, a mask for each tensor;
        None for the tensors of others.
        """
        if not self.is_adaptive:
            return (None,) * len(iterate.lower)
        return tuple(state.slots[1] == 0 for state in iterate.states)

    def pulled_back(
        self, iterate: Iterate, gradient: Gradient, options: Sequence[Options], adjoint: Adjoint
    ) -> Pullback:
        """Return the cotangent of `iterate` at fixed gradient and the cotangent of the gradient,
        with the iterate after the step.

        Args:
            iterate: before the step.
            gradient: what the step is taken with.
            options: of each tensor's parameter group.
            adjoint: cotangent of the iterate after the step.
        """
        start, g = _as_leaves(iterate, gradient)
        with torch.enable_grad():
            end = self.step(start, g, options)
        outputs, weights = end.lower, adjoint.lower
        if adjoint.slots is not None:
            outputs += tuple(t for state in end.states for t in state.slots)
            weights += tuple(t for slots in adjoint.slots for t in slots)
        inputs = start.lower + tuple(t for state in start.states for t in state.slots)
        inputs += tuple(t for t in g if t is not None)
        grads = iter(
            torch.autograd.grad(outputs, inputs, weights, allow_unused=True, materialize_grads=True)
        )
        lower = tuple(next(grads) for _ in start.lower)
        slots = tuple(tuple(next(grads) for _ in state.slots) for state in start.states)
        of_gradient = tuple(None if t is None else next(grads) for t in g)
        return Pullback(Adjoint(lower, slots), of_gradient, _detached(end))

    def pushed_forward(
        self,
        iterate: Iterate,
        gradient: Gradient,
        options: Sequence[Options],
        tangent: Tangent,
        gradient_tangent: Tensors,
    ) -> Tangent:
        """Return the tangents of the iterate after the step.

        Args:
            iterate: before the step.
            gradient: what the step is taken with.
            options: of each tensor's parameter group.
            tangent: tangents of `iterate`.
            gradient_tangent: tangents of the gradient, stacked in the same way.
        """
        start, g = _as_leaves(iterate, gradient)
        with torch.enable_grad():
            end = self.step(start, g, options)
        lower, slots = [], []
        for i, gi in enumerate(g):
            if gi is None:
                lower.append(tangent.lower[i])
                slots.append(tangent.slots[i])
                continue
            inputs = (start.lower[i], *start.states[i].slots, gi)
            tangents = (tangent.lower[i], *tangent.slots[i], gradient_tangent[i])
            pushed = [
                _along(output, inputs, tangents) for output in (end.lower[i], *end.states[i].slots)
            ]
            lower.append(pushed[0])
            slots.append(tuple(pushed[1:]))
        return Tangent(tuple(lower), tuple(slots))

    @property
    def _rule(self) -> Rule:
        return self._adam if self.is_adaptive else sgd

    def _adam(self, y: Tensor, state: State, g: Tensor, options: Options) -> tuple[Tensor, State]:
        # Torch before 2.7 does not write into AdamW's groups that its decay is decoupled.
        decoupled = issubclass(self.optimizer, torch.optim.AdamW)
        return adam(y, state, g, {"decoupled_weight_decay": decoupled, **options})

    def _slots(self, y: Tensor, state: Mapping[str, Any], options: Options) -> Tensors:
        if not self.is_adaptive:
            momentum = state.get("momentum_buffer")
            return () if momentum is None else (momentum,)
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(options["amsgrad"])
        return tuple(state[n] if n in state else torch.zeros_like(y) for n in names)


SUPPORTED = (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam)


def _own_step(optimizer: type) -> Any:
    """Return the method `step` under the hooks that torch wraps it in."""
    return inspect.unwrap(optimizer.step)  # type: ignore[attr-defined]


def _num_steps(states: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the steps that each tensor has taken, with one transfer for those counted on a
    device.
    """
    counts = [state.get("step", 0) for state in states]
    tensors = [c for c in counts if isinstance(c, Tensor)]
    values = iter(torch.stack(tensors).tolist() if tensors else [])
    return [int(next(values)) if isinstance(c, Tensor) else int(c) for c in counts]


def _as_leaves(iterate: Iterate, gradient: Gradient) -> tuple[Iterate, Gradient]:
    states = tuple(State(s.num_steps, leaves(s.slots)) for s in iterate.states)
    g = tuple(None if t is None else t.detach().requires_grad_() for t in gradient)
    return Iterate(leaves(iterate.lower), states), g


def _detached(iterate: Iterate) -> Iterate:
    states = tuple(State(s.num_steps, detach(s.slots)) for s in iterate.states)
    return Iterate(detach(iterate.lower), states)


def _along(output: Tensor, inputs: Tensors, tangents: Tensors) -> Tensor:
    """Return ``sum_i d(output)/d(input_i) tangent_i`` for an elementwise function: its diagonals
    are the gradient of its sum.
    """
    diagonals = torch.autograd.grad(
        output.sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    terms = [d * t for d, t in zip(diagonals, tangents, strict=True)]
    return torch.stack(terms).sum(0)
