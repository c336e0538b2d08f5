"""Levels that diverge, noticed before their loss is infinite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from blo.batches import leaves_of
from blo.problem import Problem

FIRST = 3  # losses that say what size is usual
RUN = 3  # losses in a row beyond the bound


class DivergenceWatch:
    """Says when the loss of a problem has left the size it had at first.

    A problem diverges when `RUN` of its losses in a row are above ``factor * max(1, s)``, the
    newest of them the largest so far, where ``s`` is the median of ``|loss|`` in its first `FIRST`
    updates. The loss counts in the direction in which the optimizer makes it smaller: one that is
    maximised may grow, one that is minimised may fall, without a bound.

    Args:
        factor: None never says so.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._first: dict[str, list[float]] = {}
        self._last: dict[str, tuple[int, float]] = {}  # number beyond the bound, largest

    def see(self, problem: Problem, loss: float, number: int) -> None:
        """Take in the loss of an update in round `number`, before anything is updated with it.

        Raises:
            FloatingPointError: if the problem diverges, naming it and the round.
        """
        if self._factor is None:
            return
        first = self._first.setdefault(problem.name, [])
        if len(first) < FIRST:
            first.append(abs(loss))
        size = _median(first)
        value = loss * _direction(problem)
        run, largest = self._last.get(problem.name, (0, -math.inf))
        run = run + 1 if value > self._factor * max(1.0, size) else 0
        self._last[problem.name] = run, max(largest, value)
        if run >= RUN and value > largest:
            raise FloatingPointError(
                f"the loss of problem {problem.name!r} is {loss:.3g} in round {number}, and was "
                f"about {size:.3g} at first: it diverges, and nothing was updated with this loss. "
                "Lower the learning rate or clip gradients, and go on from a state saved before; "
                "if such losses are right, Engine(divergence=None)"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, by problem."""
        return {
            name: {"first": list(first), "last": list(self._last[name])}
            for name, first in self._first.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was seen."""
        self._first = {name: list(seen["first"]) for name, seen in state.items()}
        self._last = {name: (seen["last"][0], seen["last"][1]) for name, seen in state.items()}


def _median(values: list[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


def remedy(problem: Problem, batches: Sequence[Any]) -> str:
    """Return what to look at where a loss is not finite: what it was computed from, if that is not
    finite either, and the step otherwise.
    """
    for batch in batches:
        for place, value in leaves_of(batch).items():
            if not isinstance(value, Tensor):
                continue
            if value.numel() == 0:
                return f"{place} holds no element: look at the data"
            if value.is_floating_point() and not value.isfinite().all():
                return f"{place} holds values that are not finite: look at the data"
    for number, parameter in enumerate(problem.parameters):
        if not parameter.isfinite().all():
            return (
                f"parameter {number} of the problem, of shape {tuple(parameter.shape)}, is not "
                "finite already: load a state saved before"
            )
    return "Lower the learning rate or clip gradients"


def _direction(problem: Problem) -> float:
    """Return -1 where the optimizer maximises over all parameters, 1 where it minimises; 0 where it
    does both.
    """
    signs = {-1.0 if g.get("maximize") else 1.0 for g in problem.optimizer.param_groups}
    return signs.pop() if len(signs) == 1 else 0.0
