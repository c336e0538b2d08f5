"""Lower steps joined in one graph, through which the response is one backward pass.

``(y_t, s_t) = U(y_{t-1}, s_{t-1}, g_y(x, y_{t-1}))`` for t = 1 ... T: each gradient is taken in its
graph at the ``y_{t-1}`` of this graph, and the optimizer's step is a node that joins them. The
values of ``y_t`` are those that the optimizer left; how far its plain update leads from there is
noted, and read once, when the response is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blo.derivatives.graphs import differentiable_again
from blo.derivatives.kept import KeptGraph, versions
from blo.derivatives.precision import coarsest
from blo.derivatives.pullback import Gradient, mean, pulled_back
from blo.linear.tensors import Tensors, clones, detach, leaves, norms, numbers_of, subtract
from blo.steps.optimizers import Iterate, UpdateMap
from blo.steps.replay import ROUNDING
from blo.steps.rules import Options, State
from blo.steps.together import ClosedForm, Taken, together


class JoinedSteps:
    """Steps of one problem in one graph, which the first to ask for it gets.

    Args:
        update: of the optimizer.
        name: of the problem.
        start: the iterate before the first step, not to be edited.
        upper: leaves of the problems above, by name, which no step moves.

    Attributes:
        upper: the same.
    """

    def __init__(
        self, update: UpdateMap, name: str, start: Iterate, upper: Mapping[str, Tensors]
    ) -> None:
        self.upper = upper
        self._update, self._name = update, name
        self._iterate = Iterate(leaves(start.lower), start.states)
        self._start = self._iterate.lower
        self._distances: list[Tensor] = []
        self._waiting: tuple[Gradient, Sequence[Options]] | None = None
        self._versions = versions((*upper.values(), self._start))

    def graph(self, lower: Tensors) -> KeptGraph:
        """Return where the gradient of the next step is kept.

        Args:
            lower: the parameters, as the step before has left them.
        """
        if self._waiting is not None:
            self._join(clones(lower))
        return KeptGraph.begin({self._name: self._iterate.lower, **self.upper})

    def take(self, graph: KeptGraph, options: Sequence[Options]) -> bool:
        """Take in that the optimizer steps along the gradient in `graph`, and return whether the
        step can be joined to the others: Python that runs in the backward pass needs a scope of its
        own, and no closed form may be written for these options.
        """
        if graph.pieces.runs_python or self._update.closed_form(options) is None:
            return False
        self._waiting = mean(graph.pieces.graphs), options
        graph.pieces.graphs = []
        return True

    def pulled_back(
        self, upper: Sequence[str], end: Tensors, cotangent: Tensors, *, start: bool
    ) -> tuple[Gradient, Gradient] | None:
        """Return the cotangents of the problems `upper` and of the start; None where a step leads
        elsewhere than the optimizer went by more than rounding, a tensor was edited meanwhile, or
        the graph was handed out before.

        Args:
            upper: names.
            end: where the optimizer went.
            cotangent: of the end.
            start: whether that of the start is wanted; it is empty otherwise.
        """
        if self._waiting is None:
            return None
        self._join(detach(end))
        last, self._iterate = self._iterate.lower, Iterate((), ())
        edited = versions((*self.upper.values(), self._start)) != self._versions
        if edited or not self._is_near(detach(end)):
            return None
        inputs = tuple(t for name in upper for t in self.upper[name])
        with differentiable_again():
            found = pulled_back(last, inputs + (self._start if start else ()), cotangent)
        return found[: len(inputs)], found[len(inputs) :]

    def _join(self, end: Tensors) -> None:
        """Add the step that waits, which led to `end`, to the graph."""
        assert self._waiting is not None
        (gradient, options), self._waiting = self._waiting, None
        closed = self._update.closed_form(options)
        assert closed is not None
        y, states, plain = list(self._iterate.lower), list(self._iterate.states), list(end)
        for at in together(y, states, gradient, options):
            columns = tuple(zip(*(states[i].slots for i in at), strict=True))
            step = _Step(closed, options[at[0]], states[at[0]].num_steps, bool(columns))
            step.ends = tuple(end[i] for i in at)
            slots = [t for column in columns for t in column]
            tensors = (*(y[i] for i in at), *(gradient[i] for i in at), *slots)
            found: Tensors = _Node.apply(step, *tensors)  # type: ignore[no-untyped-call]
            for k, i in enumerate(at):
                y[i], plain[i] = found[k], step.plain[k]
                states[i] = State(step.num_steps + 1, tuple(found[len(at) + k :: len(at)]))
            step.plain = ()
        for i, g in enumerate(gradient):
            if g is None:  # the optimizer passed over it
                plain[i] = y[i]
                y[i] = _At.apply(end[i], y[i])  # type: ignore[no-untyped-call]
        self._iterate = Iterate(tuple(y), tuple(states))
        with torch.no_grad():
            self._distances += norms(subtract(tuple(plain), end))

    def _is_near(self, end: Tensors) -> bool:
        """Return whether each step leads where the optimizer went, up to rounding. Whether more is
        right is for the steps taken one by one to say.
        """
        width, own = len(end), torch.finfo(coarsest(t.dtype for t in end)).eps
        every = numbers_of((*norms(end), *self._distances))
        size, *off = (math.hypot(*every[i : i + width]) for i in range(0, len(every), width))
        return all(distance <= ROUNDING * own * size for distance in off)


@dataclass
class _Step:
    """A step of tensors that share their options.

    Attributes:
        had_slots: whether the optimizer had a state before it.
        ends: where it led, until the node is made.
        plain: where the plain update leads, as soon as it is.
        num_tensors: parameters that it is taken of.
        num_kept: tensors that the closed form keeps.
    """

    closed: ClosedForm
    options: Options
    num_steps: int
    had_slots: bool
    ends: Tensors = ()
    plain: Tensors = ()
    num_tensors: int = 0
    num_kept: int = 0


class _Node(torch.autograd.Function):
    """A step: from parameters, gradient and slots to parameters and slots."""

    @staticmethod
    def forward(ctx: Any, step: _Step, *tensors: Tensor) -> Tensors:
        ends, step.ends = step.ends, ()
        y, g, *slots = _columns(tensors, len(ends))
        taken = step.closed.step(y, tuple(slots), g, step.options, step.num_steps)
        step.plain = taken.lower
        step.num_tensors, step.num_kept = len(ends), len(taken.kept)
        after = tuple(t for column in taken.slots for t in column)
        ctx.step = step
        ctx.save_for_backward(*taken.kept, *after)
        return (*ends, *after)

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> Any:
        step, saved = ctx.step, ctx.saved_tensors
        of_y, *of_slots = _columns(cotangent, step.num_tensors)
        slots = _columns(saved[step.num_kept :], step.num_tensors)
        taken = Taken((), tuple(slots), saved[: step.num_kept])
        found = step.closed.pulled_back(
            taken, step.had_slots, step.options, step.num_steps, of_y, tuple(of_slots) or None
        )
        before = (t for column in found.slots for t in column)
        return (None, *found.lower, *found.gradient, *before)


class _At(torch.autograd.Function):
    """A tensor that stays what it is as a function, with the value that it was given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, tensor: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> Any:
        return None, *cotangent


def _columns(tensors: Sequence[Tensor], width: int) -> list[Tensors]:
    """Return some tensors cut into columns of equal width."""
    return [tuple(tensors[i : i + width]) for i in range(0, len(tensors), width)]
