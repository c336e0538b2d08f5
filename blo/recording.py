"""What is remembered of updates, so that responses can be computed from them later."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from blo.derivatives.pullback import Gradient, filled
from blo.graph import ProblemGraph, Update
from blo.linear.tensors import Tensors
from blo.problem import Problem
from blo.record import Draw, Moment


class Recorder:
    """The last updates of the problems that respond to others.

    Attributes:
        moments: the last update of each problem, by name.
    """

    def __init__(self, graph: ProblemGraph) -> None:
        self.moments: dict[str, Moment] = {}
        self._graph = graph
        self._past: dict[str, list[Moment]] = {}

    def wants(self, problem: Problem, update: Update) -> bool:
        """Return whether this update of `problem` is remembered."""
        return self._graph.role(problem).answers and (
            update.last or self._place(problem, update) is not None
        )

    def begin(self, problem: Problem, update: Update) -> None:
        """Forget the record that this update takes the place of, before it is evaluated: two would
        be held at a time.
        """
        if self._place(problem, update) == 0:
            self.moments.pop(problem.name, None)
            self._past[problem.name] = []

    def keep(
        self,
        problem: Problem,
        update: Update,
        draw: Draw,
        gradient: Gradient,
        upper_gradient: Mapping[str, Tensors],
        buffers_after: Mapping[int, Tensor],
    ) -> None:
        """Remember an update, evaluated on `draw`, before the optimizer takes its step.

        Args:
            problem: whose update it is.
            update: which.
            draw: what its loss was evaluated on.
            gradient: what the optimizer is handed.
            upper_gradient: of the loss with respect to problems above, by name, where it was taken.
            buffers_after: the buffers that the evaluation changed, after it.
        """
        needs, place = problem.method.requirements, self._place(problem, update)
        role = self._graph.role(problem)
        again = place is not None and self._is_kept(problem, place)
        own = update.last and needs.before
        received = tuple(g is not None for g in gradient)
        moment = Moment(
            draw=draw,
            options=problem.options(),
            received=received,
            lower=copies(problem.parameters) if again or own else None,
            states=problem.optimizer_states() if again else None,
            values={a.name: copies(a.parameters) for a in role.moving},
            below=self._below(problem) if needs.before or place is not None else {},
            buffers_after=buffers_after,
            upper_gradient=upper_gradient,
            # A copy: hooks of the optimizer may change the gradient in place.
            lower_gradient=copies(filled(gradient, problem.parameters))
            if update.last and needs.lower_gradient
            else None,
        )
        if place is not None:
            self._past[problem.name].append(moment)
        if update.last:
            history = tuple(self._past.pop(problem.name, ()))
            self.moments[problem.name] = replace(moment, history=history)

    def _below(self, problem: Problem) -> dict[str, Moment]:
        """Return the last updates of the problems below, by name."""
        names = {q.name for q in self._graph.underneath(problem)}
        return {name: moment for name, moment in self.moments.items() if name in names}

    def _place(self, problem: Problem, update: Update) -> int | None:
        """Return the position of an update among those that the method takes again."""
        length = problem.method.requirements.history
        if length == 0 or not self._graph.role(problem).answers:
            return None
        first = 1 if length is None else max(1, problem.steps - length + 1)
        return update.step - first if update.step >= first else None

    def _is_kept(self, problem: Problem, place: int) -> bool:
        """Return whether parameters and optimizer states are kept at this place of the record."""
        needs = problem.method.requirements
        length = problem.steps if needs.history is None else min(needs.history, problem.steps)
        stride = math.isqrt(length - 1) + 1 if needs.stride is None else needs.stride
        return place == 0 or (stride != 0 and place % stride == 0)


def copies(parameters: Iterable[Tensor]) -> Tensors:
    """Return copies of some tensors, without graph."""
    return tuple(p.detach().clone() for p in parameters)
