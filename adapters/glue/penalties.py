"""What losses and penalties are, and what every penalty checks."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["Loss", "Penalty", "check_weight"]

Loss = Callable[[Any], Any]
"""``loss(batch)``, a closure over a model: a scalar, or a dict with one under "loss"."""
Penalty = Callable[[nn.Module], Tensor]
"""A scalar function of a model."""


def check_weight(weight: float) -> None:
    """Refuse the weight of a penalty that is not at least 0."""
    if not weight >= 0:
        raise ValueError(f"weight must be at least 0, got {weight!r}")
