"""Problems that cannot be solved together, refused with the remedy; parts of a response that are
left out, warned of.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

from blo.arguments import described
from blo.derivatives.sharded import is_sharded
from blo.evaluation import ParameterSpace
from blo.problem import Problem
from blo.streams import BatchStream


class Related(Protocol):
    """Problems from top to bottom, and who reads whom; see `ProblemGraph`."""

    problems: tuple[Problem, ...]
    reads: dict[str, tuple[str, ...]]

    def __getitem__(self, name: str) -> Problem:
        """Return the problem called `name`."""

    def level(self, problem: Problem) -> int:
        """Return the number of the level of `problem`."""

    def below(self, problem: Problem) -> tuple[Problem, ...]:
        """Return the problems below that the loss of `problem` reads."""

    def inputs(self, problem: Problem) -> tuple[Problem, ...]:
        """Return the problems above that the solution of `problem` depends on."""

    def responding(self, problem: Problem) -> tuple[Problem, ...]:
        """Return the problems below that carry the hypergradient of `problem`."""

    def entry(self, problem: Problem) -> Problem | None:
        """Return the problem by which a loss without gradient is differentiated."""


def levels_of(problems: object) -> list[tuple[Problem, ...]]:
    """Return the problems of each level, top to bottom.

    Raises:
        TypeError: unless they are problems.
        ValueError: unless there are some on each level, and one that takes a single step on the
            first.
    """
    if isinstance(problems, Problem):
        raise TypeError(
            f"problems must be a list of Problem objects, got the Problem {problems.name!r}; write "
            "ProblemGraph([problem])"
        )
    if not isinstance(problems, (list, tuple)):
        raise TypeError(
            "problems must be a list of Problem objects from top to bottom, got "
            f"{described(problems)}; write ProblemGraph([upper, lower])"
        )
    levels = [tuple(p) if isinstance(p, (list, tuple)) else (p,) for p in problems]
    for p in (p for level in levels for p in level):
        if not isinstance(p, Problem):
            raise TypeError(f"problems must hold Problem objects, got {described(p)}")
    if not levels or not all(levels):
        raise ValueError("problems must hold at least one Problem on each level, got none")
    if len(levels[0]) > 1 or levels[0][0].steps != 1:
        raise ValueError(
            "the first level must be one problem with steps=1, since its update ends a round; "
            f"got {', '.join(f'{p.name!r} with steps={p.steps}' for p in levels[0])} (levels are "
            "listed from top to bottom: are they in the wrong order?)"
        )
    return levels


def refuse_shared(problems: Sequence[Problem], streams: Mapping[str, BatchStream]) -> None:
    """Raise ValueError where two problems move one position: batches that keep it themselves."""
    owners: dict[int, str] = {}
    for p in problems:
        if p.batches is None or not streams[p.name].moves_when_read():
            continue
        if owners.setdefault(id(p.batches), p.name) != p.name:
            raise ValueError(
                f"batches of problems {owners[id(p.batches)]!r} and {p.name!r} are one object that "
                "keeps its own position, so that each would take batches from the other; give each "
                "problem a loader of its own"
            )


def check_names(problems: Sequence[Problem]) -> None:
    """Raise unless names are unique, and declared reads are names of other problems."""
    names = [p.name for p in problems]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ValueError(f"problem names must be unique, got {twice!r} twice")
    for p in problems:
        for name in p.reads or ():
            if name not in names:
                raise ValueError(
                    f"reads of problem {p.name!r} names {name!r}, which is not in the graph; "
                    f"it has {names}"
                )
            if name == p.name:
                raise ValueError(
                    f"reads of problem {name!r} names itself; list other problems only"
                )


def check_parameters(problems: Sequence[Problem], space: ParameterSpace) -> None:
    """Raise unless every parameter is in a module, and in the optimizer of one problem."""
    owner: dict[int, str] = {}
    for p in problems:
        for parameter in p.parameters:
            if parameter not in space:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} in the optimizer of problem "
                    f"{p.name!r} is in none of the graph's modules; parameters live in modules: "
                    "put it in an nn.Module that the loss uses and pass that as module"
                )
            if id(parameter) in owner:
                raise ValueError(
                    f"parameter {space.names[id(parameter)]!r} is in the optimizers of problems "
                    f"{owner[id(parameter)]!r} and {p.name!r}; each parameter belongs to one "
                    "problem"
                )
            owner[id(parameter)] = p.name
    _refuse_overlapping(problems, space)


def _refuse_overlapping(problems: Sequence[Problem], space: ParameterSpace) -> None:
    """Raise where two parameters are one memory, so that a step of one moves the other."""
    held = [
        (str(t.device), t.data_ptr(), t.data_ptr() + t.nbytes, space.names[id(t)])
        for p in problems
        for t in p.parameters
        if not is_sharded(t) and t.is_contiguous() and t.numel()
    ]
    for (device, _, end, name), (other, start, _, following) in pairwise(sorted(held)):
        if device == other and start < end:
            raise ValueError(
                f"parameters {name!r} and {following!r} share memory, so that a step of one moves "
                "the other unseen; register one nn.Parameter at both places, or clone one"
            )


def refuse_replaced(problems: Sequence[Problem], space: ParameterSpace) -> None:
    """Raise where a module holds another tensor in the place of a parameter, which the optimizer
    does not move.

    Raises:
        RuntimeError: naming the parameter.
    """
    for p in () if space.is_sharded else problems:
        for parameter in p.parameters:
            if not space.holds(parameter):
                raise RuntimeError(
                    f"parameter {space.names[id(parameter)]!r} of problem {p.name!r} is no more in "
                    "its module, where another tensor was put since the graph was made (a merged "
                    "adapter, a resized embedding, a parametrisation?); build the optimizer, the "
                    "Problem, the ProblemGraph and the Engine again after that"
                )


def check_declared(graph: Related) -> None:
    """Raise where a loss depends on a problem that its declared `reads` leave out."""
    for p in graph.problems:
        others = tuple(n for n in graph.reads[p.name] if n != p.name)
        if p.reads is not None and not set(others) <= set(p.reads):
            raise ValueError(
                f"reads of problem {p.name!r} is {sorted(p.reads)}, but its loss depends on "
                f"{sorted(others)}; add what is missing to reads, or leave it out"
            )


def check_order(graph: Related) -> None:
    """Raise where a problem reads one beside it."""
    for p in graph.problems:
        for name in graph.reads[p.name]:
            if name != p.name and graph.level(graph[name]) == graph.level(p):
                raise ValueError(
                    f"problems {p.name!r} and {name!r} stand side by side, but {p.name!r} reads "
                    f"{name!r}: without an order that is a Nash game, which is not supported; list "
                    "them one above the other"
                )


def check_entries(graph: Related) -> None:
    """Raise where a loss without gradient cannot be differentiated through one chain of
    problems.
    """
    for p in graph.problems:
        q = graph.entry(p)
        if q is None:
            continue
        if graph.inputs(p):
            raise ValueError(
                f"the loss of problem {p.name!r} has no gradient, so its solution cannot respond "
                f"to {[a.name for a in graph.inputs(p)]}; only the top of a chain of reads may "
                "have such a loss"
            )
        responding = graph.responding(p)
        if q not in responding:
            raise ValueError(
                f"the loss of problem {p.name!r} has no gradient, and problem {q.name!r}, by "
                f"which it would be differentiated, does not depend on {p.name!r}; let the loss "
                f"of {q.name!r} use the parameters of {p.name!r}"
            )
        seen = (q, *graph.inputs(q))
        apart = [r.name for r in graph.below(p) if r in responding and r not in seen]
        if apart:
            raise ValueError(
                f"the loss of problem {p.name!r} has no gradient and reads {apart}, on which "
                f"problem {q.name!r} does not depend; it can be differentiated through one "
                f"chain of problems only: leave them out of its loss, or let {q.name!r} read "
                "them"
            )


def check_reach(graph: Related) -> None:
    """Raise where no gradient, or no hypergradient, reaches a problem, or where none reads it."""
    for p in graph.problems:
        responding = graph.responding(p)
        if not responding:
            _check_own_gradient(graph, p)
            _check_hypergradient(graph, p)
        read = any(p.name in graph.reads[q.name] for q in graph.problems if q is not p)
        if not read and p is not graph.problems[0]:
            raise ValueError(
                f"no other problem reads problem {p.name!r}; remove it from the graph or let a "
                "loss use its parameters"
            )


def _check_own_gradient(graph: Related, p: Problem) -> None:
    if p.name not in graph.reads[p.name]:
        raise ValueError(
            f"no gradient reaches problem {p.name!r}: its loss depends neither on its own "
            "parameters nor on a problem below that responds to them (it reads "
            f"{list(graph.reads[p.name])}); let a lower loss use the parameters of {p.name!r}, "
            "or list it above the problems that do (levels are listed from top to bottom)"
        )


def _check_hypergradient(graph: Related, p: Problem) -> None:
    deaf = [
        q.name for q in graph.below(p) if not graph.inputs(q) and q.method.requirements.responds
    ]
    if deaf:
        raise ValueError(
            f"problem {p.name!r} reads {deaf} below it, but no problem below depends on "
            f"{p.name!r}, so there is no hypergradient: check for detach() or no_grad() on the "
            f"parameters of {p.name!r} in the lower loss, or set method=alternating() on the lower "
            "problem to train them in turns on purpose"
        )


def warn_of_constant_responses(graph: Related) -> None:
    """Warn where a Hessian leaves out the response of problems below."""
    for p in graph.problems[1:]:
        if graph.responding(p) and not p.through_response:
            warnings.warn(
                f"problem {p.name!r} reads {[q.name for q in graph.below(p)]} below it with "
                "through_response=False: their response is left out of its Hessian, and the "
                "hypergradients above it are biased",
                stacklevel=3,
            )


def refuse_sharded(graph: Related, space: ParameterSpace) -> None:
    """Raise unless all that is done with sharded parameters (``fully_shard``) can be done.

    Raises:
        NotImplementedError: naming the problem and the method or the setting.
    """
    if not space.is_sharded:
        return
    first_order = "darts(), f2sa(), pbgd() or alternating()"
    for p in graph.problems:
        if 0 < sum(map(is_sharded, p.parameters)) < len(p.parameters):
            raise NotImplementedError(
                f"problem {p.name!r} holds sharded parameters (fully_shard) beside whole ones; "
                "give them problems of their own, or shard all"
            )
        if graph.inputs(p) and not p.method.requirements.first_order:
            raise NotImplementedError(
                f"{p.method!r} of problem {p.name!r} does not work with sharded parameters "
                "(fully_shard), whose gradients backward() alone averages over the processes; use "
                f"{first_order}, or whole parameters"
            )
        if graph.inputs(p) and graph.below(p) and p.through_response:
            raise NotImplementedError(
                f"problem {p.name!r} sees the solution of a problem below it, whose derivatives do "
                "not work with sharded parameters (fully_shard); give it through_response=False, "
                "or whole parameters"
            )


def warn_of_constant_steps(graph: Related) -> None:
    """Warn where a start or an option is a function of problems above, and the method of the
    problem does not differentiate it, or only a part of the steps.
    """
    for p in graph.problems:
        needs = p.method.requirements
        if not graph.inputs(p):
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
