"""Vectors pulled back through graphs that are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from blo.linear.tensors import Tensors


def _fill(grads: tuple[Tensor | None, ...], like: Tensors) -> tuple[Tensors, bool]:
    """Return the gradients with zeros where an input was not reached, and whether any was."""
    reached = any(g is not None for g in grads)
    pairs = zip(grads, like, strict=True)
    return tuple(torch.zeros_like(t) if g is None else g for g, t in pairs), reached
