"""An engine that rounds are tried on: fixed batches, fixed random draws, every problem where it is
put.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from blo.adjoints import total_gradient
from blo.batches import BatchStream, to_device
from blo.check.evidence import Parts, Settings, witnessed
from blo.check.landscape import Values
from blo.check.report import LinearSolve
from blo.check.snapshot import ProblemSnapshot
from blo.derivatives.random_state import RandomState
from blo.engine import Engine
from blo.graph import ProblemGraph, Update
from blo.linear.tensors import Tensors, subtract, zeros_like
from blo.passes import evaluate
from blo.problem import Problem
from blo.record import Draw


class Rehearsal:
    """One problem of an engine, and those below whose solutions matter to it.

    Its methods change the engine: they run inside `untouched`.

    Args:
        engine: whose problems they are.
        checked: the problem whose hypergradient is wanted.
        below: the problems whose solutions its loss, or theirs, depends on, top to bottom.
        batches: chosen by the caller, by problem; others are the first of a new pass.
        settings: of the check.
    """

    def __init__(
        self,
        engine: Engine,
        checked: Problem,
        below: tuple[Problem, ...],
        batches: Mapping[str, Sequence[Any]],
        settings: Settings,
    ) -> None:
        self.engine = engine
        self.graph = engine.graph
        self.checked = checked
        self.below = below
        self._settings = settings
        tensors = (t for p in self.graph.problems for t in p.parameters)
        self.devices = tuple(dict.fromkeys(t.device for t in tensors))
        self._random_states = {
            p.name: settings.random_state(10 + i, self.devices)
            for i, p in enumerate(self.graph.problems)
        }
        self.batches = {p.name: _fixed(p, batches.get(p.name)) for p in (checked, *below)}
        self.buffers = self.graph.space.buffers()
        self.draws: dict[str, Draw] = {}
        for p in (checked, *below):
            if p.name in batches:
                p.accumulate = len(self.batches[p.name])
            self._rewind(p)
            first = self.batches[p.name][: p.accumulate]
            taken = evaluate(self.graph, p, (p,), first, engine.precision, keep=True)
            self.draws[p.name] = Draw(first, taken.random_states, taken.buffers, 0)
        self._windows: dict[str, tuple[ProblemSnapshot, RandomState, int]] = {}

    def present(self) -> dict[str, Tensors]:
        """Return copies of the parameters of the problems concerned."""
        return {
            p.name: tuple(t.detach().clone() for t in p.parameters)
            for p in (self.checked, *self.below)
        }

    def place(self, values: Values) -> None:
        """Copy `values` into the parameters."""
        with torch.no_grad():
            for name, tensors in values.items():
                for parameter, value in zip(self.graph[name].parameters, tensors, strict=True):
                    parameter.copy_(value)

    def record(self, problem: Problem) -> None:
        """Have the engine remember an update of `problem` here, without the step."""
        self._rewind(problem)
        self.engine.gradient(problem, Update(problem.name, problem.steps, last=True))

    def run(self, problem: Problem, *, whole: bool) -> None:
        """Let `problem` take the steps of a round: all of them, or those alone that its method
        records.
        """
        first = self._first_recorded(problem)
        self._rewind(problem)
        for t in range(1 if whole else first, problem.steps + 1):
            if t == first:
                window = ProblemSnapshot(problem), RandomState.capture(self.devices)
                self._windows[problem.name] = (*window, self.graph.streams[problem.name].count)
            self.engine.update(Update(problem.name, t, last=t == problem.steps))

    def retake(self, problem: Problem, values: Values) -> Tensors:
        """Return where the recorded steps of `problem` lead with all other problems at `values`."""
        snapshot, state, position = self._windows[problem.name]
        self.place({k: v for k, v in values.items() if k != problem.name})
        snapshot.restore()
        self._rewind(problem, position)
        state.restore()
        for t in range(self._first_recorded(problem), problem.steps + 1):
            self.engine.update(Update(problem.name, t, last=t == problem.steps))
        return tuple(t.detach().clone() for t in problem.parameters)

    def hypergradient(self) -> tuple[Parts, Parts, list[LinearSolve]]:
        """Return the engine's hypergradient here, and again with other random numbers, the linear
        solves of that second time taken again.
        """
        engine, p = self.engine, self.checked
        update = Update(p.name, 1, last=False)
        for _ in range(self._settings.warm_up):
            self._rewind(p)
            engine.gradient(p, update)
        states = dict(engine.method_states)
        self._rewind(p)
        total = engine.gradient(p, update, keep=True)
        direct = total.direct.get(p.name, zeros_like(p.parameters))
        value = tuple(
            torch.zeros_like(t) if g is None else g
            for g, t in zip(total.value, p.parameters, strict=True)
        )
        first = Parts(direct, subtract(value, direct), total.infos)
        log: list[LinearSolve] = []
        methods = {q.name: q.method for q in self.below}
        for q in self.below:
            q.method = witnessed(q.method, q.name, log)
        with self._settings.random_state(1, self.devices).replay():
            value, infos = total_gradient(
                self.graph,
                p,
                total.direct,
                total.draw,
                engine.recorder.moments,
                states,
                engine.precision,
            )
        for q in self.below:
            q.method = methods[q.name]
        return first, Parts(direct, subtract(value, direct), infos), log

    def _rewind(self, problem: Problem, position: int = 0) -> None:
        """Start the stream of `problem` over, on its fixed batches, with its random state and
        the buffers of the beginning.
        """
        batches = self.batches[problem.name]
        start = position % len(batches)
        rotated = list(batches[start:] + batches[:start])
        self.graph.streams[problem.name] = BatchStream(rotated, problem.name)
        self.graph.space.load_buffers(self.buffers)
        self._random_states[problem.name].restore()

    def _first_recorded(self, problem: Problem) -> int:
        """Return the number of the first step that the response of `problem` is taken from."""
        history = problem.method.requirements.history
        if history is None:
            return 1
        return max(1, problem.steps - max(history, 1) + 1)


def reading_order(
    graph: ProblemGraph,
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return, for each problem, those below whose solutions its loss depends on, and those above
    that its solution depends on, whatever the methods leave out.
    """
    names = [p.name for p in graph.problems]
    below = {p.name: [q.name for q in graph.underneath(p)] for p in graph.problems}
    felt: dict[str, tuple[str, ...]] = {}
    inputs: dict[str, tuple[str, ...]] = {}
    for p in reversed(names):
        met = set(graph.reads[p])
        for q in reversed(below[p]):
            if q in met:
                met |= set(inputs[q])
        felt[p] = tuple(q for q in below[p] if q in met)
        inputs[p] = tuple(a for a in names if a in met and p in below[a])
    return felt, inputs


def _fixed(problem: Problem, chosen: Sequence[Any] | None) -> tuple[Any, ...]:
    """Return the batches that the problem is held on, on its device."""
    if chosen is None:
        one_shot = iter(problem.batches) is problem.batches
        if one_shot or getattr(problem.batches, "persistent_workers", False):
            raise ValueError(
                f"the batches of problem {problem.name!r} cannot be iterated without disturbing "
                f"the training: pass some as batches={{{problem.name!r}: [...]}}"
            )
        stream = BatchStream(problem.batches, problem.name)
        number = problem.accumulate * problem.steps
        chosen = [stream.next() for _ in range(number)]
    if not chosen:
        raise ValueError(f"batches must hold at least one batch for problem {problem.name!r}")
    return tuple(to_device(batch, problem.device) for batch in chosen)
