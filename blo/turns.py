"""Whose turn it is in a round, whoever takes the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from blo.graph import ProblemGraph, Update
from blo.methods.context import Info
from blo.problem import Problem
from blo.steps.registry import unwrapped


class _Owed(NamedTuple):
    """A step that was left to the caller: whose optimizer takes it, and what is called after it."""

    problem: Problem
    compare: Callable[[], None]


class Turns:
    """The updates of a graph's rounds, one after the other.

    Attributes:
        left: the updates left in the round; empty between two rounds.
        is_open: whether an update was begun and has not ended.
        losses: the last loss of each problem in this round, by name.
        metrics: other numbers that its loss returned.
        infos: how the responses in the round were computed, by "problem <- lower problem".
    """

    def __init__(self, graph: ProblemGraph) -> None:
        self.left: list[Update] = []
        self.is_open = False
        self.losses: dict[str, float] = {}
        self.metrics: dict[str, dict[str, float]] = {}
        self.infos: dict[str, Info] = {}
        self._graph = graph
        self._owed: _Owed | None = None
        self._watched: set[str] = set()
        self._stepped: set[str] = set()

    @property
    def next(self) -> Update:
        """The update that comes next."""
        return self.left[0] if self.left else self._graph.schedule()[0]

    def begin(self) -> Update:
        """Return the update that comes next, the first of a new round if none is left.

        Raises:
            RuntimeError: if an optimizer or a module holds other parameters than at first.
        """
        if not self.left:
            self._graph.check_unchanged()
            self.left = list(self._graph.schedule())
            self.losses, self.metrics, self.infos = {}, {}, {}
        self.is_open = True
        return self.left[0]

    def end(
        self, name: str, loss: float, metrics: dict[str, float], infos: Mapping[str, Info]
    ) -> None:
        """Take in that the update of the problem called `name` was taken, and what it was."""
        del self.left[0]
        self.is_open = False
        self.losses[name], self.metrics[name] = loss, metrics
        self.infos.update(infos)

    def restart(self) -> None:
        """Begin a round anew, wherever the last one was broken off."""
        self.settle()
        self.left.clear()
        self.is_open = False

    def go_to(self, number: int) -> None:
        """Be after `number` updates of a round, with no step left to the caller."""
        self._owed, self.is_open = None, False
        self.left = list(self._graph.schedule()[number:]) if number else []

    def taken(self) -> tuple[Update, ...]:
        """Return the updates of the round that were taken; none between two rounds."""
        schedule = self._graph.schedule()
        return schedule[: len(schedule) - len(self.left)] if self.left else ()

    def are_settled(self) -> bool:
        """Return whether no update is being taken, and no step that was left to the caller is
        missing.
        """
        owed = self._owed
        return not self.is_open and (owed is None or owed.problem.name in self._stepped)

    def watch(self, problem: Problem) -> None:
        """Have the optimizer of `problem` tell when it steps."""
        if problem.name not in self._watched:
            self._watched.add(problem.name)
            optimizer = unwrapped(problem.optimizer)
            optimizer.register_step_post_hook(lambda *_: self._stepped.add(problem.name))

    def owe(self, problem: Problem, compare: Callable[[], None]) -> None:
        """Leave the step of `problem` to the caller, and `compare` for when it was taken."""
        self._stepped.discard(problem.name)
        self._owed = _Owed(problem, compare)

    def settle(self) -> None:
        """See that the step that was left to the caller was taken.

        Raises:
            RuntimeError: if it was not.
        """
        owed, self._owed = self._owed, None
        if owed is None:
            return
        if owed.problem.name not in self._stepped:
            raise RuntimeError(
                f"no step was taken along the gradient of problem {owed.problem.name!r}: call "
                "optimizer.step() of its optimizer after engine.backward(...), or use "
                "engine.step(...)"
            )
        owed.compare()
