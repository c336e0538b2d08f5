"""What losses and penalties are, and what every penalty checks."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from adapters.glue.checks import check_non_negative

__all__ = ["Loss", "Penalty", "check_weight"]

Loss = Callable[[Any], Any]
"""``loss(batch)``, a closure over a model: a scalar, or a dict with one under "loss"."""
Penalty = Callable[[nn.Module], Tensor]
"""A scalar function of a model."""


def check_weight(weight: float) -> None:
    """Refuse the weight of a penalty that is no finite number of at least 0."""
    check_non_negative("weight", weight)
