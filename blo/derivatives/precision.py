"""The type that a loss is computed in."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch


def coarsest(types: Iterable[torch.dtype | None]) -> torch.dtype:
    """Return the type with the largest rounding error; None, no autocast, is passed over."""
    return max((t for t in types if t is not None), key=lambda dtype: torch.finfo(dtype).eps)


def fresh_autocast(
    device: torch.device, dtype: torch.dtype | None = None
) -> AbstractContextManager[object]:
    """Return a context that runs a block under autocast to `dtype` without casts that were cached
    for other weights.

    With ``dtype=None`` the autocast context around the block, if there is one, is entered afresh.
    Autocast keeps its low-precision copies of the weights until the outermost context ends; a
    finite difference inside one such context would compare a weight with itself and be exactly
    zero.
    """
    around = torch.is_autocast_enabled(device.type)
    if dtype is None and not around:
        return nullcontext()
    dtype = torch.get_autocast_dtype(device.type) if dtype is None else dtype
    return torch.autocast(device.type, dtype=dtype, cache_enabled=not around)
