"""Norms that can be differentiated twice and need no matrix of the size of a weight."""

import torch
from torch import Tensor

__all__ = ["frobenius", "from_orthonormal", "row_norms", "widen"]


def widen(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64, float32 for the rest: the precision of sums of squares."""
    return torch.promote_types(dtype, torch.float32)


def frobenius(matrix: Tensor, *, squared: bool) -> Tensor:
    """Return the Frobenius norm of a matrix, or its square.

    The norm has no second derivative at the zero matrix (automatic differentiation returns NaN).
    Where its square is below eps^2 it is taken as the constant 0, with derivatives of zero.
    """
    total = matrix.square().sum()
    if squared:
        return total
    positive = total > torch.finfo(total.dtype).eps ** 2
    one = torch.ones_like(total)
    return torch.where(positive, torch.where(positive, total, one).sqrt(), torch.zeros_like(total))


def from_orthonormal(rows: Tensor, *, squared: bool) -> Tensor:
    """Return how far the rows of X are from orthonormal, ``|X X^T - I|_F`` or its square.

    Taken in float32 or wider, outside autocast.
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.to(widen(rows.dtype))
        eye = torch.eye(rows.shape[0], dtype=rows.dtype, device=rows.device)
        return frobenius(rows @ rows.T - eye, squared=squared)


def row_norms(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Return the norm of every row of ``W + s B A``, shape ``(out,)``, without forming the matrix.

        n^2 = |W|^2 + <2 W C^T + B (C C^T), B>,  C = s A,    |.| and <., .> taken row by row

    Differentiable twice in A and B. Summed in float32 or wider, outside autocast; ``W A^T`` is
    taken in W's own precision, so that a bfloat16 weight is not copied. Rows that cancel to below
    ``sqrt(eps) |W|``, where the sum keeps no correct digit, are held at that value.

    Args:
        weight: W, frozen, ``(out, in)``.
        A: ``(rank, in)``.
        B: ``(out, rank)``.
        scale: s.
    """
    dtype = widen(torch.promote_types(weight.dtype, A.dtype))
    with torch.autocast(weight.device.type, enabled=False):
        C = (A if scale == 1.0 else A * scale).T
        product = (weight @ C.to(weight.dtype)).to(dtype)
        B, C = B.to(dtype), C.to(dtype)
        fixed = torch.linalg.vector_norm(weight, dim=1, dtype=dtype).square()
        change = (torch.addmm(product, B, C.T @ C, beta=2.0) * B).sum(1)
        limits = torch.finfo(dtype)
        return torch.maximum(fixed + change, limits.eps * fixed + limits.tiny).sqrt()
