"""The problems of an engine as a subject of the check: on fixed batches and random draws, at any
values, the engine itself left alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blo.adjoints import total_gradient
from blo.batches import fresh
from blo.check.differences import step_length, unit
from blo.check.landscape import Landscape, Partials, Values
from blo.check.selection import Selection
from blo.check.subject import (
    Claim,
    Parts,
    Settings,
    Stand,
    coarsest,
    full_precision,
)
from blo.check.twins import TwinEngine, twin_problem
from blo.check.witnesses import Log
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.pullback import Gradient, filled, mean, pulled_back
from blo.derivatives.random_state import RandomState, devices_of
from blo.engine import Engine
from blo.evaluation import ModuleObjective
from blo.graph import Update
from blo.linear.tensors import Tensors, detach, dot, leaves, scale, subtract, zeros_like
from blo.methods.context import Context, Method
from blo.methods.implicit import OneStep
from blo.problem import Problem
from blo.record import Draw
from blo.step_watch import has_hooks, unknown_decay

SHIFT = 0.05  # how far the others had moved since a lower step, relative to their parameters


class Taken(NamedTuple):
    """A lower step that was taken: its number, where it started, and what its loss was evaluated
    on.
    """

    number: int
    lower: Tensors
    states: tuple[dict[str, Any], ...]
    draw: Draw


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
        self._narrow = {p.name: detach(p.parameters) for p in graph.problems}
        self._chosen = Selection(graph, self.name, chosen, self.states)
        self.below, self.symptoms = self._chosen.below, self._chosen.symptoms
        self.felt: Mapping[str, tuple[str, ...]] = self._chosen.felt
        self.inputs: Mapping[str, tuple[str, ...]] = self._chosen.inputs
        below = [graph[name] for name in self.below]
        self.methods: Mapping[str, Method] = {q.name: q.method for q in below}
        self.claims: Mapping[str, Claim] = {q.name: Claim.of(q.method) for q in below}
        self.saddles = frozenset(q.name for q in below if len(set(self._signs(q))) > 1)
        self._shifts = {q.name: self._moved_since(q) for q in below}
        moving = [a for shift in self._shifts.values() for a in shift]
        self._wide = False
        self._stepped: Set[str] = frozenset()
        self._buffers = graph.space.copies_of(range(len(graph.space.versions())))
        self._others = {id(t): (t, t.detach()) for t in graph.space.parameters()}
        self.draws = {name: self._first_draw(graph[name]) for name in (self.name, *self.below)}
        self.dtype = coarsest(tuple(t for name in self.draws for t in self._narrow[name]))
        present = {n: self._narrow[n] for n in dict.fromkeys((*self.draws, *moving))}
        if self.dtype != torch.float64:
            self._widen(present)
        self.start = self.cast(present)
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
            return self._graph[name].loss(self.batches_of(name, 1)[0])

    def evaluate(self, name: str, values: Values, wanted: Sequence[str]) -> tuple[float, Partials]:
        """Return what problem `name` minimises at `values`, and its derivatives for the problems
        `wanted`.

        That is its loss, for the checked problem and those that take steps; for the others with the
        sign that its optimizer gives it and the penalty of coupled weight decay.
        """
        loss, gradient = self._pass(name, values, self.draws[name], wanted)
        partials: Partials = {}
        for w in wanted:
            mine, gradient = gradient[: len(values[w])], gradient[len(values[w]) :]
            partials[w] = filled(mine, values[w])
        if name == self.name or name in self._stepped:
            return loss, partials
        q, y = self._graph[name], values[name]
        signs = self._signs(q)
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
        self._stepped = stepped
        twin = TwinEngine(self._engine)
        with twin.in_place() as engine:
            for name in self.draws:
                engine.graph[name].accumulate = self._chosen.shares[name]
            try:
                yield EngineRun(self, twin, landscape, log)
            finally:
                self._note_late_reads(engine)

    def suspects(self) -> dict[str, str]:
        """Return what a hypergradient could leave out, with the finding if it does."""
        below = [self._graph[name] for name in self.below]
        moved = sorted({name for shift in self._shifts.values() for name in shift})
        changing = [n for n in self.draws if self._graph[n].changes]
        stands = "the response is not taken where the lower step stood: the"
        found = {
            "problems": (moved, f"{stands} problems {moved}, which have moved since then"),
            "buffers": (changing, f"{stands} buffers that the losses of {changing} change"),
        }
        for what, names, words in (
            ("signs", sorted(self.saddles), "is maximised over some tensors only"),
            ("start", [q.name for q in below if q.start], "starts from a function of the others"),
            ("options", [q.name for q in below if q.option_functions], "has options that depend"),
        ):
            found[what] = names, f"the response leaves out the {what} of {names}: it {words}"
        return {what: words for what, (names, words) in found.items() if names}

    # What the methods claim, by evaluations of the losses and copies of the optimizers.

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
        if self.claims[name] is Claim.SOLUTION:
            return lambda values: values[name]
        if self.claims[name] is Claim.STEPS:
            return partial(self._retaken, q, taken, landscape)
        method, before, draw = q.method, self.cast({name: last.lower}), self.cast_draw(last.draw)
        assert isinstance(method, OneStep)
        point, rates = Point(end, end), q.learning_rates(q.options())
        length = method.step(Context(LowerObjective(()), point, point, rates, name=name))
        signs = self._signs(q)

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
        start = self.cast({q.name: taken[0].lower})[q.name]
        twin = twin_problem(q, start, taken[0].states)
        for step in taken:
            then[q.name] = twin.parameters
            parameters = tuple(t for name in then for t in self._graph[name].parameters)
            with self._graph.space.substituted(parameters, _flat(then)):
                if step.number == 1 and self.without != "start":
                    twin.begin()
                if self.without != "options":
                    twin.set_options()
            draw = self.cast_draw(step.draw)
            twin.step(self._slope(q.name, then, draw, landscape), 0.0)
        return detach(twin.parameters)

    def _slope(self, name: str, values: Values, draw: Draw, landscape: Landscape) -> Gradient:
        """Return the gradient of the loss of a problem on a draw, the solutions below responding
        where it takes steps.
        """
        if not self.felt[name] or name not in self._stepped:
            return self._pass(name, values, draw, (name,))[1]
        self.draws[name] = draw
        return landscape.total(name, values, (name,))[1][name]

    def then(self, name: str, values: Values) -> Values:
        """Return where everything stood when problem `name` took its steps, for the others at
        `values`.
        """
        found = dict(values)
        for other, shift in self._shifts[name].items():
            pairs = zip(values[other], shift, strict=True)
            found[other] = tuple(v - s.to(v.dtype) for v, s in pairs)
        return found

    def _moved_since(self, q: Problem) -> dict[str, Tensors]:
        """Return by how much each problem that moves between the last step of `q` and the checked
        problem's is taken to have moved.
        """
        if self.without == "problems":
            return {}
        moving = [
            a.name
            for a in self._graph.role(q).moving
            if a.name not in (self.name, *self.felt[q.name])
        ]
        return {
            name: scale(
                SHIFT * step_length(self._narrow[name], 1.0),
                unit(self._narrow[name], self.settings.seed + 1),
            )
            for name in moving
        }

    def _signs(self, q: Problem) -> list[float]:
        """Return -1 for each parameter that the optimizer of `q` maximises over, else 1."""
        options = q.options()
        if self.without == "signs":
            return [1.0 for _ in options]
        return [-1.0 if o.get("maximize") else 1.0 for o in options]

    # Losses.

    def _pass(
        self, name: str, values: Values, draw: Draw, wanted: Sequence[str]
    ) -> tuple[float, Gradient]:
        """Return the mean loss of a problem on a draw at `values` and its gradient for the problems
        `wanted`, in the type of the references.
        """
        used = {k: leaves(v) if k in wanted else detach(v) for k, v in values.items()}
        placed = tuple(t for k in used for t in self._graph[k].parameters)
        known = {id(t) for t in placed} if self._wide else self._others
        others = [pair for key, pair in self._others.items() if key not in known]
        inputs = tuple(t for w in wanted for t in used[w])
        devices = self.devices if self._wide else ()
        loss, pieces = 0.0, []
        for batch, state, buffers in zip(
            draw.batches, draw.random_states, draw.buffers, strict=True
        ):
            objective = ModuleObjective(
                space=self._graph.space,
                upper=(),
                lower=placed,
                loss=self._graph[name].loss,
                batch=batch,
                random_state=state,
                autocast=None if self._wide else self.precision,
                name=name,
                held=tuple(t for t, _ in others),
                values=tuple(v for _, v in others),
                buffers=buffers,
                copies=True,
            )
            with full_precision(devices), objective.scope((), _flat(used)) as evaluate:
                value = evaluate()
                loss += float(value.detach()) / len(draw.batches)
                pieces.append(pulled_back((value,), inputs, (torch.ones_like(value),)))
        return loss, mean(pieces)

    def _first_draw(self, p: Problem) -> Draw:
        """Return what the references of `p` are evaluated on: the batches of its first step, or,
        where a method differentiates steps, of its last.
        """
        batches = self.batches_of(p.name, p.steps)
        states = [self.states[p.name]]
        with states[0].replay(), torch.no_grad(), self._graph.space.substituted((), ()):
            for batch in batches[:-1]:
                p.loss(fresh(batch))
                states.append(RandomState.capture(self.devices, p.generators))
        return Draw(batches, tuple(states), (self._buffers,) * len(batches), 0)

    def batches_of(self, name: str, step: int) -> tuple[Any, ...]:
        """Return copies of the batches of a step of problem `name`, counted from 1."""
        share, known = self._chosen.shares[name], self._chosen.batches[name]
        first = 0 if self.claims.get(name, Claim.SOLUTION) is Claim.SOLUTION else (step - 1) * share
        return tuple(fresh(known[(first + i) % len(known)]) for i in range(share))

    def _widen(self, values: Values) -> None:
        """Evaluate in float64 from now on if the losses agree to do so; else note why not."""
        kept = self._buffers, self._others, self.draws
        narrow = {name: self.evaluate(name, values, ())[0] for name in self.draws}
        self._wide = True
        self._buffers = {i: _wide(b) for i, b in self._buffers.items()}
        self._others = {key: (p, _wide(v)) for key, (p, v) in self._others.items()}
        self.draws = {name: self.cast_draw(draw) for name, draw in self.draws.items()}
        reason = None
        for name, value in narrow.items():
            try:
                wide = self.evaluate(name, self.cast(values), ())[0]
            except (RuntimeError, TypeError, ValueError) as error:
                reason = f"the loss of {name!r} raises {str(error).splitlines()[0]!r}"
                break
            if not math.isclose(wide, value, rel_tol=1e-2, abs_tol=1e-3):
                reason = f"the loss of {name!r} is {wide:.4g} in float64 and {value:.4g} without"
                break
        if reason is not None:
            self._wide = False
            self._buffers, self._others, self.draws = kept
            self.notes.append(f"the references are not computed in float64: {reason}")

    def cast(self, values: Values) -> dict[str, Tensors]:
        """Return `values` in the type that the references are computed in."""
        return {k: tuple(_wide(t) if self._wide else t for t in v) for k, v in values.items()}

    def cast_draw(self, draw: Draw) -> Draw:
        """Return `draw` in the type that the references are computed in, with all buffers."""
        buffers: list[Mapping[int, Tensor]] = [{**self._buffers, **known} for known in draw.buffers]
        batches = draw.batches
        if self._wide:
            buffers = [{i: _wide(b) for i, b in known.items()} for known in buffers]
            batches = tuple(_wide(b) for b in batches)
        return replace(draw, batches=batches, buffers=tuple(buffers))

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
        self._twin.place(subject.then(name, values))
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
        end = values[name] if steps == "none" else subject.cast({name: _copies(q.parameters)})[name]
        return Stand(end, subject.again(q, values, end, taken, self._landscape))

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
        subject.draws[p.name] = subject.cast_draw(total.draw)
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
            here = {**values, **self._subject.cast({name: _copies(q.parameters)})}
            settled = self._landscape.settle(felt, here)
            for r in reversed(felt):
                self._inside[r] = self.take(r, settled, "none").end
            self._twin.place(self._subject.then(name, settled))

    def _hand(self, name: str, step: int) -> None:
        self._engine.graph.streams[name].hand(self._subject.batches_of(name, step))


def _copies(x: Sequence[Tensor]) -> Tensors:
    return tuple(t.detach().clone() for t in x)


def _flat(values: Values) -> Tensors:
    return tuple(t for v in values.values() for t in v)


def _wide(batch: Any) -> Any:
    """Return `batch` with its floating-point tensors in float64."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, MutableMapping):
        widened = copy.copy(batch)
        widened.update({k: _wide(v) for k, v in batch.items()})
        return widened
    if isinstance(batch, (list, tuple)):
        items = [_wide(v) for v in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch
