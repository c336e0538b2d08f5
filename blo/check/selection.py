"""Which problems of a graph a check is about, and on which batches."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from blo.batches import edited, fresh, to_device, versions
from blo.check.subject import Claim
from blo.derivatives.objective import scalar
from blo.derivatives.pullback import pulled_back, reached
from blo.derivatives.random_state import RandomState
from blo.graph import ProblemGraph
from blo.problem import Problem
from blo.streams import BatchStream

MAX_LOOKED = 8  # batches beyond those of a round whose reads are looked at


class Selection:
    """The problems below one whose solutions matter to it, whatever the methods leave out.

    What losses read on some batches only counts: they are looked at on several.

    Args:
        graph: the problems.
        name: of the checked problem.
        given: by problem, what its loss is averaged over.
        states: the random state that each loss is evaluated with.

    Attributes:
        truth: the graph with all reads, and with all responses.
        below: the problems concerned, without the checked one, top to bottom.
        felt: for each problem, those below whose solutions its loss depends on.
        inputs: for each problem, those above that its solution depends on.
        batches: of a round, by problem concerned.
        shares: how many of them make a step.
        late: the reads that the graph does not know of.
        symptoms: what losses do that the graph does not know of.

    Raises:
        ValueError: if no problem below responds, or batches cannot be had.
    """

    def __init__(
        self,
        graph: ProblemGraph,
        name: str,
        given: Mapping[str, Sequence[Any]],
        states: Mapping[str, RandomState],
    ) -> None:
        self.batches: dict[str, tuple[Any, ...]] = {}
        self.shares: dict[str, int] = {}
        self.late: dict[str, list[str]] = {}
        self.symptoms: list[str] = []
        self._states = states
        whole = [copy.copy(p) for p in graph.problems]
        for p in whole:
            p.through_response = True
        self.truth = truth = graph.over(whole, graph.space)
        concerned = {name}
        while waiting := [p for p in graph.problems if p.name in concerned - set(self.batches)]:
            for p in waiting:
                chosen = given.get(p.name)
                self.shares[p.name] = p.accumulate if chosen is None else len(chosen)
                self.batches[p.name] = self._looked_at(p, *_fixed(p, chosen))
            for p in truth.problems:
                if p.name in concerned:
                    concerned |= {q.name for q in truth.felt(p)}
        self.felt = {p.name: tuple(q.name for q in truth.felt(p)) for p in truth.problems}
        self.inputs = {p.name: tuple(a.name for a in truth.inputs(p)) for p in truth.problems}
        self.below = tuple(p.name for p in graph.problems if p.name in concerned - {name})
        if not any(name in self.inputs[other] for other in self.below):
            raise ValueError(
                f"problem {name!r} has no hypergradient to check: no problem below it responds to "
                "it"
            )

    def _looked_at(
        self, p: Problem, batches: tuple[Any, ...], more: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Return the batches of a round, one of them exchanged for one on which the loss reads what
        the graph does not know that it reads; note what it changes in place.
        """
        problems = self.truth.problems
        for i, batch in enumerate((*batches, *more)):
            given = fresh(batch)
            before = versions(given)
            with (
                torch.enable_grad(),
                self._states[p.name].replay(),
                self.truth.space.substituted((), ()),
            ):
                loss = scalar(p.loss(given), f"loss of problem {p.name!r}")
                owned = tuple(t for q in problems for t in q.parameters)
                found = iter(pulled_back((loss,), owned, (torch.ones_like(loss),)))
            if edited(before) and not p.edits_batch and not self.symptoms:
                self.symptoms.append(
                    f"the loss of {p.name!r} changes {', '.join(edited(before))} in place, unknown "
                    "to the engine"
                )
            met = [q for q in problems if reached([next(found) for _ in q.parameters])]
            late = [q.name for q in met if q.name not in self.truth.reads[p.name]]
            if late:
                self.late[p.name] = late
                self.truth.add_read(p, met)
                if i >= len(batches):
                    place = 0 if Claim.of(p.method) is Claim.SOLUTION else -1
                    batches = tuple(batch if b is batches[place] else b for b in batches)
        return batches


def _fixed(
    problem: Problem, chosen: Sequence[Any] | None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the batches that the problem is held on, on its device, and some of the same pass that
    follow.
    """
    more: list[Any] = []
    if chosen is None:
        stream = BatchStream(problem.batches, problem.name)
        if stream.moves_when_read():
            raise ValueError(
                f"the batches of problem {problem.name!r} cannot be iterated without disturbing "
                f"the training: pass some as batches={{{problem.name!r}: [...]}}"
            )
        with stream.undisturbed():
            chosen = [fresh(stream.next()) for _ in range(problem.accumulate * problem.steps)]
            while len(more) < MAX_LOOKED:
                batch = stream.next()
                if stream.epoch > 0:
                    break
                more.append(fresh(batch))
    if not chosen:
        raise ValueError(f"batches must hold at least one batch for problem {problem.name!r}")
    place = problem.device
    return tuple(to_device(b, place) for b in chosen), tuple(to_device(b, place) for b in more)
