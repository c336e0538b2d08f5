"""Total gradients over a problem graph: adjoints accumulated bottom-up, one response of each problem.

With ``a_q`` the adjoint of problem `q` (the derivative of the loss above with respect to its parameters),

    a_q = df/d(theta_q) + sum over problems r below q:  (d theta_r*/d theta_q)^T a_r.

Problems are visited from the bottom; each adds its response to the adjoints of the problems above that its solution depends on. Paths
merge by addition.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from blo.evaluation import ModuleObjective
from blo.graph import ProblemGraph
from blo.methods.attached import AttachedObjective, Solved
from blo.methods.context import Context, Info, Point
from blo.methods.implicit import Implicit, OneStep
from blo.methods.objective import Objective
from blo.methods.tensors import Tensors, add, detach
from blo.problem import Problem
from blo.record import Step


def total_gradient(
    graph: ProblemGraph,
    problem: Problem,
    direct: Mapping[str, Tensors | None],
    steps: Mapping[str, Step],
    states: dict[str, Tensors | None],
    precision: torch.dtype | None,
) -> tuple[Tensors | None, dict[str, Info]]:
    """Return the gradient of the loss of `problem` with the response of every problem below, and how each was computed.

    Args:
        graph: the problems.
        problem: the one whose gradient is wanted.
        direct: partial derivatives of its loss, by problem: its own and those of the problems below; None where there is none.
        steps: the last update of each problem below.
        states: the methods' states by "problem <- lower problem"; updated in place.
        precision: autocast type.
    """
    adjoints = dict(direct)
    responding = graph.responding(problem)
    movable = {problem.name, *(q.name for q in responding)}
    infos = {}
    for q in reversed(responding):
        cotangent = adjoints.get(q.name)
        if cotangent is None:
            continue
        sources = tuple(a for a in graph.inputs(q) if a.name in movable)
        context = _context(graph, q, sources, steps, precision)
        key = f"{problem.name} <- {q.name}"
        value, states[key], info = q.method.response(context, cotangent, states.get(key))
        first, n = steps[q.name].first_batch, len(steps[q.name].batches)
        infos[key] = info.on_batches(range(first, first + n))
        for a in sources:
            mine, value = value[: len(a.parameters)], value[len(a.parameters) :]
            present = adjoints.get(a.name)
            adjoints[a.name] = mine if present is None else add(present, mine)
    return adjoints[problem.name], infos


def _context(
    graph: ProblemGraph,
    q: Problem,
    sources: tuple[Problem, ...],
    steps: Mapping[str, Step],
    precision: torch.dtype | None,
) -> Context:
    """Return problem `q` as its method sees it, a function of the parameters of `sources` and its own."""
    step = steps[q.name]
    upper = tuple(t for a in sources for t in a.parameters)
    after = Point(detach(upper), detach(q.parameters))
    before = after
    if step.lower is not None:
        pieces = [step.upper.get(a.name, detach(a.parameters)) for a in sources]
        known = step.upper_gradient
        gradient = (
            tuple(t for a in sources for t in known[a.name])
            if known is not None and all(a.name in known for a in sources)
            else None
        )
        before = Point(tuple(t for piece in pieces for t in piece), step.lower, gradient)
    return Context(
        objectives=_objectives(graph, q, sources, steps, precision),
        after=after,
        before=before,
        learning_rates=step.learning_rates,
        weight_decay=q.coupled_weight_decay(),
        sign=q.sign(),
    )


def _objectives(
    graph: ProblemGraph,
    q: Problem,
    sources: tuple[Problem, ...],
    steps: Mapping[str, Step],
    precision: torch.dtype | None,
) -> tuple[Objective, ...]:
    """Return the loss of `q` on each batch of its last step, the solutions below it attached if it sees them responding."""
    below = graph.responding(q, (*sources, q)) if q.through_response else ()
    known = [*sources, q]
    attached = []
    for r in below:
        inputs = tuple(a for a in graph.inputs(r) if a in known)
        if not isinstance(r.method, (Implicit, OneStep)):
            raise TypeError(
                f"problem {q.name!r} reads {r.name!r} below it, and sees its response only by an implicit or one-step method; "
                f"{r.name!r} has {r.method!r}. Give it one such as cg(10), or set through_response=False on {q.name!r}"
            )
        solved = Solved(_context(graph, r, inputs, steps, precision), r.method)
        attached.append((solved, _positions(known, inputs)))
        known.append(r)
    lower = q.parameters + tuple(t for r in below for t in r.parameters)
    step = steps[q.name]
    bases = [
        ModuleObjective(
            space=graph.space,
            upper=tuple(t for a in sources for t in a.parameters),
            lower=lower,
            loss=q.loss,
            batch=batch,
            random_state=random_state,
            precision=precision,
            name=q.name,
        )
        for batch, random_state in zip(step.batches, step.random_states, strict=True)
    ]
    if not attached:
        return tuple(bases)
    return tuple(AttachedObjective(base, tuple(attached)) for base in bases)


def _positions(known: list[Problem], inputs: tuple[Problem, ...]) -> tuple[int, ...]:
    """Return the positions of the parameters of `inputs` among those of `known`."""
    start, positions = 0, {}
    for p in known:
        positions[p.name] = range(start, start + len(p.parameters))
        start += len(p.parameters)
    return tuple(i for p in inputs for i in positions[p.name])
