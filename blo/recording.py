"""What is remembered of updates, so that responses can be computed from them later."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from blo.derivatives.kept import KeptGraph
from blo.derivatives.pullback import Gradient, filled
from blo.graph import ProblemGraph, Update
from blo.linear.tensors import Tensors, clones, leaves
from blo.problem import Problem
from blo.record import Draw, Moment
from blo.steps.joined import JoinedSteps
from blo.steps.optimizers import UpdateMap
from blo.steps.registry import known_rule


class Recorder:
    """The last updates of the problems that respond to others.

    Args:
        graph: the problems.
        joins: whether steps that are taken again may be joined in one graph: gradients that are
            means over processes are not.

    Attributes:
        moments: the last update of each problem, by name.
    """

    def __init__(self, graph: ProblemGraph, *, joins: bool = True) -> None:
        self.moments: dict[str, Moment] = {}
        self._graph = graph
        self._joins = joins
        self._past: dict[str, list[Moment]] = {}
        self._joined: dict[str, JoinedSteps] = {}

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
            self._joined.pop(problem.name, None)
            self._past[problem.name] = []

    def graph_for(self, problem: Problem, update: Update) -> KeptGraph | None:
        """Return where the graph of this update's gradient is to be kept; None where the method
        does not ask for it, or it cannot be: losses that read solutions below have theirs from
        other graphs, buffers that change would be those after, and sparse or sharded gradients
        cannot be differentiated again.
        """
        role, space = self._graph.role(problem), self._graph.space
        if not (role.needs.graph and self.wants(problem, update) and role.differentiable):
            return None
        changes = self._graph.changes[problem.name]
        if role.responding or changes or space.is_sharded or space.has_sparse_gradients:
            return None
        if self._place(problem, update) == 0:
            self._join(problem)
        joined = self._joined.get(problem.name)
        if joined is not None:
            return joined.graph(problem.parameters)
        moving = {p.name: leaves(clones(p.parameters)) for p in (problem, *role.moving)}
        still = {a.name: leaves(a.parameters) for a in role.inputs if a.name not in moving}
        return KeptGraph.begin({**moving, **still})

    def _join(self, problem: Problem) -> None:
        """Begin to join the steps of `problem`, where one graph can be differentiated in all that
        its method is: options and clipping are taken step by step, and so are problems that move
        meanwhile.
        """
        role, rule = self._graph.role(problem), known_rule(problem.optimizer_class)
        if role.needs.stride != 1 or role.moving or rule is None or rule.closed is None:
            return
        if problem.option_functions or problem.clip is not None or not self._joins:
            return
        update = UpdateMap(problem.optimizer_class)
        states, options = problem.optimizer_states(), problem.options()
        start = update.start(clones(problem.parameters), states, options)
        upper = {a.name: leaves(a.parameters) for a in role.inputs}
        self._joined[problem.name] = JoinedSteps(update, problem.name, start, upper)

    def keep(
        self,
        problem: Problem,
        update: Update,
        draw: Draw,
        gradient: Gradient,
        upper_gradient: Mapping[str, Tensors],
        buffers_after: Mapping[int, Tensor],
        graph: KeptGraph | None = None,
        *,
        taken: bool = False,
    ) -> None:
        """Remember an update, evaluated on `draw`, before the optimizer takes its step.

        Args:
            problem: whose update it is.
            update: which.
            draw: what its loss was evaluated on.
            gradient: what the optimizer is handed.
            upper_gradient: of the loss with respect to problems above, by name, where it was taken.
            buffers_after: the buffers that the evaluation changed, after it.
            graph: the gradient in its graph, where it is kept.
            taken: whether `end` will be called once the optimizer has taken the step.
        """
        role, place = self._graph.role(problem), self._place(problem, update)
        needs = role.needs
        again = place is not None and self._is_kept(problem, place)
        own = update.last and needs.before
        received = tuple(g is not None for g in gradient)
        told = again and taken and needs.by_end and self._is_told(problem)
        options = problem.options()
        is_joined = problem.name in self._joined
        again = again and not (is_joined and place)  # those of the first step lead to all others
        lower = None if not (again or own) else self._before(problem, graph)
        if is_joined:
            if graph is None or not self._joined[problem.name].take(graph, options):
                del self._joined[problem.name]
            graph = graph if place == 0 and problem.name not in self._joined else None
        moment = Moment(
            draw=draw,
            options=options,
            received=received,
            lower=lower,
            states=problem.optimizer_states() if again and not told else None,
            values={a.name: clones(a.parameters) for a in role.moving},
            below=self._below(problem) if needs.before or place is not None else {},
            buffers_after=buffers_after,
            upper_gradient=upper_gradient,
            # A copy: hooks of the optimizer may change the gradient in place.
            lower_gradient=clones(filled(gradient, problem.parameters))
            if update.last and needs.lower_gradient and not told
            else None,
            handed=[None if g is None else g.detach() for g in gradient] if told else None,
            graph=graph,
        )
        if place is not None:
            self._past[problem.name].append(moment)
        if update.last:
            history = tuple(self._past.pop(problem.name, ()))
            joined = self._joined.pop(problem.name, None)
            self.moments[problem.name] = replace(moment, history=history, joined=joined)

    def end(self, problem: Problem, *, untouched: bool) -> None:
        """Take in that the optimizer of `problem` has taken the step that was remembered last.

        Args:
            problem: whose step it is.
            untouched: whether the gradient that the optimizer was handed is what it was.

        Raises:
            RuntimeError: if it is not, and the record is of that gradient.
        """
        moment = self.moments.get(problem.name)
        if moment is not None and moment.handed is not None and not untouched:
            raise RuntimeError(
                f"the gradient that the optimizer of problem {problem.name!r} was handed was "
                f"changed in its step, and {problem.method!r} differentiates the step: something "
                "else has a hand in it. Put it in the loss, clip by Problem(clip=Clip(...)), or "
                "use a method that does not take the steps again: darts(), cg(10)"
            )

    def _is_told(self, problem: Problem) -> bool:
        """Return whether the states of the optimizer before a step are told by those after it, and
        a response to it is asked for once.
        """
        asking = [p for p in self._graph.problems if problem in self._graph.role(p).responding]
        return len(asking) == 1 and problem.tells_start()

    @staticmethod
    def _before(problem: Problem, graph: KeptGraph | None) -> Tensors:
        """Return a copy of the parameters of `problem`, that of the graph where one is kept."""
        return clones(problem.parameters) if graph is None else graph.lower(problem.name)

    def _below(self, problem: Problem) -> dict[str, Moment]:
        """Return the last updates of the problems below, by name."""
        names = {q.name for q in self._graph.underneath(problem)}
        return {name: moment for name, moment in self.moments.items() if name in names}

    def _place(self, problem: Problem, update: Update) -> int | None:
        """Return the position of an update among those that the method takes again."""
        role = self._graph.role(problem)
        length = role.needs.history
        if length == 0 or not role.answers:
            return None
        first = 1 if length is None else max(1, problem.steps - length + 1)
        return update.step - first if update.step >= first else None

    def _is_kept(self, problem: Problem, place: int) -> bool:
        """Return whether parameters and optimizer states are kept at this place of the record."""
        needs = self._graph.role(problem).needs
        length = problem.steps if needs.history is None else min(needs.history, problem.steps)
        stride = math.isqrt(length - 1) + 1 if needs.stride is None else needs.stride
        return place == 0 or (stride != 0 and place % stride == 0)
