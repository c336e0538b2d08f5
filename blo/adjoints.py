"""Total gradients over a problem graph: adjoints accumulated bottom-up, one response of each
problem.

With ``a_q`` the adjoint of problem `q` (the derivative of the loss above with respect to its
parameters),

    a_q = df/d(theta_q) + sum over problems r below q:  (d theta_r*/d theta_q)^T a_r.

Problems are visited from the bottom; each adds its response to the adjoints of the problems above
that its solution depends on. Paths merge by addition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from blo.derivatives.kept import KeptGradient
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.nested import AttachedObjective, Spent
from blo.derivatives.objective import Objective
from blo.derivatives.reduction import LOCAL, Reduction
from blo.evaluation import ModuleObjective
from blo.graph import ProblemGraph
from blo.linear.tensors import Tensors, add, detach, zeros_like
from blo.methods.attached import Attached, Attaches, Solved
from blo.methods.context import Context, Info, Method
from blo.problem import Problem
from blo.record import Draw, Moment
from blo.steps.ends import StartStates
from blo.steps.history import History, LowerStep
from blo.steps.optimizers import UpdateMap
from blo.steps.replay import lower_gradient


def total_gradient(
    graph: ProblemGraph,
    problem: Problem,
    direct: Mapping[str, Tensors],
    draw: Draw,
    moments: Mapping[str, Moment],
    states: dict[str, Tensors | None],
    precision: torch.dtype | None,
    *,
    reduction: Reduction = LOCAL,
    methods: Mapping[str, Method] = MappingProxyType({}),
) -> tuple[Tensors, dict[str, Info]]:
    """Return the gradient of the loss of `problem` with the response of every problem below, and
    how each was computed.

    Args:
        graph: the problems.
        problem: the one whose gradient is wanted.
        direct: partial derivatives of its loss, by problem: its own and those of the problems
            below; None where there is none.
        draw: what its loss was evaluated on.
        moments: the last update of each problem below.
        states: the methods' states by "problem <- lower problem"; updated in place.
        precision: autocast type.
        reduction: over which processes the losses are means; `direct` is reduced already.
        methods: in place of the problems' own, by name.
    """
    adjoints = dict(direct)
    responding = graph.role(problem).responding
    movable = {problem.name, *(q.name for q in responding)}
    infos = {}
    entry = graph.entry(problem)
    now = Standing({}, moments)
    for q in reversed(responding):
        cotangent = adjoints.get(q.name)
        sources = tuple(a for a in graph.role(q).inputs if a.name in movable)
        if q is entry:
            cotangent = zeros_like(q.parameters)
            sources = sources if problem in sources else (problem, *sources)
        if cotangent is None:
            continue
        sight = Sight(graph, precision, Spent(), reduction)
        context = sight.context(q, sources, now)
        if graph.role(q).needs.readers and entry in (None, q):
            readers = sight.losses(problem, sources, q.parameters, draw, now, (q,))
            context = replace(context, readers=readers)
        key = f"{problem.name} <- {q.name}"
        context = replace(context, first=key not in states)
        method = methods.get(q.name, q.method)
        value, states[key], info = method.response(context, cotangent, states.get(key))
        infos[key] = replace(
            info,
            num_gradients=info.num_gradients + sight.spent.num_gradients,
            num_products=info.num_products + sight.spent.num_products,
            batches=tuple(moments[q.name].draw.numbers),
        )
        _accumulate(adjoints, sources, value)
    if problem.name not in adjoints:
        raise RuntimeError(
            f"no gradient reached problem {problem.name!r}: its loss depends neither on its own "
            "parameters nor, on these batches, on a lower solution that responds to them"
        )
    return adjoints[problem.name], infos


def _accumulate(adjoints: dict[str, Tensors], sources: tuple[Problem, ...], value: Tensors) -> None:
    """Add a response to the adjoints of the problems that it is for."""
    for a in sources:
        mine, value = value[: len(a.parameters)], value[len(a.parameters) :]
        present = adjoints.get(a.name)
        adjoints[a.name] = mine if present is None else add(present, mine)


@dataclass(frozen=True)
class Standing:
    """Where every problem stands.

    Attributes:
        values: the parameters of some problems, by name; the others stand where they stand now.
        moments: the last update of each problem that responds.
        moves: whether solutions move along where the values that they stand for are changed.
    """

    values: Mapping[str, Tensors]
    moments: Mapping[str, Moment]
    moves: bool = True

    def of(self, problem: Problem) -> Tensors:
        """Return the parameters of `problem`."""
        known = self.values.get(problem.name)
        return detach(problem.parameters) if known is None else known

    def flat(self, problems: Iterable[Problem]) -> Tensors:
        """Return the parameters of several problems, one after the other."""
        return tuple(t for p in problems for t in self.of(p))

    def during(self, moment: Moment, *, moves: bool) -> Standing:
        """Return where everything stood in an update."""
        return Standing({**self.values, **moment.values}, moment.below, moves)


@dataclass(frozen=True)
class Sight:
    """Problems of a graph as methods see them.

    Attributes:
        graph: the problems.
        precision: autocast type of the losses.
        spent: where the cost of solutions inside solutions is noted.
        reduction: over which processes losses are means.
    """

    graph: ProblemGraph
    precision: torch.dtype | None
    spent: Spent
    reduction: Reduction = LOCAL

    def context(self, q: Problem, sources: tuple[Problem, ...], standing: Standing) -> Context:
        """Return `q`, a function of the parameters of `sources` and its own, after its last
        update.
        """
        moment = standing.moments[q.name]
        after = Point(standing.flat(sources), standing.of(q))
        before, seen, buffers = after, standing, (moment.buffers_after,) * len(moment.draw.batches)
        if moment.lower is not None:
            then = standing.during(moment, moves=standing.moves)
            seen = replace(then, values={**then.values, q.name: moment.lower})
            gradient = None
            if all(a.name in moment.upper_gradient for a in sources):
                gradient = tuple(t for a in sources for t in moment.upper_gradient[a.name])
            before = Point(
                seen.flat(sources),
                moment.lower,
                gradient,
                moment.lower_gradient,
                kept(moment, q, sources),
            )
            buffers = moment.draw.buffers
        draw = replace(moment.draw, buffers=buffers)
        return Context(
            lower=LowerObjective(
                self.objectives(q, sources, draw, seen),
                q.weight_decay(moment.options),
                q.signs(moment.options),
                self.reduction,
            ),
            after=after,
            before=before,
            learning_rates=q.learning_rates(moment.options),
            history=self.history(q, sources, moment, standing),
            name=q.name,
        )

    def history(
        self, q: Problem, sources: tuple[Problem, ...], moment: Moment, standing: Standing
    ) -> History | None:
        """Return the recorded updates of `q`; None where there are none."""
        if not moment.history:
            return None
        taken = []
        for update in moment.history:
            then = standing.during(update, moves=False)
            options_of = None
            if q.option_functions:
                options_of = partial(self._options, q, sources, then, update.options)
            taken.append(
                LowerStep(
                    self.objectives(q, sources, update.draw, then),
                    update.options,
                    update.received,
                    update.lower,
                    update.states,
                    q.clip,
                    options_of,
                    self.reduction,
                    kept(update, q, sources),
                )
            )
        first = moment.history[0]
        whole = len(moment.history) == q.steps
        then = standing.during(first, moves=False)
        assert first.lower is not None
        states = first.states or _start_states(first, q, taken[0], then.flat(sources))
        start_of = partial(self._start, q, sources, then) if whole and q.start is not None else None
        joined, names = None, [a.name for a in sources]
        if moment.joined is not None and moment.joined.upper.keys() >= set(names):
            end = standing.of(q)
            joined = partial(moment.joined.pulled_back, names, end, start=start_of is not None)
        return History(
            q.optimizer_class,
            first.lower,
            states,
            tuple(taken),
            standing.of(q),
            moment.lower_gradient,
            start_of,
            joined,
        )

    def _options(
        self,
        q: Problem,
        sources: tuple[Problem, ...],
        standing: Standing,
        known: tuple[dict[str, Any], ...],
        upper: Tensors,
    ) -> tuple[dict[str, Any], ...]:
        """Return the options of an update of `q` as functions of the parameters of `sources`."""
        with self._placed(sources, standing, upper):
            values = {name: function() for name, function in q.option_functions.items()}
        return tuple({**options, **values} for options in known)

    def _start(
        self, q: Problem, sources: tuple[Problem, ...], standing: Standing, upper: Tensors
    ) -> Tensors:
        """Return the start of `q` as a function of the parameters of `sources`."""
        assert q.start is not None
        with self._placed(sources, standing, upper):
            return tuple(q.start())

    def _placed(
        self, sources: tuple[Problem, ...], standing: Standing, upper: Tensors
    ) -> AbstractContextManager[object]:
        """Return a context with `upper` in the places of the parameters of `sources`, and all other
        problems where they stand.
        """
        names = {a.name for a in sources}
        fixed = [self.graph[name] for name in standing.values if name not in names]
        parameters = tuple(t for p in (*sources, *fixed) for t in p.parameters)
        return self.graph.space.substituted(parameters, (*upper, *standing.flat(fixed)))

    def objectives(
        self, q: Problem, sources: tuple[Problem, ...], draw: Draw, standing: Standing
    ) -> tuple[Objective, ...]:
        """Return the loss of `q` on each batch of `draw`, the solutions below it attached if it
        sees them responding.
        """
        below = self.graph.responding(q, (*sources, q)) if q.through_response else ()
        known = [*sources, q]
        attached = []
        for r in below:
            inputs = tuple(a for a in self.graph.role(r).inputs if a in known)
            if not isinstance(r.method, Attaches):
                raise TypeError(
                    f"problem {q.name!r} reads {r.name!r} below it, and sees its response only by "
                    "an implicit, one-step or unrolling method; "
                    f"{r.name!r} has {r.method!r}. Give it one such as cg(10), or set "
                    f"through_response=False on {q.name!r}"
                )
            anchor = standing.flat(inputs) if standing.moves else None
            lower = Attached(self.context(r, inputs, standing), self.spent, anchor)
            attached.append((Solved(r.method, lower), _positions(known, inputs)))
            known.append(r)
        lower_parameters = tuple(t for p in (q, *below) for t in p.parameters)
        bases = self.losses(q, sources, lower_parameters, draw, standing, known)
        if not attached:
            return bases
        return tuple(AttachedObjective(base, tuple(attached), self.reduction) for base in bases)

    def losses(
        self,
        problem: Problem,
        sources: tuple[Problem, ...],
        lower: tuple[Tensor, ...],
        draw: Draw,
        standing: Standing,
        known: Iterable[Problem] = (),
    ) -> tuple[Objective, ...]:
        """Return the plain loss of `problem` on each batch of `draw`, a function of the parameters
        of `sources` and of `lower`, which are those of the `known` problems.
        """
        free = {p.name for p in known} | {p.name for p in sources}
        seen = {*standing.values, *self.graph.reads[problem.name]} - free
        # All that it reads, since a scope around this one may have put tensors in a graph there.
        fixed = [p for p in self.graph.problems if p.name in seen]
        return tuple(
            ModuleObjective(
                self.graph.space,
                tuple(t for a in sources for t in a.parameters),
                lower,
                problem.loss,
                batch,
                random_state,
                self.precision,
                problem.name,
                held=tuple(t for p in fixed for t in p.parameters),
                values=standing.flat(fixed),
                buffers=buffers,
                copies=problem.edits_batch,
                computed_in=problem.computed_in,
            )
            for batch, random_state, buffers in zip(
                draw.batches, draw.random_states, draw.buffers, strict=True
            )
        )


def _start_states(moment: Moment, q: Problem, step: LowerStep, upper: Tensors) -> StartStates:
    """Return the states of the optimizer of `q` before its last step, as those after it tell them.

    Args:
        moment: of the step.
        q: the problem.
        step: the step.
        upper: the upper tensors then.
    """
    assert moment.lower is not None
    assert moment.handed is not None
    again = partial(lower_gradient, step, upper, moment.lower)
    after = [q.optimizer.state.get(p, {}) for p in q.parameters]
    update = UpdateMap(q.optimizer_class)
    return update.start_states(moment.lower, moment.handed, again, moment.options, after)


def kept(moment: Moment, q: Problem, sources: tuple[Problem, ...]) -> KeptGradient | None:
    """Return the gradient of an update of `q`, a function of the parameters of `sources`, in its
    graph; None where that was not kept.
    """
    if moment.graph is None or any(a.name not in moment.graph.leaves for a in sources):
        return None
    return moment.graph.of([a.name for a in sources], q.name)


def _positions(known: list[Problem], inputs: tuple[Problem, ...]) -> tuple[int, ...]:
    """Return the positions of the parameters of `inputs` among those of `known`."""
    start, positions = 0, {}
    for p in known:
        positions[p.name] = range(start, start + len(p.parameters))
        start += len(p.parameters)
    return tuple(i for p in inputs for i in positions[p.name])
