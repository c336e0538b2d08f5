"""Lower steps taken again: from the record that the engine kept of them to iterates, gradients and
graphs of gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blo.derivatives.lower import LowerObjective
from blo.derivatives.precision import coarsest
from blo.derivatives.pullback import mean
from blo.linear.tensors import Tensors, detach, leaves, norms, numbers_of, subtract
from blo.steps.clipping import clipping_pulled_back, clipping_pushed_forward
from blo.steps.history import History, LowerStep
from blo.steps.optimizers import Adjoint, Gradient, Iterate, Tangent, UpdateMap

# A step taken again may be off by a fraction of its length: `DRIFT`, or `NOISE` rounding errors of
# the type that the loss is computed in if that is more, and besides by `ROUNDING` rounding errors
# of the parameters. The graph's kernels are not those of training, and Adam makes whole steps of
# gradients that are nothing but rounding: on a transformer under bfloat16 that was 12 %.
DRIFT = 1e-2


NOISE = 64.0


ROUNDING = 8.0


def recorded(history: History | None, name: str) -> History:
    """Return the record of the lower steps, for the method called `name`.

    Raises:
        ValueError: if there is none.
    """
    if history is None or not history.steps:
        raise ValueError(
            f"{name} differentiates the steps of the lower optimizer, and none were recorded: use "
            "it as the method of a Problem in an Engine. For plain functions take a method that "
            "needs no optimizer, such as cg(10), t1t2() or darts()"
        )
    return history


@dataclass(frozen=True)
class Segment:
    """Steps that follow each other, from one known iterate to the next.

    Attributes:
        first: position of the first of them in the history.
        start: the iterate before them.
        steps: the steps.
        end: the lower parameters after them, as the optimizer left them.
        last_gradient: gradient that the optimizer received in the last of them, where it was kept.
    """

    first: int
    start: Iterate
    steps: Sequence[LowerStep]
    end: Tensors
    last_gradient: Gradient | None


def segments(history: History, update: UpdateMap) -> Iterator[Segment]:
    """Yield the recorded steps, newest first, cut where an iterate was kept."""
    steps = history.steps
    end, last = history.end, len(steps)
    gradient: Gradient | None = history.last_gradient
    for first in reversed(range(len(steps))):
        step = steps[first]
        lower = step.lower
        states: Sequence[Mapping[str, Any]] | None = step.states
        if first == 0:
            lower, states = history.lower, history.states
        if lower is None or states is None:
            continue
        start = update.start(lower, states, step.options)
        if gradient is not None:
            gradient = received(steps[last - 1], gradient, lower)
        yield Segment(first, start, steps[first:last], end, gradient)
        end, last, gradient = lower, first, None


def replayed(segment: Segment, upper: Tensors, update: UpdateMap) -> list[Iterate]:
    """Return the iterates before each step of `segment`, at one gradient for each but the first.

    Gradients are taken as they were in training, with the attention kernels of then.
    """
    iterates = [segment.start]
    for step in segment.steps[:-1]:
        gradient = lower_gradient(step, upper, iterates[-1].lower)
        iterates.append(update.step(iterates[-1], step.handed(gradient), step.options))
    return iterates


def lower_gradient(step: LowerStep, upper: Tensors, lower: Tensors) -> Gradient:
    """Return ``g_y(upper, lower)`` on the batches of `step`, as the optimizer had it."""
    x, y = detach(upper), leaves(lower)
    pieces = []
    for objective in step.objectives:
        with objective.scope(x, y) as evaluate:
            pieces.append(torch.autograd.grad(evaluate(), y, allow_unused=True))
    gradient, _ = step.reduction.gradient(mean(pieces), y)
    return received(step, gradient, y)


def received(step: LowerStep, gradient: Gradient, lower: Tensors) -> Gradient:
    """Return `gradient` as the optimizer had it in `step`: None for the tensors that it passed
    over, zeros for others that the loss does not reach.
    """
    if step.received is None:
        return gradient
    columns = zip(gradient, lower, step.received, strict=True)
    return tuple(
        None if not known else torch.zeros_like(y) if g is None else g for g, y, known in columns
    )


class Drift:
    """How far steps taken again end from where the optimizer went, compared once for all segments.

    The iterates between are the optimizer's own; what they can differ by is what the recorded
    update does not know of, such as clipping by a hook.
    """

    def __init__(self, lower: LowerObjective, end: Tensors) -> None:
        self._eps = torch.finfo(lower.dtype(end)).eps
        self._own_eps = torch.finfo(coarsest(t.dtype for t in end)).eps
        self._found: list[tuple[str, list[Tensor]]] = []

    def add(self, segment: Segment, end: Tensors) -> None:
        """Note the distance of `end`, where the steps of `segment` lead, from where they led."""
        ways = subtract((*end, *segment.end), (*segment.end, *segment.start.lower))
        first, last = segment.first + 1, segment.first + len(segment.steps)
        name = f"{first}" if first == last else f"{first} to {last}"
        self._found.append((name, norms((*ways, *segment.end))))

    def note(self, off: list[Tensor], way: list[Tensor], size: list[Tensor]) -> None:
        """Note how far the only step leads from where it led, from the norms of parts of the
        distance, of the step and of the parameters.
        """
        self._found.append(("1", [*off, *way, *size]))

    def check(self) -> None:
        """Compare all that were noted.

        Raises:
            RuntimeError: naming the steps that lead elsewhere.
        """
        every = numbers_of(n for _, found in self._found for n in found)
        width = len(every) // (3 * len(self._found))
        lengths = (math.hypot(*every[i : i + width]) for i in range(0, len(every), width))
        for steps, _ in self._found:
            off, length, size = next(lengths), next(lengths), next(lengths)
            allowed = max(DRIFT, NOISE * self._eps) * length + ROUNDING * self._own_eps * size
            if not off <= allowed:
                raise RuntimeError(
                    f"recorded lower step {steps}, taken again, ends {off:.2g} away from where the "
                    f"optimizer went, a way of {length:.2g}: something else changes gradients or "
                    "parameters (clipping or projection by a hook of the optimizer), or the loss "
                    "depends on more than parameters and batch (buffers that it changes). Put it "
                    "in the loss, or use a method that does not take the steps again: darts(), "
                    "cg(10)"
                )


class StepPullback(NamedTuple):
    """What `step_pulled_back` returns.

    Attributes:
        adjoint: cotangent of the iterate before the step; empty where it was not asked for.
        gradient: cotangent of the gradient before clipping; None where that is None.
        upper: cotangent of the upper tensors, as far as the options are functions of them; empty
            where they are not.
        end: the iterate after the step, without graph.
    """

    adjoint: Adjoint
    gradient: Gradient
    upper: Tensors
    end: Iterate


def step_pulled_back(
    update: UpdateMap,
    step: LowerStep,
    iterate: Iterate,
    gradient: Gradient,
    adjoint: Adjoint,
    upper: Tensors,
    *,
    gradient_alone: bool = False,
) -> StepPullback:
    """Return the cotangents of all that a recorded step is a function of.

    Args:
        update: of the optimizer.
        step: the step.
        iterate: before it.
        gradient: before clipping.
        adjoint: cotangent of the iterate after the step.
        upper: the upper tensors.
        gradient_alone: not of the iterate before the step; `adjoint` has no slots then.
    """
    variables = () if step.options_of is None else leaves(upper)
    with torch.enable_grad():
        options = step.options_at(variables)
    handed = step.handed(gradient)
    if gradient_alone:
        found = update.gradient_pulled_back(iterate, handed, options, adjoint.lower, variables)
    else:
        found = update.pulled_back(iterate, handed, options, adjoint, variables)
    weights: Gradient = found.gradient
    if step.clip is not None:
        weights = clipping_pulled_back(gradient, step.clip, weights)
    return StepPullback(found.adjoint, weights, found.options, found.end)


def step_pushed_forward(
    update: UpdateMap,
    step: LowerStep,
    iterate: Iterate,
    gradient: Gradient,
    tangent: Tangent,
    gradient_tangent: Tensors,
    upper: Tensors,
    directions: Tensors,
) -> Tangent:
    """Return the tangents of the iterate after a recorded step.

    Args:
        update: of the optimizer.
        step: the step.
        iterate: before it.
        gradient: before clipping.
        tangent: tangents of `iterate`.
        gradient_tangent: tangents of the gradient before clipping.
        upper: the upper tensors.
        directions: their tangents.
    """
    variables = () if step.options_of is None else leaves(upper)
    with torch.enable_grad():
        options = step.options_at(variables)
    if step.clip is not None:
        gradient_tangent = clipping_pushed_forward(gradient, step.clip, gradient_tangent)
    return update.pushed_forward(
        iterate,
        step.handed(gradient),
        options,
        tangent,
        gradient_tangent,
        variables,
        directions if variables else (),
    )
