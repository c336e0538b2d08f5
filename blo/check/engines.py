"""The check of an engine: its own hypergradient, on fixed batches, against lower problems that are
solved again or whose steps are taken again.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from blo.batches import own_copy
from blo.check.evidence import (
    SOLVED_AGAIN,
    Evidence,
    Parts,
    Settings,
    coarsest,
    full_precision,
    worst,
)
from blo.check.landscape import Landscape, Values
from blo.check.losses import Losses
from blo.check.rehearsal import Rehearsal, reading_order
from blo.check.report import Comparison, LinearSolve, Report
from blo.check.snapshot import untouched
from blo.derivatives.lower import LowerObjective, Point
from blo.engine import Engine
from blo.linear.tensors import Tensors, scale, subtract
from blo.methods.context import Context, Method
from blo.methods.implicit import OneStep
from blo.problem import Problem


class Claim(enum.Enum):
    """What the response of a lower problem claims to be the derivative of."""

    SOLUTION = "solved again"
    GRADIENT_STEP = "one gradient step taken again"
    STEPS = "its last steps taken again"

    @staticmethod
    def of(method: Method) -> Claim:
        """Return the claim of a method, as its kind or its requirements tell."""
        if isinstance(method, OneStep):
            return Claim.GRADIENT_STEP
        needs = method.requirements
        return Claim.STEPS if needs.before or needs.history != 0 else Claim.SOLUTION


def check_engine(
    engine: Engine,
    problem: str | None,
    batches: Mapping[str, Sequence[Any]] | None,
    settings: Settings,
) -> Report:
    """Return the report on the hypergradient of one problem; see `check_hypergradient`."""
    graph = engine.graph
    names = [p.name for p in graph.problems]
    for name in (*(batches or {}), *(() if problem is None else (problem,))):
        if name not in names:
            raise ValueError(f"the graph has no problem {name!r}; it has {names}")
    checked = graph.top if problem is None else graph[problem]
    felt, inputs = reading_order(graph)
    concerned = set(felt[checked.name])
    for q in graph.underneath(checked):
        if q.name in concerned:
            concerned |= set(felt[q.name])
    below = tuple(q for q in graph.underneath(checked) if q.name in concerned)
    if not any(checked.name in inputs[q.name] for q in below):
        raise ValueError(
            f"problem {checked.name!r} has no hypergradient to check: no problem below it responds "
            "to it"
        )
    with untouched(engine):
        rehearsal = Rehearsal(engine, checked, below, batches or {}, settings)
        return _Check(rehearsal, felt, inputs, settings).report()


class _Check:
    """The hypergradient of one problem, at the problem's present value, in one rehearsal."""

    def __init__(
        self,
        rehearsal: Rehearsal,
        felt: Mapping[str, tuple[str, ...]],
        inputs: Mapping[str, tuple[str, ...]],
        settings: Settings,
    ) -> None:
        self._rehearsal, self._settings = rehearsal, settings
        self._checked = rehearsal.checked
        self._name = rehearsal.checked.name
        self._below = rehearsal.below
        self._felt = felt
        self._claims = {q.name: Claim.of(q.method) for q in self._below}
        self._losses = Losses(rehearsal.graph, self._checked, rehearsal.draws, rehearsal.buffers)
        present = rehearsal.present()
        self._dtype = coarsest(tuple(t for v in present.values() for t in v))
        reason = self._losses.widen(present) if self._dtype != torch.float64 else None
        self._start = self._losses.cast(present)
        rtol = settings.solved(coarsest(self._start[self._name]))
        self._landscape = Landscape(self._losses.evaluate, felt, inputs, rtol)
        self._evidence = Evidence(
            self._name,
            self._start[self._name],
            {q.name: q.method for q in self._below},
            self._dtype,
            rehearsal.engine.precision,
            settings,
        )
        if reason is not None:
            self._evidence.notes.append(f"the references are not computed in float64: {reason}")

    def report(self) -> Report:
        """Return what was found; the engine is left in the middle of it."""
        self._look()
        stepped = [q.name for q in self._below if self._claims[q.name] is not Claim.SOLUTION]
        separable = self._separable(stepped)
        claimed = solved = None
        if self._settings.to_solution or not (stepped and separable):
            solution = self._landscape.settle([q.name for q in self._below], self._start)
            first, second, solves = self._at_solution(solution)
            claimed = self._against_solution(first, solution)
        if stepped and separable:
            solved, values = claimed, self._trained()
            first, second, solves = self._rehearsal.hypergradient()
            claimed = self._against_claims(first, values)
        elif stepped:
            self._evidence.notes.append(
                f"what {stepped} claim cannot be taken again, since a problem that reads below "
                "itself is in between; they are held to the solution"
            )
        assert claimed is not None
        self._evidence.solves += worst(solves)
        return self._evidence.report(claimed, solved, first, second)

    def _look(self) -> None:
        """Check the gradients of the losses against their values, and see what the losses do."""
        rehearsal, graph = self._rehearsal, self._rehearsal.graph
        for p in (self._checked, *self._below):
            wanted = tuple(name for name in graph.reads[p.name] if name in self._start)
            if graph.entry(p) is None:
                self._evidence.compare_gradient(p.name, self._losses.evaluate, self._start, wanted)
            batch = rehearsal.batches[p.name][0]
            with graph.space.substituted((), ()):
                self._evidence.observe(p.name, partial(_loss, p, batch), p.device)
            decays = any(g.get("weight_decay") for g in p.optimizer.param_groups)
            decoupled = decays and p.weight_decay(p.options()) is None
            if p is not self._checked and decoupled:
                self._evidence.notes.append(
                    f"the optimizer of {p.name!r} decays weights beside its loss; the problem that "
                    "is solved again has no such decay"
                )

    def _at_solution(self, solution: Values) -> tuple[Parts, Parts, list[LinearSolve]]:
        """Return the engine's hypergradient at the solutions."""
        self._rehearsal.place(solution)
        for q in reversed(self._below):
            if self._claims[q.name] is Claim.STEPS:
                self._rehearsal.run(q, whole=False)
            else:
                self._rehearsal.record(q)
        return self._rehearsal.hypergradient()

    def _against_solution(self, value: Parts, solution: Values) -> Comparison:
        def differenced(x: Tensors) -> tuple[float, float]:
            values: Values = {**solution, self._name: x}
            for q in self._below:
                values = self._landscape.solve(q.name, values)
            return self._pair(values)

        residual = max(self._landscape.residuals[q.name] for q in self._below)
        dtype = coarsest(self._start[self._name])
        return self._evidence.compare(SOLVED_AGAIN, value, differenced, residual, dtype=dtype)

    def _trained(self) -> dict[str, Tensors]:
        """Put each problem where its method wants it, from the top: at its solution, or at the end
        of the steps of a round from where it stood. Return the parameters.
        """
        rehearsal, values = self._rehearsal, self._start
        rehearsal.place(values)
        for q in self._below:
            if self._claims[q.name] is Claim.SOLUTION:
                values = self._landscape.settle([q.name], values)
                rehearsal.place(values)
            else:
                rehearsal.run(q, whole=True)
                values = self._losses.cast(rehearsal.present())
        for q in reversed(self._below):
            if self._claims[q.name] is Claim.SOLUTION:
                rehearsal.record(q)
        return values

    def _against_claims(self, value: Parts, base: Values) -> Comparison:
        """Return how `value` compares with what the methods claim, at the parameters `base`."""
        rehearsal = self._rehearsal
        steps = {q.name: rehearsal.engine.recorder.moments[q.name] for q in self._below}

        def descent(q: Problem, values: Values) -> Tensors:
            """Return the gradient that the last step of `q` would have taken."""
            lower = steps[q.name].lower
            assert lower is not None
            before = {**values, **self._losses.cast({q.name: lower})}
            gradient = self._losses.evaluate(q.name, before, (q.name,))[1][q.name]
            return LowerObjective((), signs=q.signs(steps[q.name].options)).directed(gradient)

        lengths = {}
        for q in self._below:
            if isinstance(q.method, OneStep):
                self._losses.redraw(q.name, steps[q.name].draw)
                point = Point(base[self._name], base[q.name])
                rates = q.learning_rates(steps[q.name].options)
                context = Context(LowerObjective(()), point, point, rates, name=q.name)
                lengths[q.name] = q.method.step(context)
        known = {q.name: descent(q, base) for q in self._below if q.name in lengths}

        def differenced(x: Tensors) -> tuple[float, float]:
            values = {**base, self._name: x}
            for q in self._below:
                if self._claims[q.name] is Claim.SOLUTION:
                    values = self._landscape.solve(q.name, values)
                elif self._claims[q.name] is Claim.GRADIENT_STEP:
                    moved = subtract(descent(q, values), known[q.name])
                    values[q.name] = subtract(base[q.name], scale(lengths[q.name], moved))
                else:
                    with full_precision(rehearsal.devices):
                        reached = {q.name: rehearsal.retake(q, values)}
                    values.update(self._losses.cast(reached))
            return self._pair(values)

        rehearsal.engine.precision = None
        solved = [q.name for q in self._below if self._claims[q.name] is Claim.SOLUTION]
        residual = max((self._landscape.residuals[name] for name in solved), default=0.0)
        through = "; ".join(f"{name!r} {claim.value}" for name, claim in self._claims.items())
        limited = Claim.STEPS in self._claims.values()
        return self._evidence.compare(
            f"differences, {through}",
            value,
            differenced,
            residual,
            dtype=self._dtype if limited else coarsest(self._start[self._name]),
        )

    def _separable(self, stepped: Sequence[str]) -> bool:
        """Whether what the methods claim can be taken again problem by problem, from the top."""
        felt = {q.name: self._felt[q.name] for q in self._below}
        return not any(
            below and (name in stepped or any(r in stepped for r in below))
            for name, below in felt.items()
        )

    def _pair(self, values: Values) -> tuple[float, float]:
        """Return the checked loss with its own parameters as given, and as they are."""
        whole = self._losses.evaluate(self._name, values, ())[0]
        if self._rehearsal.graph.entry(self._checked) is not None:
            return whole, whole
        here = {**values, self._name: self._start[self._name]}
        return whole, self._losses.evaluate(self._name, here, ())[0]


def _loss(problem: Problem, batch: Any) -> object:
    return problem.loss(own_copy(batch))
