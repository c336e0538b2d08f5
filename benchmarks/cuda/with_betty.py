"""Rounds of Betty 0.2.1 on the same model, where it can be imported."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.betty_engine import Level, betty_rounds
from benchmarks.cuda.by_hand import LOWER_LR, UPPER_LR
from benchmarks.cuda.rows import Absent
from benchmarks.cuda.shapes import Adapted
from benchmarks.versions import version_of

# Betty knows no one-sided difference, no T1-T2 and no control; its CG 0.2.1 takes a wrong direction
# from the second product on, its differences have a radius of their own and its step is one.
TYPES = {"darts": "darts", "sama": "sama", "cg(5)": "cg"}


def betty_version() -> str:
    """Return Betty's version.

    Raises:
        Absent: it cannot be imported, with the reason.
    """
    try:
        import betty.engine  # noqa: F401
    except ImportError as error:
        raise Absent(f"betty cannot be imported: {error}") from error
    return version_of("betty-ml")


def betty_round(here: Adapted, method: str) -> Callable[[], None]:
    """Return a function that takes a lower and an upper step with Betty.

    Raises:
        Absent: Betty cannot be imported, or has no such method.
    """
    betty_version()
    if method not in TYPES:
        raise Absent(f"Betty has no {method}")
    x, y = here.split.upper, here.split.lower
    above, below = torch.optim.Adam(x, UPPER_LR), torch.optim.Adam(y, LOWER_LR)
    take = betty_rounds(
        Level(here.model, above, here.loss, [here.upper], x),
        Level(here.model, below, here.loss, [here.lower], y),
        device=here.device.type,
        type=TYPES[method],
        cg_iterations=5,
    )

    def once() -> None:
        # Its CG differentiates twice and leaves the choice of a kernel to its user.
        with sdpa_kernel(SDPBackend.MATH) if method == "cg(5)" else nullcontext():
            take()

    return once
