"""The problems of an engine as a subject of the check: on fixed batches and random draws, at any
values, the engine itself left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from blo.adjoints import total_gradient
from blo.check.engine_losses import EngineLosses
from blo.check.engine_steps import LowerSteps, Taken, moved_since
from blo.check.landscape import Landscape, Partials, Values
from blo.check.selection import Selection
from blo.check.subject import Claim, Parts, Settings, Stand
from blo.check.twins import TwinEngine
from blo.check.witnesses import Log
from blo.derivatives.pullback import filled
from blo.derivatives.random_state import devices_of
from blo.engine import Engine
from blo.graph import Update
from blo.linear.tensors import Tensors, dot, scale, subtract, zeros_like
from blo.methods.context import Method
from blo.problem import Problem
from blo.step_watch import unknown_decay
from blo.steps.registry import has_hooks


class EngineSubject:
    """One problem of an engine and those below whose solutions matter to it; see `Subject`.

    References are evaluations of the losses with other values in the modules. The methods are at
    work in a `TwinEngine`.

    Args:
        engine: left as it is.
        problem: name of the checked problem, None for the top.
        batches: by problem, what its loss is averaged over.
        settings: of the check.
        without: what the references leave out, a name in `suspects`.
    """

    def __init__(
        self,
        engine: Engine,
        problem: str | None,
        batches: Mapping[str, Sequence[Any]] | None,
        settings: Settings,
        *,
        without: str | None = None,
    ) -> None:
        graph, chosen = engine.graph, batches or {}
        names = [p.name for p in graph.problems]
        for name in (*chosen, *settings.detached, *(() if problem is None else (problem,))):
            if name not in names:
                raise ValueError(f"the graph has no problem {name!r}; it has {names}")
        self._engine, self._graph = engine, graph
        self.settings, self.without = settings, without
        self.name = graph.top.name if problem is None else problem
        self.precision = engine.precision
        self.devices = devices_of(t for p in graph.problems for t in p.parameters)
        self.notes: list[str] = []
        self.states = {
            p.name: settings.random_state(10 + i, self.devices, p.generators)
            for i, p in enumerate(graph.problems)
        }
        self._chosen = Selection(graph, self.name, chosen, self.states)
        self.below, self.symptoms = self._chosen.below, self._chosen.symptoms
        self.felt: Mapping[str, tuple[str, ...]] = self._chosen.felt
        self.inputs: Mapping[str, tuple[str, ...]] = self._chosen.inputs
        below = [graph[name] for name in self.below]
        self.methods: Mapping[str, Method] = {q.name: q.method for q in below}
        self.claims: Mapping[str, Claim] = {q.name: Claim.of(q.method) for q in below}
        shifts = {
            q.name: moved_since(graph, q, (self.name, *self.felt[q.name]), settings.seed)
            for q in below
            if without != "problems"
        }
        self._moved = sorted({name for shift in shifts.values() for name in shift})
        self.losses = EngineLosses(
            engine, (self.name, *self.below), self._moved, self._chosen, self.claims, self.states
        )
        self.steps = LowerSteps(graph, self.losses, self.claims, self.felt, shifts, without)
        self.saddles = frozenset(q.name for q in below if len(set(self.steps.signs(q))) > 1)
        self.start, self.dtype = self.losses.start, self.losses.dtype
        if self.losses.unwidened is not None:
            self.notes.append(
                f"the references are not computed in float64: {self.losses.unwidened}"
            )
        for q in below:
            self._note_optimizer(q)

    def reads(self, name: str) -> tuple[str, ...]:
        """Return the problems concerned that a loss depends on; none where it has no gradient."""
        if self._graph.entry(self._graph[name]) is not None:
            return ()
        return tuple(r for r in (self.name, *self.below) if r in self._chosen.truth.reads[name])

    def look(self, name: str) -> object:
        """Return a loss with the random numbers of now."""
        with self._graph.space.substituted((), ()):
            return self._graph[name].loss(self.losses.batches_of(name, 1)[0])

    def evaluate(self, name: str, values: Values, wanted: Sequence[str]) -> tuple[float, Partials]:
        """Return what problem `name` minimises at `values`, and its derivatives for the problems
        `wanted`.

        That is its loss, for the checked problem and those that take steps; for the others with the
        sign that its optimizer gives it and the penalty of coupled weight decay.
        """
        loss, gradient = self.losses.slope(name, values, self.losses.draws[name], wanted)
        partials: Partials = {}
        for w in wanted:
            mine, gradient = gradient[: len(values[w])], gradient[len(values[w]) :]
            partials[w] = filled(mine, values[w])
        if name == self.name or name in self.steps.stepped:
            return loss, partials
        q, y = self._graph[name], values[name]
        signs = self.steps.signs(q)
        if set(signs) == {-1.0}:
            loss, signs = -loss, [1.0 for _ in signs]
            partials = {w: scale(-1.0, g) for w, g in partials.items()}
        decays = q.weight_decay(q.options())
        if decays is not None:
            pull = scale([s * w for s, w in zip(signs, decays, strict=True)], y)
            loss += 0.5 * float(dot(pull, y))
            if name in partials:
                partials[name] = tuple(g + d for g, d in zip(partials[name], pull, strict=True))
        return loss, partials

    def solve(self, values: Values) -> dict[str, Tensors] | None:
        """Return None: an engine has no solver of the caller's."""
        return None

    @contextmanager
    def run(self, stepped: Set[str], landscape: Landscape, log: Log) -> Iterator[EngineRun]:
        """Yield the engine's methods at work."""
        self.steps.stepped = stepped
        twin = TwinEngine(self._engine)
        with twin.in_place() as engine:
            for name in self.losses.draws:
                engine.graph[name].accumulate = self._chosen.shares[name]
            try:
                yield EngineRun(self, twin, landscape, log)
            finally:
                self._note_late_reads(engine)

    def suspects(self) -> dict[str, str]:
        """Return what a hypergradient could leave out, with the finding if it does."""
        below = [self._graph[name] for name in self.below]
        changing = [n for n in self.losses.draws if self._graph.changes[n]]
        stands = "the response is not taken where the lower step stood: the"
        found = {
            "problems": (
                self._moved,
                f"{stands} problems {self._moved}, which have moved since then",
            ),
            "buffers": (changing, f"{stands} buffers that the losses of {changing} change"),
        }
        for what, names, words in (
            ("signs", sorted(self.saddles), "is maximised over some tensors only"),
            ("start", [q.name for q in below if q.start], "starts from a function of the others"),
            ("options", [q.name for q in below if q.option_functions], "has options that depend"),
        ):
            found[what] = names, f"the response leaves out the {what} of {names}: it {words}"
        return {what: words for what, (names, words) in found.items() if names}

    def _note_late_reads(self, engine: Engine) -> None:
        """Take in whether an engine that met them noticed reads on later batches."""
        for name, late in self._chosen.late.items():
            unknown = set(late) - set(engine.graph.reads[name])
            found = f"the loss of {name!r} reads {late} on later batches, not the first"
            if unknown and found not in self.symptoms:
                self.symptoms.append(found)
            elif not unknown and found not in self.notes:
                self.notes.append(found)

    def _note_optimizer(self, q: Problem) -> None:
        """Take in what the optimizer of `q` was seen to do, and what the check leaves out of it."""
        held = [p for g in q.optimizer.param_groups for p in g["params"] if p.requires_grad]
        if {id(p) for p in held} != {id(p) for p in q.parameters}:
            self.symptoms.append(
                f"the optimizer of {q.name!r} holds other parameters than when the problem was "
                "made: those added since are not moved by the engine"
            )
        finding = unknown_decay(q) or self._engine.watch.findings.get(q.name)
        decays = any(g.get("weight_decay") for g in q.optimizer.param_groups)
        if finding is not None:
            self.symptoms.append(
                f"the optimizer of {q.name!r} did something besides its update: {finding}"
            )
        elif decays and q.weight_decay(q.options()) is None:
            self.notes.append(
                f"the optimizer of {q.name!r} decays weights beside its loss; the problem that is "
                "solved again has no such decay"
            )
        if has_hooks(q.optimizer) and not self._engine.watch.knows(q):
            self.notes.append(
                f"the optimizer of {q.name!r} has hooks, which the check does not run again: what "
                "they do to gradients or parameters is in no comparison"
            )


class EngineRun:
    """The methods of an `EngineSubject` at work in the twin of its engine; see `Run`."""

    def __init__(
        self, subject: EngineSubject, twin: TwinEngine, landscape: Landscape, log: Log
    ) -> None:
        self._subject, self._twin, self._engine = subject, twin, twin.engine
        self._landscape, self._log = landscape, log
        self._inside: dict[str, Tensors] = {}  # solved on the way
        self._space = twin.engine.graph.space
        self._buffers = self._space.copies_of(range(len(self._space.versions())))

    def take(self, name: str, values: Values, steps: str) -> Stand:
        """Return where problem `name` ends by its optimizer's steps from `values`."""
        subject, q = self._subject, self._engine.graph[name]
        needs = q.method.requirements
        self._twin.place(subject.steps.then(name, values))
        first = 1 if needs.history is None else max(1, q.steps - max(needs.history, 1) + 1)
        numbers = range(1 if steps == "all" else first, q.steps + 1)
        taken: list[Taken] = []
        with subject.states[name].replay():
            for t in (0,) if steps == "none" else numbers:  # 0: outside a round, no step
                if steps == "all":
                    self._settle_below(name, values)
                self._hand(name, t or q.steps)
                last = t in (0, q.steps)
                total = self._engine.gradient(q, Update(name, t, last), keep=True)
                if last or t >= first:
                    states = () if taken else q.optimizer_states()
                    taken.append(Taken(t, _copies(q.parameters), states, total.draw))
                if t:
                    q.step(total.value, total.loss)
        moments = self._engine.recorder.moments
        if name in moments and moments[name].lower is None:  # the response is taken at these
            moments[name] = replace(moments[name], buffers_after=total.draw.buffers[0])
        end = (
            values[name]
            if steps == "none"
            else subject.losses.cast({name: _copies(q.parameters)})[name]
        )
        return Stand(end, subject.steps.again(q, values, end, taken, self._landscape))

    def hypergradient(self, values: Values) -> tuple[Parts, Parts]:
        """Return the engine's hypergradient at `values`, and once more after the random generators
        have moved, with witnesses.
        """
        subject, engine = self._subject, self._engine
        p = engine.graph[subject.name]
        self._twin.place({**values, **self._inside})
        with subject.states[p.name].replay():
            for _ in range(1 + subject.settings.warm_up):
                states = dict(engine.method_states)
                self._hand(p.name, 1)
                total = engine.gradient(p, Update(p.name, 0, last=False), keep=True)
        subject.losses.draws[p.name] = subject.losses.cast_draw(total.draw)
        still = self._buffers if subject.without == "buffers" else None
        with (
            subject.settings.random_state(1, subject.devices).replay(),
            self._space.substituted((), (), still),
        ):
            again, infos = total_gradient(
                engine.graph,
                p,
                total.direct,
                total.draw,
                engine.recorder.moments,
                states,
                engine.precision,
                methods={n: self._log.watched(m, n) for n, m in subject.methods.items()},
            )
        direct = total.direct.get(p.name, zeros_like(p.parameters))
        second = Parts(direct, subtract(again, direct), infos)
        if still is not None:
            return second, second
        value = filled(total.value, p.parameters)
        return Parts(direct, subtract(value, direct), total.infos), second

    def _settle_below(self, name: str, values: Values) -> None:
        """Put the problems that problem `name` feels at their solutions, responses prepared."""
        felt, q = self._subject.felt[name], self._engine.graph[name]
        if felt:
            here = {**values, **self._subject.losses.cast({name: _copies(q.parameters)})}
            settled = self._landscape.settle(felt, here)
            for r in reversed(felt):
                self._inside[r] = self.take(r, settled, "none").end
            self._twin.place(self._subject.steps.then(name, settled))

    def _hand(self, name: str, step: int) -> None:
        self._engine.graph.streams[name].hand(self._subject.losses.batches_of(name, step))


def _copies(x: Sequence[Tensor]) -> Tensors:
    return tuple(t.detach().clone() for t in x)
