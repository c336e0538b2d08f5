"""The type that a loss is computed in."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def coarsest(types: Iterable[torch.dtype | None]) -> torch.dtype:
    """Return the type with the largest rounding error; None, no autocast, is passed over."""
    return max((t for t in types if t is not None), key=lambda dtype: torch.finfo(dtype).eps)


def computed_in(loss: Tensor) -> torch.dtype | None:
    """Return the type with the largest rounding error in the graph of `loss`: what a frozen model
    in half precision or an autocast context within the loss computes in. None without a graph.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> computed_in(weight.sum()), computed_in(weight.bfloat16().square().float().sum())
        (torch.float32, torch.bfloat16)
    """
    waiting = [] if loss.grad_fn is None else [loss.grad_fn]
    seen, types = set(waiting), {loss.dtype}
    while waiting:
        node = waiting.pop()
        types |= {m.dtype for m in node._input_metadata}
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return coarsest(t for t in types if t.is_floating_point) if seen else None


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
