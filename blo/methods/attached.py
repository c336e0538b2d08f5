"""Solved problems as their methods attach them: lower solutions as functions of what is above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from blo.derivatives.nested import NestedObjective, Spent, carried
from blo.linear.tensors import Tensors
from blo.methods.context import Context
from blo.steps.optimizers import UpdateMap
from blo.steps.replay import received, recorded


@dataclass(frozen=True)
class Attached:
    """A lower problem that has been solved, as the method sees it that attaches its solution.

    Args:
        context: the problem.
        spent: where the cost is noted.
        anchor: the upper values that the present solution stands for. From other values the
            solution moves along, by its response: a difference of gradients there must see it.
            None keeps it where it is.
    """

    context: Context
    spent: Spent
    anchor: Tensors | None = None

    @property
    def objective(self) -> NestedObjective:
        """The lower objective, its gradient in graphs that are differentiated again."""
        return NestedObjective(self.context.lower, self.spent)

    def steps_again(self, upper: Tensors) -> Tensors:
        """Return the end of the recorded steps, taken again from `upper` in one graph."""
        history = recorded(self.context.history, "an attached solution")
        update, objective = UpdateMap(history.optimizer), self.objective

        def end_of(upper: Tensors) -> Tensors:
            start, first = history.start_at(upper), history.steps[0]
            iterate = update.start(start, history.states, first.options)
            for step in history.steps:
                raw = objective.raw_gradient(step.objectives, upper, iterate.lower)
                gradient = step.handed(received(step, raw, iterate.lower))
                iterate = update.step(iterate, gradient, step.options_at(upper))
            return iterate.lower

        return carried(end_of, history.end, upper, self.anchor)


@runtime_checkable
class Attaches(Protocol):
    """A method whose response is a function that can be differentiated: problems above may read the
    solution and be differentiated through it.
    """

    def attach(self, lower: Attached, upper: Tensors) -> Tensors:
        """Return the lower solution, differentiable with respect to `upper`, equal to the values in
        the context where `upper` is the anchor, and right to first order in the distance elsewhere.
        """


@dataclass(frozen=True)
class Solved:
    """A solution with its method, as an `Attachment`."""

    method: Attaches
    lower: Attached

    def attach(self, upper: Tensors) -> Tensors:
        """Return the solution, differentiable with respect to `upper`."""
        return self.method.attach(self.lower, upper)
