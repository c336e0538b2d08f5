"""Total gradients over a problem graph: adjoints accumulated bottom-up, one response of each
problem.

With ``a_q`` the adjoint of problem `q` (the derivative of the loss above with respect to its
parameters),

    a_q = df/d(theta_q) + sum over problems r below q:  (d theta_r*/d theta_q)^T a_r.

Problems are visited from the bottom; each adds its response to the adjoints of the problems above
that its solution depends on. Paths merge by addition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from blo.derivatives.lower import Point
from blo.derivatives.objective import Objective
from blo.evaluation import ModuleObjective
from blo.graph import ProblemGraph
from blo.linear.tensors import Tensors, add, detach, zeros_like
from blo.methods.attached import Attachable, AttachedObjective, Solved
from blo.methods.context import Context, Info
from blo.problem import Problem
from blo.record import Draw, Step
from blo.steps.history import History, LowerStep


def total_gradient(
    graph: ProblemGraph,
    problem: Problem,
    direct: Mapping[str, Tensors],
    draw: Draw,
    steps: Mapping[str, Step],
    states: dict[str, Tensors | None],
    precision: torch.dtype | None,
) -> tuple[Tensors, dict[str, Info]]:
    """Return the gradient of the loss of `problem` with the response of every problem below, and
    how each was computed.

    Args:
        graph: the problems.
        problem: the one whose gradient is wanted.
        direct: partial derivatives of its loss, by problem: its own and those of the problems
            below; None where there is none.
        draw: what its loss was evaluated on.
        steps: the last update of each problem below.
        states: the methods' states by "problem <- lower problem"; updated in place.
        precision: autocast type.
    """
    adjoints = dict(direct)
    responding = graph.responding(problem)
    movable = {problem.name, *(q.name for q in responding)}
    infos = {}
    entry = graph.entry(problem)
    for q in reversed(responding):
        cotangent = adjoints.get(q.name)
        sources = tuple(a for a in graph.inputs(q) if a.name in movable)
        if q is entry:
            cotangent = zeros_like(q.parameters)
            sources = sources if problem in sources else (problem, *sources)
        if cotangent is None:
            continue
        context = _context(graph, q, sources, steps, precision)
        if q.method.requirements.readers and entry in (None, q):
            readers = _losses(graph, problem, sources, q.parameters, draw, precision)
            context = replace(context, readers=readers)
        key = f"{problem.name} <- {q.name}"
        value, states[key], info = q.method.response(context, cotangent, states.get(key))
        infos[key] = info.on_batches(steps[q.name].draw.numbers)
        for a in sources:
            mine, value = value[: len(a.parameters)], value[len(a.parameters) :]
            present = adjoints.get(a.name)
            adjoints[a.name] = mine if present is None else add(present, mine)
    if problem.name not in adjoints:
        raise RuntimeError(
            f"no gradient reached problem {problem.name!r}: its loss depends neither on its own "
            "parameters nor, on these batches, on a lower solution that responds to them"
        )
    return adjoints[problem.name], infos


def _context(
    graph: ProblemGraph,
    q: Problem,
    sources: tuple[Problem, ...],
    steps: Mapping[str, Step],
    precision: torch.dtype | None,
    held: Mapping[str, Tensors] = MappingProxyType({}),
    anchors: Mapping[str, Tensors] | None = MappingProxyType({}),
) -> Context:
    """Return problem `q` as its method sees it, a function of the parameters of `sources` and its
    own. Problems in `held` stand at other values than those of now; the `anchors` are the values
    around which solutions below move with the others, None where they do not move.
    """
    step = steps[q.name]
    upper = tuple(t for a in sources for t in a.parameters)
    after = Point(detach(upper), held.get(q.name, detach(q.parameters)))
    before = after
    if step.lower is not None:
        pieces = [step.upper.get(a.name, detach(a.parameters)) for a in sources]
        known = step.upper_gradient
        gradient = (
            tuple(t for a in sources for t in known[a.name])
            if all(a.name in known for a in sources)
            else None
        )
        flat = tuple(t for piece in pieces for t in piece)
        before = Point(flat, step.lower, gradient, step.lower_gradient)
    if anchors is not None:
        around = before if q.method.requirements.before else after
        anchors = {**_by_problem(sources, around.upper), q.name: around.lower, **anchors}
    return Context(
        objectives=_objectives(graph, q, sources, step.draw, steps, precision, held, anchors),
        after=after,
        before=before,
        learning_rates=step.learning_rates,
        weight_decay=q.coupled_weight_decay(),
        sign=q.sign(),
        history=_history(graph, q, sources, steps, precision),
    )


def _history(
    graph: ProblemGraph,
    q: Problem,
    sources: tuple[Problem, ...],
    steps: Mapping[str, Step],
    precision: torch.dtype | None,
) -> History | None:
    past = steps[q.name].past
    if past is None:
        return None
    moving = {a.name for a in sources}
    above = {name: v for name, v in steps[q.name].upper.items() if name not in moving}
    taken = []
    for update in past.updates:
        then, held = {**steps, **update.below_steps}, {**above, **update.below}
        objectives = _objectives(graph, q, sources, update.draw, then, precision, held, None)
        taken.append(
            LowerStep(objectives, update.options, update.received, update.lower, update.states)
        )
    return History(type(q.optimizer), past.lower, past.states, tuple(taken))


def _objectives(
    graph: ProblemGraph,
    q: Problem,
    sources: tuple[Problem, ...],
    draw: Draw,
    steps: Mapping[str, Step],
    precision: torch.dtype | None,
    held: Mapping[str, Tensors],
    anchors: Mapping[str, Tensors] | None,
) -> tuple[Objective, ...]:
    """Return the loss of `q` on each batch of `draw`, the solutions below it attached if it sees
    them responding, problems in `held` at those values; see `_context` for the anchors.
    """
    below = graph.responding(q, (*sources, q)) if q.through_response else ()
    known = [*sources, q]
    attached = []
    for r in below:
        inputs = tuple(a for a in graph.inputs(r) if a in known)
        if not isinstance(r.method, Attachable):
            raise TypeError(
                f"problem {q.name!r} reads {r.name!r} below it, and sees its response only by an "
                "implicit, one-step or unrolling method; "
                f"{r.name!r} has {r.method!r}. Give it one such as cg(10), or set "
                f"through_response=False on {q.name!r}"
            )
        anchor = None
        if anchors is not None:
            anchor = tuple(t for a in inputs for t in anchors.get(a.name, detach(a.parameters)))
        context = _context(graph, r, inputs, steps, precision, held, anchors)
        solved = Solved(context, r.method, anchor)
        attached.append((solved, _positions(known, inputs)))
        known.append(r)
    lower = q.parameters + tuple(t for r in below for t in r.parameters)
    fixed = {graph[name]: v for name, v in held.items() if graph[name] not in known}
    bases = _losses(graph, q, sources, lower, draw, precision, fixed)
    if not attached:
        return bases
    return tuple(AttachedObjective(base, tuple(attached)) for base in bases)


def _losses(
    graph: ProblemGraph,
    problem: Problem,
    sources: tuple[Problem, ...],
    lower: tuple[Tensor, ...],
    draw: Draw,
    precision: torch.dtype | None,
    held: Mapping[Problem, Tensors] = MappingProxyType({}),
) -> tuple[Objective, ...]:
    """Return the plain loss of `problem` on each batch of `draw`, a function of the parameters of
    `sources` and of `lower`, problems in `held` at those values.
    """
    upper = tuple(t for a in sources for t in a.parameters)
    fixed = tuple(t for p in held for t in p.parameters)
    values = tuple(t for v in held.values() for t in v)
    return tuple(
        ModuleObjective(
            graph.space,
            upper,
            lower,
            problem.loss,
            batch,
            random_state,
            precision,
            problem.name,
            fixed,
            values,
        )
        for batch, random_state in zip(draw.batches, draw.random_states, strict=True)
    )


def _by_problem(problems: tuple[Problem, ...], flat: Tensors) -> dict[str, Tensors]:
    """Return the values in `flat` by the problem whose parameters they stand for."""
    values = {}
    for p in problems:
        values[p.name], flat = flat[: len(p.parameters)], flat[len(p.parameters) :]
    return values


def _positions(known: list[Problem], inputs: tuple[Problem, ...]) -> tuple[int, ...]:
    """Return the positions of the parameters of `inputs` among those of `known`."""
    start, positions = 0, {}
    for p in known:
        positions[p.name] = range(start, start + len(p.parameters))
        start += len(p.parameters)
    return tuple(i for p in inputs for i in positions[p.name])
