"""Solvers that iterate on nothing: a multiple of the right-hand side, and the dense system."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from blo.linear.settings import check_count, check_finite, check_not_negative
from blo.linear.system import SINGULAR, LinearSystem, MatVec, Solution, Status, numbers
from blo.linear.tensors import Tensors, flatten, numel, scale, unflatten, zeros_like


@dataclass(frozen=True)
class Identity:
    """``v = scale * rhs``: the inverse Hessian replaced by a number, or by one number a tensor.

    No products.

    Example:
        >>> import torch
        >>> solution = Identity(0.5)(lambda v: (3 * v[0],), (torch.tensor([1.0, 4.0]),))
        >>> solution.value[0].tolist(), solution.num_products
        ([0.5, 2.0], 0)
    """

    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        """Check the scale."""
        for value in self.scale if isinstance(self.scale, tuple) else (self.scale,):
            check_finite("scale", value)

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return ``scale * rhs``; `matvec` and `init` are not used."""
        return Solution(scale(self.scale, rhs), Status.TRUNCATED, 0, math.nan, self.scale)


@dataclass(frozen=True)
class Dense:
    """The direct solve, for tests and small problems: `H` is built column by column, one product an
    unknown.

    A (numerically) singular system gives the least-squares solution of least norm, with status
    TRUNCATED unless the right-hand side is in the range of `H`.

    Args:
        max_size: refuse more unknowns than this.
        damping: solves ``(H + damping I) v = rhs``.

    Example:
        >>> import torch
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> solution = Dense()(lambda v: (H @ v[0],), (torch.tensor([4.0, 7.0]),))
        >>> [round(x, 4) for x in solution.value[0].tolist()], solution.status.value
        ([1.0, 2.0], 'converged')
    """

    max_size: int = 4096
    damping: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("max_size", self.max_size, at_least=1)
        check_not_negative("damping", self.damping)

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the solution of the dense system; `init` is not used.

        Raises:
            ValueError: if there are more than `max_size` unknowns.
        """
        n = numel(rhs)
        if n > self.max_size:
            raise ValueError(
                f"Dense builds a matrix of {n} x {n}, above max_size={self.max_size}; "
                "use an iterative solver such as CG, or raise max_size"
            )
        system = LinearSystem(matvec, rhs, damping=self.damping)
        if system.trivial is not None:
            return system.trivial
        h = dense_matrix(system.product, system.rhs)
        b = _flatten(system.rhs)
        factors, pivots, _ = torch.linalg.lu_factor_ex(h)
        diagonal = factors.diagonal().abs()
        largest, low, high = numbers(h.abs().max(), diagonal.min(), diagonal.max())
        if not math.isfinite(largest):
            return system.solution(zeros_like(system.rhs), Status.DIVERGED, system.size)
        singular = SINGULAR * n * system.eps
        if low > singular * high:
            x = torch.linalg.lu_solve(factors, pivots, b[:, None])[:, 0]
        else:
            x = torch.linalg.pinv(h, rtol=singular) @ b
        length = float(torch.linalg.vector_norm(b - h @ x))
        converged = length <= math.sqrt(system.eps) * system.size
        status = Status.CONVERGED if converged else Status.TRUNCATED
        return system.solution(_unflatten(x, system.rhs), status, length)


def dense_matrix(matvec: MatVec, like: Tensors) -> torch.Tensor:
    """Return the matrix of `matvec`, shape ``(numel, numel)``, column by column."""
    eye = torch.eye(numel(like), dtype=like[0].dtype, device=like[0].device)
    return torch.stack([_flatten(matvec(_unflatten(e, like))) for e in eye], dim=1)


def _flatten(v: Tensors) -> torch.Tensor:
    """Return `v` as one vector on the device of its first tensor."""
    return flatten(tuple(t.to(v[0].device) for t in v))


def _unflatten(flat: torch.Tensor, like: Tensors) -> Tensors:
    """Return one vector in the shapes, types and devices of `like`."""
    return tuple(p.to(t) for p, t in zip(unflatten(flat, like), like, strict=True))
