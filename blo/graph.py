"""Which problem reads which, checked once, and the order of updates as plain data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blo.batches import BatchStream, edited, fresh, to_device, versions
from blo.derivatives.objective import scalar
from blo.derivatives.pullback import pulled_back
from blo.derivatives.random_state import RandomState
from blo.evaluation import ParameterSpace
from blo.linear.tensors import Tensors, leaves
from blo.methods.alternating import Alternating
from blo.problem import Problem


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
        reads_again: whether a problem below evaluates its loss again.
        differentiable: whether its loss has a gradient.
    """

    inputs: tuple[Problem, ...]
    felt: tuple[Problem, ...]
    responding: tuple[Problem, ...]
    moving: tuple[Problem, ...]
    reused: tuple[Problem, ...]
    unread: tuple[Problem, ...]
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

    Raises:
        ValueError: if the problems cannot be solved together, naming the problem and the remedy:
            names or parameters used twice, parameters outside the modules, declared reads that are
            not there, a hypergradient that reaches nobody.

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
        levels = [(p,) if isinstance(p, Problem) else tuple(p) for p in problems]
        self.problems: tuple[Problem, ...] = tuple(p for level in levels for p in level)
        if not self.problems:
            raise ValueError("problems must hold at least one Problem, got none")
        for p in self.problems:
            if not isinstance(p, Problem):
                raise TypeError(f"problems must hold Problem objects, got {p!r}")
        if len(levels[0]) > 1 or self.top.steps != 1:
            raise ValueError(
                "the first level must be one problem with steps=1, since its update ends a round; "
                "got " + ", ".join(f"{p.name!r} with steps={p.steps}" for p in levels[0])
            )
        self._by_name = {p.name: p for p in self.problems}
        self._level = {p.name: i for i, level in enumerate(levels) for p in level}
        self.space = ParameterSpace(dict.fromkeys(m for p in self.problems for m in p.modules))
        self._check_names()
        self._check_parameters()
        self._entries: dict[str, Problem] = {}
        self.streams = {p.name: BatchStream(p.batches, p.name) for p in self.problems}
        self._unprobed = {p.name for p in self.problems if p.batches is None}
        self.reads: dict[str, tuple[str, ...]] = {
            p.name: (p.name,) if p.batches is None else self._probe(p, self.streams[p.name].peek())
            for p in self.problems
        }
        self._check_reads()
        for p in self.problems:
            names = {*self.reads[p.name], *(p.reads or ())}
            self.reads[p.name] = tuple(q.name for q in self.problems if q.name in names)
        self._check_order()
        self._check_entries()
        self._check_reach()
        self._check_taken()
        self._derive()

    def __getitem__(self, name: str) -> Problem:
        """Return the problem called `name`."""
        return self._by_name[name]

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
        self._check_reads()
        self._check_order()
        self._check_reach()
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

    def _is_above(self, p: Problem, q: Problem) -> bool:
        return self._level[p.name] < self._level[q.name]

    def _check_names(self) -> None:
        if len(self._by_name) < len(self.problems):
            names = [p.name for p in self.problems]
            twice = next(n for n in names if names.count(n) > 1)
            raise ValueError(f"problem names must be unique, got {twice!r} twice")
        for p in self.problems:
            for name in p.reads or ():
                if name not in self._by_name:
                    raise ValueError(
                        f"reads of problem {p.name!r} names {name!r}, which is not in the graph; "
                        f"it has {list(self._by_name)}"
                    )
                if name == p.name:
                    raise ValueError(
                        f"reads of problem {name!r} names itself; list other problems only"
                    )

    def _check_parameters(self) -> None:
        owner: dict[int, str] = {}
        for p in self.problems:
            for parameter in p.parameters:
                if parameter not in self.space:
                    raise ValueError(
                        f"a parameter of shape {tuple(parameter.shape)} in the optimizer of "
                        f"problem {p.name!r} is in none of the "
                        "graph's modules; parameters live in modules: put it in an nn.Module that "
                        "the loss uses and pass that as module"
                    )
                if id(parameter) in owner:
                    raise ValueError(
                        f"parameter {self.space.names[id(parameter)]!r} is in the optimizers of "
                        f"problems {owner[id(parameter)]!r} "
                        f"and {p.name!r}; each parameter belongs to one problem"
                    )
                owner[id(parameter)] = p.name

    def _probe(self, problem: Problem, batch: Any) -> tuple[str, ...]:
        """Return the names of the problems whose parameters the loss reaches on `batch`, its first.

        The random state and the buffers are as before, and the batch stays in the stream as it was.
        Whether the loss changes its batch in place, and which buffers it changes, is seen on the
        way.

        Raises:
            ValueError: if the loss reaches a parameter that was taken out of its module before:
                products and differences put other values in the modules, which it would not see.
        """
        batch = to_device(batch, problem.device)
        owned = tuple(t for p in self.problems for t in p.parameters)
        devices = dict.fromkeys(t.device for t in owned)
        state = RandomState.capture(devices, problem.generators)
        placed, given = leaves(owned), fresh(batch)
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            state.replay(),
            self.space.substituted(owned, placed),
        ):
            before, seen = versions(given, arrays=True), self.space.versions()
            loss = scalar(problem.loss(given), f"loss of problem {problem.name!r}")
            problem.edits_batch = bool(edited(before))
            problem.changes = self.space.changed(seen)
            if not loss.requires_grad:
                return self._declared(problem)
            ends = (loss, *_ends_of(problem))
            both = pulled_back(ends, placed + owned, tuple(torch.ones_like(t) for t in ends))
        grads, captured = both[: len(owned)], both[len(owned) :]
        for parameter, grad in zip(owned, captured, strict=True):
            if grad is not None:
                raise ValueError(
                    f"the loss of problem {problem.name!r} uses the parameter "
                    f"{self.space.names[id(parameter)]!r} as a tensor taken out of its module "
                    "before, where no other value can be put in its place; take it from the module "
                    "inside the loss (module.weight, or module.parameters() called there)"
                )
        found = []
        for p in self.problems:
            mine, grads = grads[: len(p.parameters)], grads[len(p.parameters) :]
            if any(g is not None for g in mine):
                found.append(p.name)
        return tuple(found)

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

    def _check_entries(self) -> None:
        for name, q in self._entries.items():
            p = self[name]
            if self.inputs(p):
                raise ValueError(
                    f"the loss of problem {name!r} has no gradient, so its solution cannot respond "
                    f"to {[a.name for a in self.inputs(p)]}; only the top of a chain of reads may "
                    "have such a loss"
                )
            responding = self.responding(p)
            if q not in responding:
                raise ValueError(
                    f"the loss of problem {name!r} has no gradient, and problem {q.name!r}, by "
                    f"which it would be differentiated, does not depend on {name!r}; let the loss "
                    f"of {q.name!r} use the parameters of {name!r}"
                )
            seen = (q, *self.inputs(q))
            apart = [r.name for r in self.below(p) if r in responding and r not in seen]
            if apart:
                raise ValueError(
                    f"the loss of problem {name!r} has no gradient and reads {apart}, on which "
                    f"problem {q.name!r} does not depend; it can be differentiated through one "
                    f"chain of problems only: leave them out of its loss, or let {q.name!r} read "
                    "them"
                )

    def _check_reads(self) -> None:
        for p in self.problems:
            others = tuple(n for n in self.reads[p.name] if n != p.name)
            if p.reads is not None and not set(others) <= set(p.reads):
                raise ValueError(
                    f"reads of problem {p.name!r} is {sorted(p.reads)}, but its loss depends on "
                    f"{sorted(others)}; add what is missing to reads, or leave it out"
                )

    def _check_order(self) -> None:
        for p in self.problems:
            for name in self.reads[p.name]:
                if name != p.name and self._level[name] == self._level[p.name]:
                    raise ValueError(
                        f"problems {p.name!r} and {name!r} stand side by side, but {p.name!r} "
                        f"reads {name!r}: without an order that "
                        "is a Nash game, which is not supported; list them one above the other"
                    )

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

    def _check_taken(self) -> None:
        """Warn where a start or an option is a function of problems above, and the method of the
        problem does not differentiate it, or only a part of the steps.
        """
        for p in self.problems:
            needs = p.method.requirements
            if not self.inputs(p):
                continue
            if p.option_functions and "options" not in needs.differentiates:
                warnings.warn(
                    f"options {sorted(p.option_functions)} of problem {p.name!r} are functions, "
                    f"and {p.method!r} leaves out what the solution owes to them; unrolled(), "
                    "forward_mode() and sama() differentiate them",
                    stacklevel=3,
                )
            if p.start is not None and needs.history and needs.history < p.steps:
                warnings.warn(
                    f"problem {p.name!r} has a start, and {p.method!r} differentiates "
                    f"{needs.history} of its {p.steps} steps: what the solution owes to the start "
                    "is left out; take all steps, such as unrolled()",
                    stacklevel=3,
                )

    def _check_reach(self) -> None:
        for p in self.problems:
            below, responding = self.below(p), self.responding(p)
            if p.name not in self.reads[p.name] and not responding:
                raise ValueError(
                    f"no gradient reaches problem {p.name!r}: its loss depends neither on its own "
                    "parameters nor on a problem below "
                    f"that responds to them (it reads {list(self.reads[p.name])}); let a lower "
                    f"loss use the parameters of {p.name!r}"
                )
            deaf = [
                q for q in below if not self.inputs(q) and not isinstance(q.method, Alternating)
            ]
            if deaf and not responding:
                raise ValueError(
                    f"problem {p.name!r} reads {[q.name for q in deaf]} below it, but no problem "
                    f"below depends on {p.name!r}, so there "
                    "is no hypergradient: check for detach() or no_grad() on the parameters of "
                    f"{p.name!r} in the lower loss, or set "
                    "method=alternating() on the lower problem to train them in turns on purpose"
                )
            if p is self.top:
                continue
            if not any(p.name in self.reads[q.name] for q in self.problems if q is not p):
                raise ValueError(
                    f"no other problem reads problem {p.name!r}; remove it from the graph or let a "
                    "loss use its parameters"
                )
            if responding and not p.through_response:
                warnings.warn(
                    f"problem {p.name!r} reads {[q.name for q in below]} below it with "
                    "through_response=False: their response is "
                    "left out of its Hessian, and the hypergradients above it are biased",
                    stacklevel=3,
                )


def _ends_of(problem: Problem) -> Tensors:
    """Return what the lower steps are functions of beside the loss: their start and the options of
    the optimizer.
    """
    ends = [] if problem.start is None else list(problem.start())
    for function in problem.option_functions.values():
        value = function()
        ends += value if isinstance(value, (tuple, list)) else [value]
    return tuple(t for t in ends if isinstance(t, Tensor))
