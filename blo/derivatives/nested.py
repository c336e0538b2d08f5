"""Lower solutions attached to the graph: ``y*(x)`` as a tensor that autograd can differentiate, to
any order.

A middle problem that reads one below it minimises ``G(x, y) = g(x, y, z*(x, y))``. With ``z*``
attached, `G` is an ordinary loss whose first and second derivatives see the response of `z`, so any
rule for products can be used on it.

The first derivative is the implicit function theorem. Its ingredients are written in differentiable
operations, the linear solve among them, so that autograd differentiates them again:

    z* (x)        backward:  x_bar = -g_xz v,  v = solve(z_bar)
    v = H^{-1} b  backward:  b_bar = w = solve(v_bar),  (x_bar, z_bar) = -d/d(x, z) <w, H v>
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from blo.derivatives.graphs import refuse_cut_graph, twice_differentiable
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.objective import Objective
from blo.derivatives.pullback import Gradient, filled, pulled_back
from blo.derivatives.reduction import LOCAL, Reduction
from blo.linear.tensors import Tensors, add, average, detach, scale, subtract


@dataclass
class Spent:
    """What evaluations inside others cost: gradients, and products on graphs that were kept."""

    num_gradients: int = 0
    num_products: int = 0


# Returns v with g_yy v = rhs at a point, without graph.
SolveAt: TypeAlias = Callable[[Point, Tensors], Tensors]


class Attachment(Protocol):
    """A solution as a differentiable function of what is above it."""

    def attach(self, upper: Tensors) -> Tensors:
        """Return the solution, differentiable with respect to `upper`."""


@dataclass(frozen=True)
class AttachedObjective:
    """The objective of a problem that reads solved problems below it, their response included.

    Args:
        base: the loss as an objective of ``(upper, lower + all attached)``.
        attached: the solutions top to bottom, each with the positions of its upper tensors in
            ``upper + lower + attached before it``.
        reduction: over which processes the loss is the mean that the solutions respond to.
    """

    base: Objective
    attached: tuple[tuple[Attachment, tuple[int, ...]], ...]
    reduction: Reduction = LOCAL

    @property
    def precision(self) -> torch.dtype | None:
        """The coarsest type that the loss is computed in."""
        return self.base.precision

    @contextmanager
    def scope(self, upper: Tensors, lower: Tensors) -> Iterator[Any]:
        """Yield the evaluation of the loss with the solutions below attached to `upper` and
        `lower`.
        """
        known = tuple(upper) + tuple(lower)
        for attachment, positions in self.attached:
            solution = tuple(attachment.attach(tuple(known[i] for i in positions)))
            known += self.reduction.spread(solution)
        with self.base.scope(upper, known[len(upper) :]) as evaluate:
            yield evaluate

    def by_backward(self, upper: Tensors, lower: Tensors) -> Gradient:
        """Raise: graphs with attached solutions are refused where parameters are sharded."""
        raise NotImplementedError("solutions below are not attached to sharded parameters")


@dataclass(frozen=True)
class NestedObjective:
    """A lower objective whose gradient is taken in graphs that are differentiated again.

    Args:
        lower: the objective.
        spent: where the cost is noted.
    """

    lower: LowerObjective
    spent: Spent

    def gradient(self, upper: Tensors, lower: Tensors) -> Tensors:
        """Return ``g_y(upper, lower)`` in the graph of both."""
        raw = self.raw_gradient(self.lower.losses, upper, lower)
        return self.lower.decayed(self.lower.signed(raw), lower)

    def raw_gradient(
        self, losses: tuple[Objective, ...], upper: Tensors, lower: Tensors
    ) -> Tensors:
        """Return the gradient of the mean of `losses` in the graph of both, as the optimizer would
        receive it.
        """
        self.spent.num_gradients += 1
        reduction, n = self.lower.reduction, len(upper)
        here = reduction.spread((*upper, *lower))
        own = average([_gradient(loss, here[:n], here[n:]) for loss in losses])
        return reduction.gathered(own)

    def pulled_back(self, upper: Tensors, lower: Tensors, v: Tensors) -> tuple[Tensors, Tensors]:
        """Return ``(g_xy v, g_yy v)`` in the graph of `upper`, `lower` and `v`: partial
        derivatives, as if y were free of x.
        """
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            x, y = _alias(upper), _alias(lower)
            self.spent.num_products += 1
            both = _gradients(self.gradient(x, y), x + y, v, create_graph=again)
        return _split(both, len(x))


@dataclass(frozen=True)
class Stationary:
    """A solution ``y*(x)`` of ``g_y(x, y) = 0``.

    Args:
        objective: `g`.
        value: ``y*`` at the anchor.
        solve_at: how its linear systems are solved.
    """

    objective: NestedObjective
    value: Tensors
    solve_at: SolveAt

    def attach(self, upper: Tensors, anchor: Tensors | None) -> Tensors:
        """Return the solution, differentiable with respect to `upper`.

        From the `anchor`, the upper values that the present solution stands for, it moves along by
        one Newton step; None keeps it where it is.
        """
        values: Tensors = _Solution.apply(  # type: ignore[no-untyped-call]
            self, len(upper), *upper, *self._moved(upper, anchor)
        )
        return values

    def solve(self, upper: Tensors, lower: Tensors, rhs: Tensors) -> Tensors:
        """Return ``v`` with ``g_yy v = rhs``, differentiable with respect to all three."""
        v: Tensors = _Solve.apply(  # type: ignore[no-untyped-call]
            self, len(upper), len(lower), *upper, *lower, *rhs
        )
        return v

    def solve_value(self, upper: Tensors, lower: Tensors, rhs: Tensors) -> Tensors:
        """Return ``v`` with ``g_yy v = rhs`` without graph."""
        return detach(self.solve_at(Point(detach(upper), detach(lower)), detach(rhs)))

    def _moved(self, upper: Tensors, anchor: Tensors | None) -> Tensors:
        if anchor is None or is_same(upper, anchor):
            return self.value
        with torch.enable_grad():
            here = self.objective.gradient(upper, self.value)
            slope = subtract(here, self.objective.gradient(anchor, self.value))
        return subtract(self.value, self.solve_value(upper, self.value, slope))


def carried(
    end_of: Callable[[Tensors], Tensors], value: Tensors, upper: Tensors, anchor: Tensors | None
) -> Tensors:
    """Return ``value + end_of(upper) - end_of(anchor)``: the solution `value`, reached by steps
    that are taken again, differentiable with respect to `upper` and equal to `value` at the anchor.
    """
    end = end_of(upper)
    moved = anchor is not None and not is_same(upper, anchor)
    present = detach(end_of(anchor) if moved and anchor is not None else end)
    return add(value, subtract(end, present))


def is_same(upper: Tensors, anchor: Tensors) -> bool:
    """Return whether two vectors have the same entries."""
    pairs = zip(upper, anchor, strict=True)
    return all(a.data_ptr() == b.data_ptr() or torch.equal(a, b) for a, b in pairs)


class _Solution(torch.autograd.Function):
    """``y*(x)``: the given value forward, ``-g_xy H^{-1} c`` backward."""

    is_self_contained = True

    @staticmethod
    def forward(ctx: Any, solved: Stationary, num_upper: int, *tensors: Tensor) -> Tensors:
        upper, lower = tensors[:num_upper], tensors[num_upper:]
        values = tuple(t.clone() for t in lower)
        ctx.solved, ctx.num_upper = solved, num_upper
        ctx.save_for_backward(*upper, *values)
        return values

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> Any:
        upper, lower = _split(ctx.saved_tensors, ctx.num_upper)
        v = ctx.solved.solve(upper, lower, cotangent)
        mixed, _ = ctx.solved.objective.pulled_back(upper, lower, v)
        return (None, None, *scale(-1.0, mixed), *(None for _ in lower))


class _Solve(torch.autograd.Function):
    """``H(x, y)^{-1} b`` for symmetric ``H = g_yy``: a solve forward, a solve and a derivative of
    ``<w, H v>`` backward.
    """

    is_self_contained = True

    @staticmethod
    def forward(
        ctx: Any, solved: Stationary, num_upper: int, num_lower: int, *tensors: Tensor
    ) -> Tensors:
        upper, rest = _split(tensors, num_upper)
        lower, rhs = _split(rest, num_lower)
        with torch.enable_grad():
            v = solved.solve_value(upper, lower, rhs)
        ctx.solved, ctx.num_upper, ctx.num_lower = solved, num_upper, num_lower
        ctx.save_for_backward(*upper, *lower, *v)
        return v

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> Any:
        upper, rest = _split(ctx.saved_tensors, ctx.num_upper)
        lower, v = _split(rest, ctx.num_lower)
        w = ctx.solved.solve(upper, lower, cotangent)
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            x, y = _alias(upper), _alias(lower)
            _, hv = ctx.solved.objective.pulled_back(x, y, v)
            ctx.solved.objective.spent.num_products += 1
            bars = scale(-1.0, _gradients(hv, x + y, w, create_graph=again))
        return (None, None, None, *bars, *w)


def _gradient(objective: Objective, upper: Tensors, lower: Tensors) -> Tensors:
    """Return ``g_y(upper, lower)`` on one batch, in the graph of both."""
    x, y = _alias(upper), _alias(lower)
    with twice_differentiable(objective, x, y, order=3) as evaluate:
        gradient = torch.autograd.grad(
            evaluate(), y, create_graph=True, allow_unused=True, materialize_grads=True
        )
        refuse_cut_graph(gradient, x + y, order=3)
    return gradient


def _gradients(
    outputs: Tensors, inputs: Tensors, weights: Tensors, *, create_graph: bool
) -> Tensors:
    """Return ``d<outputs, weights>/d(inputs)``, zeros where nothing depends on an input."""
    return filled(pulled_back(outputs, inputs, weights, create_graph=create_graph), inputs)


def _split(tensors: Tensors, n: int) -> tuple[Tensors, Tensors]:
    return tuple(tensors[:n]), tuple(tensors[n:])


def _alias(tensors: Tensors) -> Tensors:
    """Return the same values as new nodes, so that a derivative with respect to them is partial."""
    return tuple(t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors)
