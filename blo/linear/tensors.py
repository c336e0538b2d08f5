"""Vector algebra over tuples of tensors: one vector of R^n, kept in the shapes of the parameters.

Every function is pure. The `torch._foreach_*` kernels do one launch for all tensors of a tuple.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = tuple[Tensor, ...]


def add(x: Tensors, y: Tensors) -> Tensors:
    """Return ``x + y``."""
    return tuple(torch._foreach_add(x, y)) if x else ()


def subtract(x: Tensors, y: Tensors) -> Tensors:
    """Return ``x - y``."""
    return tuple(torch._foreach_sub(x, y)) if x else ()


def axpy(alpha: float | Tensor, x: Tensors, y: Tensors) -> Tensors:
    """Return ``alpha x + y``; `alpha` is a number or a tensor of one element."""
    if not x:
        return ()
    if isinstance(alpha, Tensor):
        return tuple(torch._foreach_add(torch._foreach_mul(x, alpha), y))
    return tuple(torch._foreach_add(y, x, alpha=alpha))


def scale(alpha: float | Tensor | Sequence[float], x: Tensors) -> Tensors:
    """Return ``alpha x``; a sequence of numbers gives each tensor its own factor."""
    if not x:
        return ()
    if isinstance(alpha, Sequence):
        if len(alpha) != len(x):
            raise ValueError(f"alpha must have one factor a tensor: got {len(alpha)} for {len(x)}")
        return tuple(torch._foreach_mul(x, list(alpha)))
    return tuple(torch._foreach_mul(x, alpha))


def multiply(x: Tensors, y: Tensors) -> Tensors:
    """Return the elementwise product ``x * y``."""
    return tuple(torch._foreach_mul(x, y)) if x else ()


def dot(x: Tensors, y: Tensors) -> Tensor:
    """Return ``<x, y>``, a tensor without dimensions, on the device of the first tensor.

    Half precision is accumulated in float32.
    """
    if not x:
        return torch.zeros(())
    return sum_all(a.mul(b).sum(dtype=_accumulator(a)) for a, b in zip(x, y, strict=True))


def norm(x: Tensors) -> Tensor:
    """Return the Euclidean norm of the whole tuple, a tensor without dimensions."""
    if not x:
        return torch.zeros(())
    norms = torch._foreach_norm(x, dtype=_accumulator(x[0]))
    gathered = torch.stack([n.to(norms[0].device) for n in norms])
    return gathered[0] if len(norms) == 1 else torch.linalg.vector_norm(gathered)


def length(x: Tensors) -> float:
    """Return the Euclidean norm of the whole tuple as a number."""
    return float(norm(x))


def numel(x: Tensors) -> int:
    """Return the dimension of the vector."""
    return sum(t.numel() for t in x)


def zeros_like(x: Tensors) -> Tensors:
    """Return the zero vector in the shapes of `x`."""
    return tuple(torch.zeros_like(t) for t in x)


def detach(x: Iterable[Tensor]) -> Tensors:
    """Return the tensors cut from their graphs; memory is shared."""
    return tuple(t.detach() for t in x)


def leaves(x: Iterable[Tensor]) -> Tensors:
    """Return fresh leaves that require gradients; memory is shared with `x`."""
    return tuple(t.detach().requires_grad_() for t in x)


def flatten(x: Tensors) -> Tensor:
    """Return one vector of shape ``(numel,)``."""
    return torch.cat([t.reshape(-1) for t in x])


def unflatten(flat: Tensor, like: Tensors) -> Tensors:
    """Return `flat`, of shape ``(numel,)``, cut into the shapes of `like`."""
    pieces = flat.split([t.numel() for t in like])
    return tuple(p.view_as(t) for p, t in zip(pieces, like, strict=True))


def average(vectors: Sequence[Tensors]) -> Tensors:
    """Return the mean of several vectors; a single one is returned as it is."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = add(total, vector)
    return total if len(vectors) == 1 else scale(1.0 / len(vectors), total)


def sum_all(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors without dimensions, on the device of the first."""
    first, *rest = terms
    for term in rest:
        first = first + term.to(first.device)
    return first


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
