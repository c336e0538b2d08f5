"""Lower steps as they were recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blo.derivatives.objective import Objective
from blo.linear.tensors import Tensors


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
    """

    objectives: tuple[Objective, ...]
    options: tuple[Mapping[str, Any], ...]
    received: tuple[bool, ...] | None = None
    lower: Tensors | None = None
    states: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True)
class History:
    """The last lower steps, oldest first, and where they started from.

    Args:
        optimizer: the class of the lower optimizer.
        lower: the lower parameters before the first recorded step.
        states: for each lower tensor, a copy of the optimizer's state before that step.
        steps: the steps.
        end: the lower parameters after the last, as the optimizer left them.
        last_gradient: gradient that the optimizer received in the last step, where it was kept.
    """

    optimizer: type
    lower: Tensors
    states: tuple[Mapping[str, Any], ...]
    steps: tuple[LowerStep, ...]
    end: Tensors
    last_gradient: Tensors | None = None
