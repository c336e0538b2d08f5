"""Which problem reads which, checked once, and the order of updates as plain data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from blo import soundness
from blo.evaluation import ParameterSpace
from blo.methods.context import Requirements
from blo.probe import probe
from blo.problem import Problem
from blo.streams import BatchStream


class Update(NamedTuple):
    """One update in a round: `problem` takes its step number `step` (1-based) since the problems
    above it took theirs.

    `last` says that the problems above come next, so that this step's batch and point are kept for
    their hypergradients.
    """

    problem: str
    step: int
    last: bool


@dataclass(frozen=True)
class Role:
    """What a problem is to the others, derived from who reads whom.

    Attributes:
        inputs: the problems above that its solution depends on directly, top to bottom.
        felt: the problems below whose solutions its loss depends on, itself or through others.
        responding: those of them that move with it: one response is taken of each.
        moving: the other problems that its recorded updates depend on and that move before its
            response is asked for; they are remembered where they stood.
        reused: the problems above whose gradients its method takes over from the lower step.
        unread: the problems that its loss may still turn out to read.
        needs: what its method needs recorded.
        reads_again: whether a problem below evaluates its loss again.
        differentiable: whether its loss has a gradient.
    """

    inputs: tuple[Problem, ...]
    felt: tuple[Problem, ...]
    responding: tuple[Problem, ...]
    moving: tuple[Problem, ...]
    reused: tuple[Problem, ...]
    unread: tuple[Problem, ...]
    needs: Requirements
    reads_again: bool
    differentiable: bool

    @property
    def answers(self) -> bool:
        """Whether a problem above asks for its response."""
        return bool(self.inputs)


class ProblemGraph:
    """Problems from top to bottom.

    A problem that reads one above it responds to it by its `method`; the problem above receives the
    hypergradient. A problem may read problems above and below it. Problems that stand side by side
    (in a tuple) have no order and must not read each other.

    Args:
        problems: top to bottom; a tuple or list inside the sequence holds problems side by side.

    Attributes:
        changes: the numbers in `space` of the buffers that each loss changes, by problem.

    Raises:
        ValueError: if the problems cannot be solved together, naming the problem and the remedy:
            names, parameters or memory used twice, parameters outside the modules, declared reads
            that are not there, a hypergradient that reaches nobody.

    Example:
        >>> import torch
        >>> from blo import Problem
        >>> x, y = (torch.nn.ParameterList([torch.tensor(value)]) for value in (1.0, 2.0))
        >>> f, g = lambda _: 0.5 * (y[0] - 1) ** 2, lambda _: (y[0] - 3 * x[0]) ** 2
        >>> upper = Problem("upper", f, x, torch.optim.SGD(x.parameters(), 0.1), [None])
        >>> lower = Problem("lower", g, y, torch.optim.SGD(y.parameters(), 0.5), [None])
        >>> print(ProblemGraph([upper, lower]))
        upper: 1 parameters; reads lower
           lower: 1 parameters, 1 step an update above; reads upper, lower; responds by ...
    """

    def __init__(self, problems: Sequence[Problem | Sequence[Problem]]) -> None:
        levels = soundness.levels_of(problems)
        self.problems: tuple[Problem, ...] = tuple(p for level in levels for p in level)
        self._by_name = {p.name: p for p in self.problems}
        self._level = {p.name: i for i, level in enumerate(levels) for p in level}
        self.space = ParameterSpace(dict.fromkeys(m for p in self.problems for m in p.modules))
        soundness.check_names(self.problems)
        soundness.check_parameters(self.problems, self.space)
        self._entries: dict[str, Problem] = {}
        self.changes: dict[str, tuple[int, ...]] = {p.name: () for p in self.problems}
        self.streams = {p.name: BatchStream(p.batches, p.name) for p in self.problems}
        soundness.refuse_shared(self.problems, self.streams)
        self._unprobed = {p.name for p in self.problems if p.batches is None}
        self.reads: dict[str, tuple[str, ...]] = {
            p.name: (p.name,) if p.batches is None else self._probe(p, self.streams[p.name].peek())
            for p in self.problems
        }
        soundness.check_declared(self)
        for p in self.problems:
            names = {*self.reads[p.name], *(p.reads or ())}
            self.reads[p.name] = tuple(q.name for q in self.problems if q.name in names)
        soundness.check_order(self)
        soundness.check_entries(self)
        soundness.check_reach(self)
        soundness.refuse_sharded(self, self.space)
        soundness.warn_of_constant_responses(self)
        soundness.warn_of_constant_steps(self)
        self._derive()

    def __getitem__(self, name: str) -> Problem:
        """Return the problem called `name`."""
        return self._by_name[name]

    def __deepcopy__(self, memo: object) -> NoReturn:
        """Refuse: losses are functions of the modules that they were written with."""
        raise TypeError(
            "a ProblemGraph or an Engine cannot be copied by copy.deepcopy: its losses would go on "
            "using the modules of the first; make the problems again from copies of the modules, "
            "or keep a state by engine.state_dict()"
        )

    @property
    def top(self) -> Problem:
        """The first problem; a round ends with its update."""
        return self.problems[0]

    def role(self, problem: Problem) -> Role:
        """Return what `problem` is to the others."""
        return self._roles[problem.name]

    def add_read(self, problem: Problem, others: Iterable[Problem]) -> None:
        """Note that the loss of `problem` turned out to depend on others beside those known.

        Raises:
            ValueError: if the problems cannot be solved together then.
        """
        names = {*self.reads[problem.name], *(q.name for q in others)}
        self.reads[problem.name] = tuple(p.name for p in self.problems if p.name in names)
        soundness.check_declared(self)
        soundness.check_order(self)
        soundness.check_reach(self)
        soundness.warn_of_constant_responses(self)
        self._derive()

    def probe(self, problem: Problem, batch: Any) -> None:
        """See what the loss of a problem whose batches are handed in does, on the first of them:
        what it reads and what it changes. Nothing happens where that is known.

        Raises:
            ValueError: if it depends on a problem that its `reads` do not name, or on none.
        """
        if problem.name not in self._unprobed:
            return
        found = self._probe(problem, batch)
        if problem.name in self._entries:
            raise ValueError(
                f"the loss of problem {problem.name!r} has no gradient, which must be known when "
                "the graph is made: give the Problem batches"
            )
        self._unprobed.discard(problem.name)
        self.add_read(problem, (self[name] for name in found))

    def check_unchanged(self) -> None:
        """Raise unless optimizers and modules hold the parameters that they held at first, and no
        hook of a parameter changes its gradient where a hypergradient depends on it.

        Raises:
            RuntimeError: naming the problem, and the parameter that was added, frozen, set free,
                replaced or given a hook.
        """
        for problem in self.problems:
            problem.check_parameters()
            role = self.role(problem)
            if role.responding or (role.answers and role.needs.responds):
                problem.check_hooks()
        soundness.refuse_replaced(self.problems, self.space)

    def set_reads(self, reads: Mapping[str, Sequence[str]]) -> None:
        """Put what `add_read` may have changed: who reads whom, by name."""
        if self.reads != reads:
            self.reads = {name: tuple(others) for name, others in reads.items()}
            self._derive()

    def over(self, problems: Sequence[Problem], space: ParameterSpace) -> ProblemGraph:
        """Return this graph of other problems of the same names, which read each other as is known
        of these; no loss is probed.
        """
        twin = copy.copy(self)
        twin.problems, twin.space = tuple(problems), space
        twin._by_name = {p.name: p for p in problems}
        twin._entries = {name: twin._by_name[q.name] for name, q in self._entries.items()}
        twin._unprobed = set(self._unprobed)
        twin.streams = {p.name: BatchStream(p.batches, p.name) for p in problems}
        twin.reads, twin.changes = dict(self.reads), dict(self.changes)
        twin._derive()
        return twin

    def _derive(self) -> None:
        """Work out depths, the order of updates and roles from who reads whom."""
        self._depth = self._depths()
        self._order = tuple(self._block(0))
        self._roles = {p.name: self._role(p) for p in self.problems}

    def _role(self, problem: Problem) -> Role:
        responding, inputs = self.responding(problem), self.inputs(problem)
        needs = problem.method.requirements
        reused = inputs if needs.upper_gradient and not self.below(problem) else ()
        known = {problem.name, *self.reads[problem.name]}
        return Role(
            inputs=inputs,
            felt=self.felt(problem),
            responding=responding,
            moving=self._moving(problem) if needs.before or needs.history != 0 else (),
            reused=reused,
            unread=tuple(p for p in self.problems if p.name not in known),
            needs=needs,
            reads_again=any(q.method.requirements.readers for q in responding),
            differentiable=self.entry(problem) is None,
        )

    def _moving(self, problem: Problem) -> tuple[Problem, ...]:
        """Return the other problems that the recorded updates of `problem` depend on and that take
        a step between the first of them and the next time that it is recorded.

        The top problem's step ends the round, after all responses.
        """
        length = problem.method.requirements.history
        first = problem.steps
        if length != 0:
            first = 1 if length is None else max(1, problem.steps - length + 1)
        moved: set[str] = set()
        recorded = False
        for update in self._order:
            if update.problem == problem.name:
                recorded = update.step >= first
            elif recorded:
                moved.add(update.problem)
        seen = {*self.reads[problem.name], *(a.name for a in self.inputs(problem))}
        for r in self.underneath(problem):
            if r.name in seen or r in self.felt(problem):
                seen |= {r.name, *self.reads[r.name], *(a.name for a in self.inputs(r))}
        seen -= {problem.name, self.top.name}
        return tuple(p for p in self.problems if p.name in seen & moved)

    def above(self, problem: Problem) -> tuple[Problem, ...]:
        """Return the problems above that the loss of `problem` reads, top to bottom."""
        read = self.reads[problem.name]
        return tuple(q for q in self.problems if q.name in read and self._is_above(q, problem))

    def below(self, problem: Problem) -> tuple[Problem, ...]:
        """Return the problems below that the loss of `problem` reads, top to bottom."""
        read = self.reads[problem.name]
        return tuple(q for q in self.problems if q.name in read and self._is_above(problem, q))

    def felt(self, problem: Problem) -> tuple[Problem, ...]:
        """Return the problems below whose solutions the loss of `problem` depends on, itself or
        through other solutions.
        """
        names = {q.name for q in self.below(problem)}
        for q in reversed(self.underneath(problem)):
            if q.name in names:
                names |= {a.name for a in self.inputs(q) if self._is_above(problem, a)}
        return tuple(q for q in self.underneath(problem) if q.name in names)

    def inputs(self, problem: Problem) -> tuple[Problem, ...]:
        """Return the problems above that the solution of `problem` depends on directly, top to
        bottom.

        These are the ones its loss reads, and those that reach it through the solutions below that
        it sees responding.
        """
        names = {q.name for q in self.above(problem)}
        if problem.through_response:
            names |= {a.name for r in self.felt(problem) for a in self.inputs(r)}
        return tuple(q for q in self.problems if q.name in names and self._is_above(q, problem))

    def responding(
        self, problem: Problem, sources: Sequence[Problem] | None = None
    ) -> tuple[Problem, ...]:
        """Return the problems below that `problem` feels and that move with the `sources`, top to
        bottom.

        With the problem itself as the only source (the default) these carry its hypergradient: one
        response is taken of each.
        """
        moved = {p.name for p in (sources or (problem,))}
        for q in self.underneath(problem):
            if any(a.name in moved for a in self.inputs(q)):
                moved.add(q.name)
        return tuple(q for q in self.felt(problem) if q.name in moved)

    def entry(self, problem: Problem) -> Problem | None:
        """Return the problem below by whose zeroth-order method the loss of `problem`, which has no
        gradient, is differentiated; None if it has a gradient.
        """
        return self._entries.get(problem.name)

    def schedule(self) -> tuple[Update, ...]:
        """Return the updates of one round, in order.

        Problems of the same depth (the longest chain down to them of problems that read each other
        or depend on each other's solutions) advance together; between two of their updates the next
        depth runs through all its steps.
        """
        return self._order

    def _block(self, depth: int) -> Iterable[Update]:
        here = [p for p in self.problems if self._depth[p.name] == depth]
        for t in range(1, max((p.steps for p in here), default=0) + 1):
            yield from self._block(depth + 1)
            for p in here:
                if t <= p.steps:
                    yield Update(p.name, t, last=t == p.steps)

    def __str__(self) -> str:
        """Return the problems as a tree, top to bottom, with their reads."""
        lines = []
        for p in self.problems:
            size = sum(t.numel() for t in p.parameters)
            reads = ", ".join(self.reads[p.name]) or "nothing else"
            pace = "" if p is self.top else f", {p.steps} step{'s' * (p.steps > 1)} an update above"
            how = "" if p is self.top else f"; responds by {p.method!r}"
            indent = "   " * self._depth[p.name]
            lines.append(f"{indent}{p.name}: {size:,} parameters{pace}; reads {reads}{how}")
        return "\n".join(lines)

    def underneath(self, problem: Problem) -> tuple[Problem, ...]:
        """Return all problems on the levels below `problem`, top to bottom."""
        return tuple(q for q in self.problems if self._is_above(problem, q))

    def level(self, problem: Problem) -> int:
        """Return the number of the level of `problem`; the top's is 0."""
        return self._level[problem.name]

    def _is_above(self, p: Problem, q: Problem) -> bool:
        return self._level[p.name] < self._level[q.name]

    def _probe(self, problem: Problem, batch: Any) -> tuple[str, ...]:
        """Return the names of the problems that the loss reads on `batch`, its first, and note what
        it changes and draws from.
        """
        seen = probe(problem, self.problems, self.space, batch)
        problem.edits_batch, self.changes[problem.name], problem.draws = seen[1:]
        return self._declared(problem) if seen.reads is None else seen.reads

    def _declared(self, problem: Problem) -> tuple[str, ...]:
        """Return the reads of a problem whose loss has no gradient, and keep the problem that it is
        differentiated by: the lowest of them, which must have a zeroth-order method.
        """
        declared = [p for p in self.underneath(problem) if p.name in (problem.reads or ())]
        if not declared or not declared[-1].method.requirements.zeroth_order:
            raise ValueError(
                f"the loss of problem {problem.name!r} depends on no parameter of the graph; "
                "check for no_grad(), detach() or .item() in it. A loss that has no gradient, such "
                "as an accuracy, needs reads=[...] and method=evolution() on the lowest problem "
                "in it"
            )
        self._entries[problem.name] = declared[-1]
        return tuple(p.name for p in self.problems if p.name in (problem.reads or ()))

    def _depths(self) -> dict[str, int]:
        """Return the length of the longest chain of problems down to each, of which one reads the
        other or depends on its solution.
        """
        depth: dict[str, int] = {}
        for q in self.problems:
            linked = [
                depth[p.name]
                for p in self.problems
                if self._is_above(p, q)
                and (
                    p.name in self.reads[q.name]
                    or q.name in self.reads[p.name]
                    or q in self.felt(p)
                    or p in self.inputs(q)
                )
            ]
            depth[q.name] = 1 + max(linked) if linked else (0 if q is self.top else 1)
        return depth
