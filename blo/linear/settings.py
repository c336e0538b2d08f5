"""Checks of settings, with errors that name the argument, its value and the remedy."""

from __future__ import annotations

import math
from typing import SupportsFloat

from blo.linear.system import Preconditioner


def is_finite(value: object) -> bool:
    """Return whether `value` is a finite number."""
    return isinstance(value, SupportsFloat) and math.isfinite(value)


def check_count(name: str, value: int, *, at_least: int) -> None:
    """Raise ValueError unless `value` is an integer of at least `at_least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")


def check_flag(name: str, value: bool) -> None:
    """Raise ValueError unless `value` is True or False: a text such as "no" would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_finite(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite."""
    if not is_finite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")


def check_not_negative(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite and at least 0."""
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value!r}")


def check_positive(name: str, value: float | None, unless: str) -> None:
    """Raise ValueError unless `value` is finite and positive, or None; `unless` says what None
    does.
    """
    if value is not None and not (is_finite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, or None {unless}, got {value!r}")


def check_rtol(value: float | None) -> None:
    """Raise ValueError unless `value` is None or in [0, 1): at 1, zero would be a solution."""
    if value is not None and not 0.0 <= value < 1.0:
        raise ValueError(
            f"rtol must be at least 0 and below 1, or None for ten times the machine epsilon, got "
            f"{value}"
        )


def check_preconditioner(preconditioner: Preconditioner | None, max_products: int) -> None:
    """Raise ValueError unless some products are left when the preconditioner is built."""
    if preconditioner is not None and preconditioner.num_products >= max_products:
        raise ValueError(
            f"max_products must leave some for the solver after the preconditioner's "
            f"{preconditioner.num_products}, got {max_products}"
        )


def check_warm_start(warm_start: bool, max_products: int) -> None:
    """Raise ValueError where a warm start would take every product for its residual."""
    if warm_start and max_products < 2:
        raise ValueError(
            f"max_products must be at least 2 with warm_start=True, whose residual takes one, got "
            f"{max_products}"
        )
