"""Lower solutions attached to the graph: ``y*(x)`` as a tensor that autograd can differentiate, to
any order.

A middle problem that reads one below it minimises ``G(x, y) = g(x, y, z*(x, y))``. With ``z*``
attached, `G` is an ordinary loss whose first and second derivatives see the response of `z`, so any
rule for products can be used on it.

The first derivative is the implicit function theorem. Its ingredients are written in differentiable
operations, the linear solve among them, so that autograd differentiates them again:

    z* (x)        backward:  x_bar = -g_xz v,  v = solve(z_bar)
    v = H^{-1} b  backward:  b_bar = w = solve(v_bar),  x_bar = -d/dx <w, H v>,  z_bar = -d/dz <w, H
    v>
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from blo.derivatives.graphs import twice_differentiable
from blo.derivatives.lower import Point
from blo.derivatives.objective import Objective
from blo.derivatives.third_order import third_order_norms
from blo.linear.tensors import Tensors, add, average, detach, scale, subtract
from blo.methods.context import Context
from blo.methods.forward_mode import ForwardMode
from blo.methods.implicit import Implicit, OneStep
from blo.methods.sama import Sama
from blo.methods.unrolling import Unrolled
from blo.steps.history import LowerStep
from blo.steps.optimizers import UpdateMap
from blo.steps.replay import received, recorded

# Methods that an attached solution can respond by.
Attachable: TypeAlias = Implicit | OneStep | Unrolled | ForwardMode | Sama


@dataclass(frozen=True)
class Solved:
    """A lower problem that has been solved, and the method that says how its solution responds.

    Args:
        context: the problem.
        method: how its solution responds.
        anchor: the upper values that the present solution stands for. From other values the
            solution moves along, by its response: a difference of gradients there must see it.
            None keeps it where it is.
    """

    context: Context
    method: Attachable
    anchor: Tensors | None = None

    def attach(self, upper: Tensors) -> Tensors:
        """Return the lower solution, differentiable with respect to `upper`, and equal to the
        values in the context where `upper` is the anchor.

        Implicit methods differentiate the stationarity at the solution, one-step methods the last
        step, the others all recorded steps, whose graphs are held together. Away from the anchor
        the value is right to first order in the distance.
        """
        anchor = self._left(upper)
        if isinstance(self.method, Implicit):
            values: Tensors = _Solution.apply(  # type: ignore[no-untyped-call]
                self, len(upper), *upper, *self._moved(upper, anchor)
            )
            return values
        map_ = self._stepped if isinstance(self.method, OneStep) else self._retaken
        end = map_(upper)
        present = detach(end if anchor is None else map_(anchor))
        return add(self.context.after.lower, subtract(end, present))

    def _left(self, upper: Tensors) -> Tensors | None:
        """Return the anchor if `upper` has other values, else None."""
        if self.anchor is None:
            return None
        pairs = zip(upper, self.anchor, strict=True)
        same = all(a.data_ptr() == b.data_ptr() or torch.equal(a, b) for a, b in pairs)
        return None if same else self.anchor

    def _moved(self, upper: Tensors, anchor: Tensors | None) -> Tensors:
        """Return the solution at `upper`, one Newton step from the one at `anchor`."""
        y = self.context.after.lower
        if anchor is None:
            return y
        with torch.enable_grad():
            slope = subtract(self.gradient(upper, y), self.gradient(anchor, y))
            return subtract(y, self.solve_value(anchor, y, slope))

    def _stepped(self, upper: Tensors) -> Tensors:
        """Return the end of the last step ``y - s g_y(x, y)``, taken again from `upper`."""
        assert isinstance(self.method, OneStep)
        before = tuple(t.detach().requires_grad_() for t in self.context.before.lower)
        step = scale(self.method.step(self.context), self.gradient(upper, before))
        return subtract(before, step)

    def _retaken(self, upper: Tensors) -> Tensors:
        """Return the end of the recorded steps, taken again from `upper`."""
        history = recorded(self.context, repr(self.method))
        update = UpdateMap(history.optimizer)
        iterate = update.start(history.lower, history.states, history.steps[0].options)
        for step in history.steps:
            gradient = received(step, self._raw_gradient(step, upper, iterate.lower), iterate.lower)
            iterate = update.step(iterate, gradient, step.options)
        return iterate.lower

    def _raw_gradient(self, step: LowerStep, upper: Tensors, lower: Tensors) -> Tensors:
        """Return the gradient of the loss on the batches of `step`, in the graph of both."""
        return average([_gradient(objective, upper, lower) for objective in step.objectives])

    def gradient(self, upper: Tensors, lower: Tensors) -> Tensors:
        """Return ``g_y(upper, lower)`` in the graph of both, weight decay included."""
        pieces = [_gradient(objective, upper, lower) for objective in self.context.objectives]
        gradient = scale(self.context.sign, average(pieces))
        decay = self.context.weight_decay
        return gradient if decay is None else add(gradient, scale(decay, lower))

    def pulled_back(self, upper: Tensors, lower: Tensors, v: Tensors) -> tuple[Tensors, Tensors]:
        """Return ``(g_xy v, g_yy v)`` in the graph of `upper`, `lower` and `v`: partial
        derivatives, as if y were free of x.
        """
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            x, y = _alias(upper), _alias(lower)
            return _split(_gradients(self.gradient(x, y), x + y, v, create_graph=again), len(x))

    def solve(self, upper: Tensors, lower: Tensors, rhs: Tensors) -> Tensors:
        """Return ``v`` with ``g_yy v = rhs``, differentiable with respect to all three."""
        v: Tensors = _Solve.apply(  # type: ignore[no-untyped-call]
            self, len(upper), len(lower), *upper, *lower, *rhs
        )
        return v

    def solve_value(self, upper: Tensors, lower: Tensors, rhs: Tensors) -> Tensors:
        """Return ``v`` with ``g_yy v = rhs`` by the method's solver, without graph."""
        assert isinstance(self.method, Implicit)
        context = replace(self.context, after=Point(detach(upper), detach(lower)))
        products = self.method.products.at(context, context.after)
        return self.method.solver(products.hvp, detach(rhs)).value


class _Solution(torch.autograd.Function):
    """``y*(x)``: the given value forward, ``-g_xy H^{-1} c`` backward."""

    @staticmethod
    def forward(ctx: Any, solved: Solved, num_upper: int, *tensors: Tensor) -> Tensors:
        upper, lower = tensors[:num_upper], tensors[num_upper:]
        values = tuple(t.clone() for t in lower)
        ctx.solved, ctx.num_upper = solved, num_upper
        ctx.save_for_backward(*upper, *values)
        return values

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> Any:
        upper, lower = _split(ctx.saved_tensors, ctx.num_upper)
        v = ctx.solved.solve(upper, lower, cotangent)
        mixed, _ = ctx.solved.pulled_back(upper, lower, v)
        return (None, None, *scale(-1.0, mixed), *(None for _ in lower))


class _Solve(torch.autograd.Function):
    """``H(x, y)^{-1} b`` for symmetric ``H = g_yy``: a solve forward, a solve and a derivative of
    ``<w, H v>`` backward.
    """

    @staticmethod
    def forward(
        ctx: Any, solved: Solved, num_upper: int, num_lower: int, *tensors: Tensor
    ) -> Tensors:
        upper, rest = _split(tensors, num_upper)
        lower, rhs = _split(rest, num_lower)
        with torch.enable_grad():
            v = detach(solved.solve_value(upper, lower, rhs))
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
            _, hv = ctx.solved.pulled_back(x, y, v)
            bars = scale(-1.0, _gradients(hv, x + y, w, create_graph=again))
        return (None, None, None, *bars, *w)


def _gradient(objective: Objective, upper: Tensors, lower: Tensors) -> Tensors:
    """Return ``g_y(upper, lower)`` on one batch, in the graph of both."""
    x, y = _alias(upper), _alias(lower)
    with third_order_norms(), twice_differentiable(objective, x, y) as evaluate:
        return torch.autograd.grad(
            evaluate(), y, create_graph=True, allow_unused=True, materialize_grads=True
        )


def _gradients(
    outputs: Tensors, inputs: Tensors, weights: Tensors, *, create_graph: bool
) -> Tensors:
    """Return ``d<outputs, weights>/d(inputs)``, zeros where nothing depends on an input."""
    attached = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    if not attached:
        return tuple(torch.zeros_like(t) for t in inputs)
    kept, factors = zip(*attached, strict=True)
    return torch.autograd.grad(
        kept,
        inputs,
        factors,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )


def _split(tensors: Tensors, n: int) -> tuple[Tensors, Tensors]:
    return tuple(tensors[:n]), tuple(tensors[n:])


def _alias(tensors: Tensors) -> Tensors:
    """Return the same values as new nodes, so that a derivative with respect to them is partial."""
    return tuple(t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors)


@dataclass(frozen=True)
class AttachedObjective:
    """The objective of a problem that reads solved problems below it, their response included.

    Args:
        base: the loss as an objective of ``(upper, lower + all attached)``.
        attached: the solved problems top to bottom, each with the positions of its upper tensors in
            ``upper + lower + attached before it``.
    """

    base: Objective
    attached: tuple[tuple[Solved, tuple[int, ...]], ...]

    @property
    def precision(self) -> torch.dtype | None:
        """The autocast type of the loss."""
        return self.base.precision

    @contextmanager
    def scope(self, upper: Tensors, lower: Tensors) -> Iterator[Any]:
        """Yield the evaluation of the loss with the solutions below attached to `upper` and
        `lower`.
        """
        known = tuple(upper) + tuple(lower)
        for solved, positions in self.attached:
            known += tuple(solved.attach(tuple(known[i] for i in positions)))
        with self.base.scope(upper, known[len(upper) :]) as evaluate:
            yield evaluate
