"""Lower steps as they were recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blo.derivatives.kept import KeptGradient
from blo.derivatives.objective import Objective
from blo.derivatives.pullback import Gradient
from blo.derivatives.reduction import LOCAL, Reduction
from blo.linear.tensors import Tensors
from blo.steps.clipping import Clip, clipped


@dataclass(frozen=True)
class LowerStep:
    """One recorded lower step: what is needed to take it again.

    Args:
        objectives: the lower loss on each batch of the step.
        options: for each lower tensor, the options of its parameter group during the step
            (learning rate, momentum ...), without the parameters.
        received: for each lower tensor, whether the optimizer received a gradient (it passes over
            the others); None where that is not known.
        lower: the lower parameters before the step, where they were kept.
        states: for each lower tensor, a copy of the optimizer's state before the step, where
            `lower` was kept.
        clip: what the gradient was clipped to before the optimizer got it.
        options_of: the options as functions of the upper tensors, in their graph, where some are.
        reduction: over which processes the gradient was the mean, beside the batches.
        graph: the gradient in its graph, where that was kept.
    """

    objectives: tuple[Objective, ...]
    options: tuple[Mapping[str, Any], ...]
    received: tuple[bool, ...] | None = None
    lower: Tensors | None = None
    states: tuple[Mapping[str, Any], ...] | None = None
    clip: Clip | None = None
    options_of: Callable[[Tensors], tuple[Mapping[str, Any], ...]] | None = None
    reduction: Reduction = LOCAL
    graph: KeptGradient | None = None

    def options_at(self, upper: Tensors) -> tuple[Mapping[str, Any], ...]:
        """Return the options, in the graph of `upper` where they are functions of it."""
        return self.options if self.options_of is None else self.options_of(upper)

    def handed(self, gradient: Gradient) -> Gradient:
        """Return what the optimizer gets of a gradient, in its graph."""
        return gradient if self.clip is None else clipped(gradient, self.clip)


@dataclass(frozen=True)
class History:
    """The last lower steps, oldest first, and where they started from.

    Args:
        optimizer: the class of the lower optimizer.
        lower: the lower parameters before the first recorded step.
        states: for each lower tensor, a copy of the optimizer's state before that step, or what
            tells it (`StartStates`).
        steps: the steps.
        end: the lower parameters after the last, as the optimizer left them.
        last_gradient: gradient of the last step before clipping, where it was kept.
        start_of: where the steps start from as a function of the upper tensors, in their graph;
            None where the start is a constant.
        joined: from the cotangent of the end to those of the upper tensors and of the start
            (`JoinedSteps.pulled_back`); None where the steps were not joined in one graph.
    """

    optimizer: type
    lower: Tensors
    states: Sequence[Mapping[str, Any]]
    steps: tuple[LowerStep, ...]
    end: Tensors
    last_gradient: Tensors | None = None
    start_of: Callable[[Tensors], Tensors] | None = None
    joined: Callable[[Tensors], tuple[Gradient, Gradient] | None] | None = None

    def start_at(self, upper: Tensors) -> Tensors:
        """Return where the steps start from, in the graph of `upper` where it is a function of
        it.
        """
        return self.lower if self.start_of is None else self.start_of(upper)
