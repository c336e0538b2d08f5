"""The problems of an engine as a subject of the check: on fixed batches and random draws, at any
values, the engine itself left alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blo.adjoints import total_gradient
from blo.batches import BatchStream, edited, fresh, to_device, versions
from blo.check.differences import step_length, unit
from blo.check.evidence import coarsest, full_precision, witnessed
from blo.check.landscape import Partials, Values
from blo.check.report import LinearSolve
from blo.check.subject import Claim, Parts, Settings, Stand
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.pullback import Gradient, filled, mean, pulled_back, reached
from blo.derivatives.random_state import devices_of
from blo.engine import Engine
from blo.evaluation import ModuleObjective
from blo.graph import ProblemGraph
from blo.linear.tensors import (
    Tensors,
    detach,
    dot,
    leaves,
    norm,
    scale,
    subtract,
    zeros_like,
)
from blo.methods.context import Context, Method
from blo.methods.implicit import OneStep
from blo.problem import Problem
from blo.record import Draw, Moment
from blo.steps.clipping import clipped
from blo.steps.registry import unwrapped

SHIFT = 0.05  # how far the others had moved since a lower step, relative to their parameters


class _Pass(NamedTuple):
    """A mean loss, its gradients for the parameters asked for, and what the loss left behind."""

    loss: float
    gradient: Gradient
    draw: Draw
    buffers_after: Mapping[int, Tensor]


class EngineSubject:
    """One problem of an engine and those below whose solutions matter to it; see `Subject`.

    Values are put in place for a block; parameters, buffers and optimizers are never edited.
    Optimizer steps are taken by copies of the optimizers, without their hooks.
    """

    def __init__(
        self,
        engine: Engine,
        problem: str | None,
        batches: Mapping[str, Sequence[Any]] | None,
        settings: Settings,
        *,
        still: str | None = None,
    ) -> None:
        graph, chosen = engine.graph, batches or {}
        self._still = still  # "problems" or "buffers": what does not move after the lower steps
        self._engine, self._graph, self._settings = engine, graph, settings
        names = [p.name for p in graph.problems]
        for name in (*chosen, *settings.detached, *(() if problem is None else (problem,))):
            if name not in names:
                raise ValueError(f"the graph has no problem {name!r}; it has {names}")
        checked = graph.top if problem is None else graph[problem]
        self.felt: Mapping[str, tuple[str, ...]]
        self.inputs: Mapping[str, tuple[str, ...]]
        self.felt, self.inputs = reading_order(graph)
        concerned = set(self.felt[checked.name])
        for q in graph.underneath(checked):
            if q.name in concerned:
                concerned |= set(self.felt[q.name])
        self._below = tuple(q for q in graph.underneath(checked) if q.name in concerned)
        if not any(checked.name in self.inputs[q.name] for q in self._below):
            raise ValueError(
                f"problem {checked.name!r} has no hypergradient to check: no problem below it "
                "responds to it"
            )
        self._checked, self.name = checked, checked.name
        self.below = tuple(q.name for q in self._below)
        self.methods: Mapping[str, Method] = {q.name: q.method for q in self._below}
        self.claims: Mapping[str, Claim] = {q.name: Claim.of(q.method) for q in self._below}
        self.notes: list[str] = []
        self.symptoms: list[str] = []
        self.precision = engine.precision
        self.devices = devices_of(t for p in graph.problems for t in p.parameters)
        concerned_problems = (checked, *self._below)
        self._batches = {p.name: _fixed(p, chosen.get(p.name)) for p in concerned_problems}
        self._shares = {
            p.name: len(self._batches[p.name]) if p.name in chosen else p.accumulate
            for p in concerned_problems
        }
        self._states = {
            p.name: settings.random_state(10 + i, self.devices, p.generators)
            for i, p in enumerate(graph.problems)
        }
        self._narrow = {
            p.name: tuple(t.detach().clone() for t in p.parameters) for p in graph.problems
        }
        self._buffers: tuple[Tensor, ...] = tuple(graph.space.buffers())
        self._others = {id(p): (p, p.detach()) for p in graph.space.parameters()}
        self._wide = False
        self._draws = {p.name: self._draw(p, 0) for p in concerned_problems}
        self._shifts = {q.name: self._moved_since(q) for q in self._below}
        moving = [a for shift in self._shifts.values() for a in shift]
        self._here = list(dict.fromkeys((self.name, *self.below, *moving)))
        present = {name: self._narrow[name] for name in self._here}
        self.dtype = coarsest(tuple(t for p in concerned_problems for t in self._narrow[p.name]))
        if self.dtype != torch.float64:
            self._widen(present)
        self.start = self._cast(present)
        self._note_optimizers()

    def reads(self, name: str) -> tuple[str, ...]:
        """Return the problems concerned that a loss depends on; none where it has no gradient."""
        if self._graph.entry(self._graph[name]) is not None:
            return ()
        return tuple(r for r in self._graph.reads[name] if r in (self.name, *self.below))

    def look(self, name: str) -> object:
        """Return a loss with the random numbers of now, and note whether it edits its batch."""
        p, batch = self._graph[name], fresh(self._batches[name][0])
        with self._graph.space.substituted((), ()):
            before = versions(batch)
            loss = p.loss(batch)
        places = edited(before)
        if places and not p.edits_batch:
            found = (
                f"the loss of {name!r} changes {', '.join(places)} in place, unknown to the engine"
            )
            if found not in self.symptoms:
                self.symptoms.append(found)
        return loss

    def evaluate(self, name: str, values: Values, wanted: Sequence[str]) -> tuple[float, Partials]:
        """Return what problem `name` minimises at `values`, and its derivatives for the problems
        `wanted`.

        That is its loss, for the checked problem; for the others with the sign that its optimizer
        gives it and the penalty of coupled weight decay.
        """
        return self._objective(self._graph[name], values, wanted, self._draws[name])

    def suspects(self) -> dict[str, str]:
        """Return what moves between the lower steps and the response, in words, by what `still`
        calls it.
        """
        moved = sorted({name for shift in self._shifts.values() for name in shift})
        changing = [p.name for p in (self._checked, *self._below) if p.changes]
        found = {}
        if moved:
            found["problems"] = f"the problems {moved}, which have moved since then"
        if changing:
            found["buffers"] = f"the buffers that the losses of {changing} change"
        return found

    def solve(self, values: Values) -> dict[str, Tensors] | None:
        """Return None: an engine has no solver of the caller's."""
        return None

    def stand(self, name: str, values: Values, stands: Mapping[str, Stand], *, steps: str) -> Stand:
        """Return where problem `name` ends by its optimizer's steps from `values`."""
        q = self._graph[name]
        history = q.method.requirements.history
        first = 1 if history is None else max(1, q.steps - max(history, 1) + 1)
        narrow = self._as_narrow(values)
        moments = {r: s.moment for r, s in stands.items()}
        if steps == "none":
            moment = self._moment(q, narrow, narrow[name], q.optimizer_states(), moments, q.steps)
            end = values[name]
        else:
            y, states = narrow[name], q.optimizer_states()
            taken: list[Moment] = []
            for t in range(1 if steps == "all" else first, q.steps + 1):
                if t == 1 and q.start is not None:
                    y, states = self._started(q, narrow, y, states)
                moment = self._moment(q, narrow, y, states, moments, t)
                y, states = _stepped(q, y, states, moment)
                if t >= first and history != 0:
                    taken.append(moment)
            if taken:
                moment = _with_history(moment, taken, q)
            end = self._cast({name: y})[name]
        return Stand(end, self._again(q, values, end, moment, first, steps), moment)

    def hypergradient(
        self, values: Values, stands: Mapping[str, Stand], number: int, log: list[LinearSolve]
    ) -> Parts:
        """Return the engine's hypergradient at `values`."""
        p, narrow = self._checked, self._as_narrow(values)
        responding = self._graph.role(p).responding
        draw = self._draw(p, 0, wide=False)
        found = self._pass(p, narrow, draw, (p, *responding), wide=False)
        direct = self._by_problem((p, *responding), found.gradient)
        moments = {r: s.moment for r, s in stands.items()}
        methods = {}
        if number:
            methods = {q.name: witnessed(q.method, q.name, log) for q in self._below}
        states = dict(self._engine.method_states)
        for last in (*(False,) * self._settings.warm_up, True):
            with (
                self._settings.random_state(number if last else 0, self.devices).replay(),
                # Buffers have gone on since the lower steps, as in training.
                self._graph.space.substituted((), (), self._left_behind(stands, found)),
            ):
                value, infos = total_gradient(
                    self._graph,
                    p,
                    direct,
                    found.draw,
                    moments,
                    states,
                    self.precision,
                    values=narrow,
                    methods=methods if last else {},
                )
        mine = direct.get(p.name, zeros_like(p.parameters))
        return Parts(mine, subtract(value, mine), infos)

    def _left_behind(self, stands: Mapping[str, Stand], found: _Pass) -> dict[int, Tensor]:
        buffers: dict[int, Tensor] = {}
        if self._still == "buffers":
            return buffers
        for stand in stands.values():
            buffers |= stand.moment.buffers_after
        return {**buffers, **found.buffers_after}

    # Losses.

    def _draw(self, p: Problem, step: int, *, wide: bool | None = None) -> Draw:
        """Return what the loss of `p` is evaluated on in a step, counted from 0."""
        share, all_batches = self._shares[p.name], self._batches[p.name]
        positions = [(step * share + i) % len(all_batches) for i in range(share)]
        wide = self._wide if wide is None else wide
        chosen = (fresh(all_batches[i]) for i in positions)
        buffers = {
            i: t.double() if wide and t.is_floating_point() else t
            for i, t in self._graph.space.copies_of(p.changes).items()
        }
        return Draw(
            tuple(_wide(b) if wide else b for b in chosen),
            (self._states[p.name],) * share,
            (buffers,) * share,
            positions[0],
        )

    def _pass(
        self, p: Problem, values: Values, draw: Draw, wanted: Sequence[Problem], *, wide: bool
    ) -> _Pass:
        """Return the loss of `p` on a draw at `values`, each batch from the buffers of the one
        before, in float64 and without autocast if `wide`.
        """
        names = [q.name for q in wanted]
        used = {k: leaves(v) if k in names else detach(v) for k, v in values.items()}
        placed = tuple(t for name in used for t in self._graph[name].parameters)
        known = {id(t) for t in placed}
        others = [(t, v) for key, (t, v) in self._others.items() if wide and key not in known]
        inputs = tuple(t for name in names for t in used[name])
        loss, pieces, before = 0.0, [], []
        buffers = draw.buffers[0]
        for batch, state in zip(draw.batches, draw.random_states, strict=True):
            objective = ModuleObjective(
                space=self._graph.space,
                upper=(),
                lower=placed,
                loss=p.loss,
                batch=batch,
                random_state=state,
                autocast=None if wide else self.precision,
                name=p.name,
                held=tuple(t for t, _ in others),
                values=tuple(v for _, v in others),
                buffers=buffers,
                copies=True,
            )
            before.append(buffers)
            with self._surroundings(wide), objective.scope((), _flat(used)) as evaluate:
                value = evaluate()
                loss += float(value.detach()) / len(draw.batches)
                pieces.append(pulled_back((value,), inputs, (torch.ones_like(value),)))
                buffers = self._graph.space.copies_of(p.changes)
        return _Pass(
            loss,
            mean(pieces),
            Draw(draw.batches, draw.random_states, tuple(before), draw.first_batch),
            buffers,
        )

    @contextmanager
    def _surroundings(self, wide: bool) -> Iterator[None]:
        """Run a block with gradients on; if `wide`, without autocast and with wide buffers."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if wide:
                stack.enter_context(full_precision(self.devices))
                stack.enter_context(self._graph.space.with_buffers(self._buffers))
            yield

    def _objective(
        self, p: Problem, values: Values, wanted: Sequence[str], draw: Draw
    ) -> tuple[float, Partials]:
        """Return what `p` minimises, in the type of the references."""
        problems = [self._graph[w] for w in wanted]
        found = self._pass(p, values, draw, problems, wide=True)
        gradient = filled(found.gradient, tuple(t for w in wanted for t in values[w]))
        partials: Partials = {}
        for w in wanted:
            partials[w], gradient = gradient[: len(values[w])], gradient[len(values[w]) :]
        if p is self._checked:
            return found.loss, partials
        options = p.options()
        lower = LowerObjective((), p.weight_decay(options), p.signs(options))
        loss = found.loss * lower.sign
        partials = {w: lower.signed(g) for w, g in partials.items()}
        if lower.decay is not None:
            loss += 0.5 * float(dot(scale(lower.decay, values[p.name]), values[p.name]))
            if p.name in partials:
                partials[p.name] = lower.decayed(partials[p.name], values[p.name])
        return loss, partials

    def _widen(self, values: Values) -> None:
        """Evaluate in float64 from now on if the losses agree to do so; else note why not."""
        kept = self._buffers, self._others, self._draws
        narrow = {name: self.evaluate(name, values, ())[0] for name in self._draws}
        self._wide = True
        self._buffers = tuple(_wide(b) for b in self._buffers)
        self._others = {key: (p, _wide(v)) for key, (p, v) in self._others.items()}
        self._draws = {name: self._draw(self._graph[name], 0) for name in self._draws}
        reason = None
        for name, value in narrow.items():
            try:
                wide = self.evaluate(name, self._cast(values), ())[0]
            except (RuntimeError, TypeError, ValueError) as error:
                reason = f"the loss of {name!r} raises {str(error).splitlines()[0]!r}"
                break
            if not math.isclose(wide, value, rel_tol=1e-2, abs_tol=1e-3):
                reason = f"the loss of {name!r} is {wide:.4g} in float64 and {value:.4g} without"
                break
        if reason is not None:
            self._wide = False
            self._buffers, self._others, self._draws = kept
            self.notes.append(f"the references are not computed in float64: {reason}")

    def _cast(self, values: Values) -> dict[str, Tensors]:
        """Return `values` in the type that the references are computed in."""
        return {k: tuple(_wide(t) if self._wide else t for t in v) for k, v in values.items()}

    def _as_narrow(self, values: Values) -> dict[str, Tensors]:
        """Return `values` in the types of the parameters."""
        return {
            k: tuple(t.to(p.dtype) for t, p in zip(v, self._narrow[k], strict=True))
            for k, v in values.items()
        }

    def _by_problem(self, problems: Sequence[Problem], gradient: Gradient) -> dict[str, Tensors]:
        """Return a gradient by problem, without those that it does not reach."""
        found = {}
        for q in problems:
            mine, gradient = gradient[: len(q.parameters)], gradient[len(q.parameters) :]
            if reached(mine):
                found[q.name] = filled(mine, q.parameters)
        return found

    # Steps.

    def _moved_since(self, q: Problem) -> dict[str, Tensors]:
        """Return by how much each problem that moves between the last step of `q` and the checked
        problem's is taken to have moved.
        """
        return {
            a.name: scale(
                SHIFT * step_length(self._narrow[a.name], 1.0),
                unit(self._narrow[a.name], self._settings.seed + 1),
            )
            for a in self._graph.role(q).moving
            if a is not self._checked and self._still != "problems"
        }

    def _then(self, q: Problem, values: Values) -> dict[str, Tensors]:
        """Return where everything stood when `q` took its steps, for the others at `values`."""
        found = dict(values)
        for name, shift in self._shifts[q.name].items():
            pairs = zip(values[name], shift, strict=True)
            found[name] = tuple(v - s.to(v.dtype) for v, s in pairs)
        return found

    def _moment(
        self,
        q: Problem,
        values: Values,
        lower: Tensors,
        states: tuple[dict[str, Any], ...],
        moments: Mapping[str, Moment],
        step: int,
    ) -> Moment:
        """Return everything that an update of `q` reads, at `lower` with the others at `values`."""
        role, needs = self._graph.role(q), q.method.requirements
        then = {**self._then(q, values), q.name: lower}
        wanted = tuple(dict.fromkeys((q, *role.responding, *role.reused)))
        taken = self._pass(q, then, self._draw(q, step - 1, wide=False), wanted, wide=False)
        by_problem = self._by_problem(wanted, taken.gradient)
        gradient: Gradient = taken.gradient[: len(q.parameters)]
        below = [r for r in role.responding if r.name in by_problem]
        if below:
            names = {q.name, *(r.name for r in below)}
            direct = {k: g for k, g in by_problem.items() if k in names}
            gradient, _ = total_gradient(
                self._graph, q, direct, taken.draw, moments, {}, self.precision, values=then
            )
        recorded = needs.before or needs.history != 0
        draw, after = taken.draw, taken.buffers_after
        if not recorded:  # the response is taken at these buffers
            after = draw.buffers[0]
        return Moment(
            draw=draw,
            options=self._options(q, then),
            received=tuple(g is not None for g in gradient),
            lower=lower if recorded else None,
            states=states if recorded else None,
            values={name: then[name] for name in self._shifts[q.name]},
            below={r.name: moments[r.name] for r in role.felt if r.name in moments},
            buffers_after=after,
            upper_gradient={
                a.name: by_problem.get(a.name, zeros_like(a.parameters)) for a in role.reused
            },
            lower_gradient=filled(gradient, q.parameters) if recorded else None,
        )

    def _again(
        self, q: Problem, base: Values, end: Tensors, moment: Moment, first: int, steps: str
    ) -> Any:
        """Return where what the method of `q` claims leads, as a function of the other problems."""
        if self.claims[q.name] is Claim.SOLUTION:
            return lambda values: values[q.name]
        if self.claims[q.name] is Claim.GRADIENT_STEP:
            method, lower = q.method, moment.lower
            assert isinstance(method, OneStep)
            assert lower is not None
            rates = q.learning_rates(moment.options)
            point = Point(end, end)
            length = method.step(Context(LowerObjective(()), point, point, rates, name=q.name))
            draw = self._draw(q, q.steps - 1)
            before = self._cast({q.name: lower})

            def descent(values: Values) -> Tensors:
                there = {**self._then(q, values), **before}
                gradient = self._objective(q, there, (q.name,), draw)[1][q.name]
                signs = [-1.0 if o.get("maximize") else 1.0 for o in moment.options]
                return scale(signs, gradient) if len(set(signs)) > 1 else gradient

            known = descent({**base, q.name: end})
            return lambda values: subtract(end, scale(length, subtract(descent(values), known)))
        start = (moment.history or (moment,))[0]
        return partial(self._retaken, q, start, first)

    def _retaken(self, q: Problem, start: Moment, first: int, values: Values) -> Tensors:
        """Return where the recorded steps of `q` lead with the others at `values`."""
        assert start.lower is not None
        assert start.states is not None
        then = self._then(q, values)
        y, states = self._cast({q.name: start.lower})[q.name], start.states
        for t in range(first, q.steps + 1):
            if t == 1 and q.start is not None:
                y, states = self._started(q, values, y, states)
            draw = self._draw(q, t - 1)
            gradient = self._pass(q, {**then, q.name: y}, draw, (q,), wide=True).gradient
            moment = Moment(draw, self._options(q, then), (), lower_gradient=None)
            y, states = _stepped(q, y, states, moment, gradient)
        return y

    def _started(
        self, q: Problem, values: Values, y: Tensors, states: tuple[dict[str, Any], ...]
    ) -> tuple[Tensors, tuple[dict[str, Any], ...]]:
        """Return the start of `q` with the others at `values`, and the optimizer's states there."""
        assert q.start is not None
        with self._placed(self._then(q, values)):
            found = tuple(s.detach().to(t.dtype).clone() for s, t in zip(q.start(), y, strict=True))
        return found, states if q.keep_state else tuple({} for _ in y)

    def _options(self, q: Problem, values: Values) -> tuple[dict[str, Any], ...]:
        """Return the optimizer's options with the other problems at `values`."""
        if not q.option_functions:
            return q.options()
        with torch.no_grad(), self._placed(values):
            found = {name: _number(function()) for name, function in q.option_functions.items()}
        return tuple({**options, **found} for options in q.options())

    def _placed(self, values: Values) -> AbstractContextManager[object]:
        parameters = tuple(t for name in values for t in self._graph[name].parameters)
        return self._graph.space.substituted(parameters, _flat(values))

    # What was really run.

    def _note_optimizers(self) -> None:
        """Compare the last real steps with the plain update, and note what the check leaves out."""
        for q in self._below:
            decays = any(g.get("weight_decay") for g in q.optimizer.param_groups)
            if decays and q.weight_decay(q.options()) is None:
                self.notes.append(
                    f"the optimizer of {q.name!r} decays weights beside its loss; the problem that "
                    "is solved again has no such decay"
                )
            signs = q.signs(q.options())
            mixed = signs is not None and len(set(signs)) > 1
            if mixed and self.claims[q.name] is Claim.SOLUTION:
                self.notes.append(
                    f"{q.name!r} is minimised over some tensors and maximised over others: its "
                    "solution is a saddle, which the check cannot solve for again"
                )
            moment = self._engine.recorder.moments.get(q.name)
            compared = moment is not None and self._compare_last_step(q, moment)
            if has_hooks(q.optimizer) and not compared:
                self.notes.append(
                    f"the optimizer of {q.name!r} has hooks, which the check does not run again: "
                    "what they do to gradients or parameters is in no comparison"
                )

    def _compare_last_step(self, q: Problem, moment: Moment) -> bool:
        """Compare where the last real step of `q` led with its plain update, if enough of it was
        kept; add a symptom where they differ.
        """
        states = moment.states
        if moment.lower is None or self._graph.role(q).responding:
            return False
        if states is None:
            kept = [v for state in q.optimizer_states() for v in state.values()]
            if any(isinstance(v, Tensor) and v.dim() for v in kept):
                return False
            states = tuple({} for _ in q.parameters)
        values = {**self._narrow, **moment.values, q.name: moment.lower}
        gradient: Gradient | None = moment.lower_gradient
        if gradient is None:
            gradient = self._pass(q, values, moment.draw, (q,), wide=False).gradient
        plain, _ = _stepped(q, moment.lower, states, moment, gradient)
        now = self._narrow[q.name]
        off, way = float(norm(subtract(now, plain))), float(norm(subtract(plain, moment.lower)))
        eps = torch.finfo(coarsest(now)).eps
        others = {a.name for a in self._graph.role(q).inputs} - set(moment.values)
        if self._graph.top.name in others and moment.lower_gradient is None:
            # The top has moved since: the gradient is that of a neighbouring step.
            top = self._graph.top
            rate = top.learning_rate()
            if rate != 0.0:
                return False
        if off > 1e-2 * way + 64 * eps * float(norm(now)):
            self.symptoms.append(
                f"the optimizer of {q.name!r} did something besides its update (clipping, "
                "projection by a hook, a wrapper, weights set by hand): its last step ends "
                f"{off:.2g} away from the plain one, a way of {way:.2g}; the methods differentiate "
                "the plain one"
            )
        return True


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


def has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether anything is called before or after the optimizer's steps."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return any(len(getattr(optimizer, name, ())) for name in names)


def _stepped(
    q: Problem,
    lower: Tensors,
    states: tuple[dict[str, Any], ...],
    moment: Moment,
    gradient: Gradient | None = None,
) -> tuple[Tensors, tuple[dict[str, Any], ...]]:
    """Return where a copy of the optimizer of `q`, without hooks, goes from `lower` in one step."""
    if gradient is None:
        assert moment.lower_gradient is not None
        known = zip(moment.lower_gradient, moment.received, strict=True)
        gradient = tuple(g if there else None for g, there in known)
    gradient = gradient if q.clip is None else clipped(gradient, q.clip)
    twin = copy.deepcopy(unwrapped(q.optimizer))
    twin.state.clear()
    positions = {id(p): i for i, p in enumerate(q.parameters)}
    fresh_leaves = [y.detach().clone().requires_grad_() for y in lower]
    for group, original in zip(twin.param_groups, q.optimizer.param_groups, strict=True):
        owned = [positions[id(p)] for p in original["params"] if id(p) in positions]
        group["params"] = [fresh_leaves[i] for i in owned]
        for i in owned[:1]:
            group.update({k: copy.deepcopy(v) for k, v in moment.options[i].items()})
    for leaf, state, g in zip(fresh_leaves, states, gradient, strict=True):
        if state:
            twin.state[leaf] = {k: _like(v, leaf) for k, v in state.items()}
        leaf.grad = None if g is None else g.detach().to(leaf.dtype).clone()
    twin.step()
    after = tuple(dict(twin.state.get(leaf, {})) for leaf in fresh_leaves)
    return detach(fresh_leaves), after


def _with_history(moment: Moment, taken: Sequence[Moment], q: Problem) -> Moment:
    """Return the last moment with the recorded ones before it, thinned out as the method asks."""
    stride = q.method.requirements.stride
    every = math.isqrt(len(taken) - 1) + 1 if stride is None else stride
    history = tuple(
        m if i == 0 or (every and i % every == 0) else _without_start(m)
        for i, m in enumerate(taken)
    )
    return replace(moment, history=history)


def _without_start(moment: Moment) -> Moment:
    return replace(moment, lower=None, states=None)


def _like(value: Any, leaf: Tensor) -> Any:
    """Return a copy of an entry of an optimizer's state, in the type of its parameter."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    own = value.detach().clone()
    return own.to(leaf.dtype) if own.is_floating_point() and own.shape == leaf.shape else own


def _fixed(problem: Problem, chosen: Sequence[Any] | None) -> tuple[Any, ...]:
    """Return the batches that the problem is held on, on its device."""
    if chosen is None:
        one_shot = problem.batches is None or iter(problem.batches) is problem.batches
        if one_shot or getattr(problem.batches, "persistent_workers", False):
            raise ValueError(
                f"the batches of problem {problem.name!r} cannot be iterated without disturbing "
                f"the training: pass some as batches={{{problem.name!r}: [...]}}"
            )
        stream = BatchStream(problem.batches, problem.name)
        generators = [(g, g.get_state()) for g in stream.generators().values()]
        chosen = [fresh(stream.next()) for _ in range(problem.accumulate * problem.steps)]
        for generator, state in generators:
            generator.set_state(state)
    if not chosen:
        raise ValueError(f"batches must hold at least one batch for problem {problem.name!r}")
    return tuple(to_device(batch, problem.device) for batch in chosen)


def _flat(values: Values) -> Tensors:
    return tuple(t for v in values.values() for t in v)


def _number(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_number(v) for v in value)
    return float(value) if isinstance(value, Tensor) else value


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
