"""What numbers and switches may be as arguments: all else is refused in one sentence."""

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["check_flag", "check_fraction", "check_non_negative", "check_positive", "check_whole"]


def check_whole(name: str, value: Any, *, least: int = 1) -> None:
    """Refuse what is no integer of at least ``least``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Refuse what is no finite number above 0."""
    if not (_finite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_non_negative(name: str, value: Any) -> None:
    """Refuse what is no finite number of at least 0."""
    if not (_finite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_fraction(name: str, value: Any) -> None:
    """Refuse what is no number from 0 up to 1, 1 left out."""
    if not (_finite(value) and 0 <= value < 1):
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False: a text such as "no" counts as True elsewhere."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
