"""Metasmoothness: whether what training ends in moves smoothly with the problems above."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo.engine import Engine
from blo.linear.tensors import Tensors, axpy, detach, root_mean_squares, scale
from blo.two_level import tensors_of

Train = Callable[[Tensors], Sequence[Tensor]]


@dataclass(frozen=True)
class Metasmoothness:
    """What three runs say.

    Attributes:
        agreement: 1 where every parameter went on as it had begun, about 0 where the second half
            of the way says nothing of the first, -1 where all turned back; NaN where the third run
            ended where the first did.
        curvature: ``|f(x + 2 h v) - 2 f(x + h v) + f(x)| / h^2`` of the loss, None without one; a
            gradient is of use over lengths that are small against its size over this.
        step: `h`.
    """

    agreement: float
    curvature: float | None
    step: float

    def __str__(self) -> str:
        """Return both in a line."""
        loss = "" if self.curvature is None else f", curvature of the loss {self.curvature:.2g}"
        return f"metasmoothness {self.agreement:.2f} at step {self.step:g}{loss}"


def metasmoothness(
    train: Train | Engine,
    upper: Sequence[Tensor] | None = None,
    *,
    problem: str | None = None,
    rounds: int = 1,
    loss: Callable[[Tensors, Tensors], Tensor] | None = None,
    step: float = 0.1,
    direction: Sequence[Tensor] | None = None,
    seed: int = 0,
) -> Metasmoothness:
    """Return whether a hypergradient over the horizon of a training means anything, from three
    runs of it and no hypergradient.

    Training takes the upper parameters `x` to lower ones, ``y = A(x)``. With ``y_k = A(x + k h v)``
    for k = 0, 1, 2 and ``d = |y_2 - y_0|``, entry by entry,

        agreement = sum_i d_i sign(y_1 - y_0)_i sign(y_2 - y_1)_i / sum_i d_i.

    A training that amplifies small differences (long horizons, large rates, kinks) has a low one:
    its hypergradient is exact and useless. It costs three runs, whatever the number of parameters.

    Args:
        train: ``upper -> lower``, the same for the same `upper` (seeds inside); or an engine, whose
            rounds are run with the problem above held still, from where it stands. The engine is
            put back as it was, by its own state.
        upper: `x`, for a function; an engine has its own.
        problem: of an engine, the problem above; None for the top.
        rounds: of an engine, the horizon.
        loss: ``f(upper, lower)``, to know its curvature along `v`; for functions.
        step: `h`.
        direction: `v`; None draws it with the mean square of each tensor of `x` (1 where that is
            0).
        seed: of the draw.

    Raises:
        ValueError: if no parameter moves, or an argument is out of its range.
        TypeError: if an argument goes with the other kind of training.

    Example:
        >>> import torch
        >>> smooth = lambda x: [x[0].sin()]
        >>> chaotic = lambda x: [(1e4 * x[0]).sin()]
        >>> x = [torch.linspace(-1, 1, 1000).double()]
        >>> [round(metasmoothness(train, x).agreement, 1) for train in (smooth, chaotic)]
        [1.0, 0.3]

    Reference: Engstrom, Ilyas, Chen, Feldmann, Moses and Madry (2025), arXiv:2503.13751,
        definitions 1 and 2; there `v` has unit variance.
    """
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"step must be positive and finite, got {step!r}")
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be an integer of at least 1, got {rounds!r}")
    if isinstance(train, Engine):
        if upper is not None or loss is not None:
            raise TypeError("upper and loss go with a function; an engine has its own")
        above = train.graph.top if problem is None else train.graph[problem]
        x = detach(above.parameters)
        run = _rounds_of(train, above.name, rounds)
    else:
        if upper is None:
            raise TypeError("upper is missing: the parameters that the function is called with")
        x, run = detach(tensors_of(upper, "upper")), train
    v = _drawn(x, seed) if direction is None else tensors_of(direction, "direction")
    ends, losses = [], []
    for k in range(3):
        there = axpy(k * step, v, x)
        end = detach(run(there))
        ends.append(tuple(t.clone() for t in end))
        if loss is not None:
            with torch.no_grad():
                losses.append(float(loss(there, end)))
    curvature = None
    if loss is not None:
        curvature = abs(losses[2] - 2 * losses[1] + losses[0]) / step**2
    return Metasmoothness(agreement(*ends), curvature, step)


def agreement(first: Tensors, second: Tensors, third: Tensors) -> float:
    """Return the share of the way from `first` to `third` on whose entries both halves have one
    sign, less the share on which they have two.

    Raises:
        ValueError: if the three are the same.
    """
    total = weight = 0.0
    moved = False
    for a, b, c in zip(first, second, third, strict=True):
        one, two, way = ((y - x).double() for x, y in ((a, b), (b, c), (a, c)))
        moved = moved or bool(one.any()) or bool(two.any())
        total += float((way.abs() * one.sign() * two.sign()).sum())
        weight += float(way.abs().sum())
    if not moved:
        raise ValueError(
            "the trained parameters do not move with the upper ones; check that training uses "
            "them, or give a larger step"
        )
    return total / weight if weight > 0.0 else math.nan


def _drawn(x: Tensors, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    normal = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in x)
    return scale([size or 1.0 for size in root_mean_squares(x)], normal)


def _rounds_of(engine: Engine, name: str, rounds: int) -> Train:
    """Return the training of an engine with the parameters of one problem held still."""
    graph, state = engine.graph, engine.state_dict()
    below = [p for p in graph.problems if p.name != name]

    def run(there: Tensors) -> Tensors:
        try:
            _place(graph[name].parameters, there)
            for _ in engine.rounds(rounds):
                _place(graph[name].parameters, there)
            return tuple(t.detach().clone() for p in below for t in p.parameters)
        finally:
            engine.load_state_dict(state)

    return run


def _place(parameters: Tensors, values: Tensors) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))
