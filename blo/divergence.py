"""Levels that diverge, noticed before their loss is infinite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from blo.problem import Problem

FIRST = 3  # losses that say what size is usual
RUN = 3  # losses in a row beyond the bound


class DivergenceWatch:
    """Says when the loss of a problem has left the size it had at first.

    A problem diverges when `RUN` of its losses in a row are above ``factor * max(1, s)``, the
    newest of them the largest so far, where ``s`` is the largest ``|loss|`` of its first `FIRST`
    updates. The loss counts in the direction in which the optimizer makes it smaller: one that is
    maximised may grow, one that is minimised may fall, without a bound.

    Args:
        factor: None never says so.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = factor
        self._seen: dict[str, list[float]] = {}  # number, first size, run, largest

    def see(self, problem: Problem, loss: float, number: int) -> None:
        """Take in the loss of an update in round `number`, before anything is updated with it.

        Raises:
            FloatingPointError: if the problem diverges, naming it and the round.
        """
        if self._factor is None:
            return
        count, first, run, largest = self._seen.get(problem.name, [0, 0.0, 0, -math.inf])
        value = loss * _direction(problem)
        if count < FIRST:
            first = max(first, abs(value))
        bound = self._factor * max(1.0, first)
        run = run + 1 if value > bound else 0
        grows = value > largest
        self._seen[problem.name] = [count + 1, first, run, max(largest, value)]
        if run >= RUN and grows:
            raise FloatingPointError(
                f"the loss of problem {problem.name!r} is {loss:.3g} in round {number}, and was at "
                f"most {first:.3g} in its first updates: it diverges, and nothing was updated with "
                "this loss. Lower its learning rate or clip its gradients, and go on from the "
                "state saved last; if such losses are right, Engine(divergence=None)"
            )

    def state_dict(self) -> dict[str, list[float]]:
        """Return what was seen, by problem."""
        return {name: list(values) for name, values in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was seen."""
        self._seen = {name: list(values) for name, values in state.items()}


def _direction(problem: Problem) -> float:
    """Return -1 where the optimizer maximises over all parameters, 1 where it minimises; 0 where it
    does both.
    """
    signs = {-1.0 if g.get("maximize") else 1.0 for g in problem.optimizer.param_groups}
    return signs.pop() if len(signs) == 1 else 0.0
