"""The steps of an engine's lower problems taken again, with the other problems elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

from blo.check.differences import step_length, unit
from blo.check.engine_losses import EngineLosses, flat
from blo.check.landscape import Landscape, Values
from blo.check.subject import Claim
from blo.check.twins import twin_problem
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.pullback import Gradient, filled
from blo.graph import ProblemGraph
from blo.linear.tensors import Tensors, detach, scale, subtract
from blo.methods.context import Context
from blo.methods.implicit import OneStep
from blo.problem import Problem
from blo.record import Draw

SHIFT = 0.05  # how far the others had moved since a lower step, relative to their parameters


class Taken(NamedTuple):
    """A lower step that was taken: its number, where it started, and what its loss was evaluated
    on.
    """

    number: int
    lower: Tensors
    states: tuple[dict[str, Any], ...]
    draw: Draw


class LowerSteps:
    """What the methods of lower problems claim, by evaluations of the losses and copies of the
    optimizers.

    Args:
        graph: the problems.
        losses: their losses.
        claims: what the methods claim.
        felt: for each problem, those below whose solutions its loss depends on.
        shifts: for each lower problem, by how much each of the others is taken to have moved
            between its last step and the checked problem's.
        without: what is left out, a name in `EngineSubject.suspects`.

    Attributes:
        stepped: the problems that take steps; the others are solved.
    """

    def __init__(
        self,
        graph: ProblemGraph,
        losses: EngineLosses,
        claims: Mapping[str, Claim],
        felt: Mapping[str, tuple[str, ...]],
        shifts: Mapping[str, Mapping[str, Tensors]],
        without: str | None,
    ) -> None:
        self._graph, self._losses, self._claims = graph, losses, claims
        self._felt, self._shifts, self._without = felt, shifts, without
        self.stepped: Set[str] = frozenset()

    def again(
        self,
        q: Problem,
        base: Values,
        end: Tensors,
        taken: Sequence[Taken],
        landscape: Landscape,
    ) -> Callable[[Values], Tensors]:
        """Return where what the method of `q` claims leads, as a function of the other problems."""
        name, last = q.name, taken[-1]
        if self._claims[name] is Claim.SOLUTION:
            return lambda values: values[name]
        if self._claims[name] is Claim.STEPS:
            return partial(self._retaken, q, taken, landscape)
        method, draw = q.method, self._losses.cast_draw(last.draw)
        before = self._losses.cast({name: last.lower})
        assert isinstance(method, OneStep)
        point, rates = Point(end, end), q.learning_rates(q.options())
        length = method.step(Context(LowerObjective(()), point, point, rates, name=name))
        signs = self.signs(q)

        def descent(values: Values) -> Tensors:
            there = {**self.then(name, values), **before}
            return scale(signs, filled(self._slope(name, there, draw, landscape), end))

        known = descent({**base, name: end})
        return lambda values: subtract(end, scale(length, subtract(descent(values), known)))

    def _retaken(
        self, q: Problem, taken: Sequence[Taken], landscape: Landscape, values: Values
    ) -> Tensors:
        """Return where the steps of `q` lead with the others at `values`."""
        then = dict(self.then(q.name, values))
        start = self._losses.cast({q.name: taken[0].lower})[q.name]
        twin = twin_problem(q, start, taken[0].states)
        for step in taken:
            then[q.name] = twin.parameters
            parameters = tuple(t for name in then for t in self._graph[name].parameters)
            with self._graph.space.substituted(parameters, flat(then)):
                if step.number == 1 and self._without != "start":
                    twin.begin()
                if self._without != "options":
                    twin.set_options()
            draw = self._losses.cast_draw(step.draw)
            twin.step(self._slope(q.name, then, draw, landscape), 0.0)
        return detach(twin.parameters)

    def _slope(self, name: str, values: Values, draw: Draw, landscape: Landscape) -> Gradient:
        """Return the gradient of the loss of a problem on a draw, the solutions below responding
        where it takes steps.
        """
        if not self._felt[name] or name not in self.stepped:
            return self._losses.slope(name, values, draw, (name,))[1]
        self._losses.draws[name] = draw
        return landscape.total(name, values, (name,))[1][name]

    def then(self, name: str, values: Values) -> Values:
        """Return where everything stood when problem `name` took its steps, for the others at
        `values`.
        """
        found = dict(values)
        for other, shift in self._shifts.get(name, {}).items():
            pairs = zip(values[other], shift, strict=True)
            found[other] = tuple(v - s.to(v.dtype) for v, s in pairs)
        return found

    def signs(self, q: Problem) -> list[float]:
        """Return -1 for each parameter that the optimizer of `q` maximises over, else 1."""
        options = q.options()
        if self._without == "signs":
            return [1.0 for _ in options]
        return [-1.0 if o.get("maximize") else 1.0 for o in options]


def moved_since(
    graph: ProblemGraph, q: Problem, still: Sequence[str], seed: int
) -> dict[str, Tensors]:
    """Return by how much each problem that moves between the last step of `q` and the checked
    problem's is taken to have moved; those `still` have not.
    """
    moving = {a.name: detach(a.parameters) for a in graph.role(q).moving if a.name not in still}
    return {
        name: scale(SHIFT * step_length(values, 1.0), unit(values, seed + 1))
        for name, values in moving.items()
    }
