"""Linear solvers for ``H v = rhs``, where the symmetric matrix `H` is known by its products only.

A solver is called as ``solver(matvec, rhs, init)`` and returns a `Solution`. Truncation, negative
curvature and divergence are outcomes that the `Solution` reports; none of them raises.
`max_products` bounds all products of a solve, those for the residual of a warm start, for an
unknown scale and for a preconditioner included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from blo.methods.context import Status
from blo.methods.linear_system import SINGULAR, LinearSystem, MatVec, Preconditioner, numbers
from blo.methods.linear_system import LinearSolver as LinearSolver
from blo.methods.linear_system import Solution as Solution
from blo.methods.tensors import (
    Tensors,
    axpy,
    dot,
    flatten,
    norm,
    numel,
    scale,
    unflatten,
    zeros_like,
)
from blo.methods.validation import (
    check_count,
    check_finite,
    check_not_negative,
    check_preconditioner,
    check_rtol,
)


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
class CG:
    """Conjugate gradients for a positive definite `H`.

    Exact after as many products as `H` has distinct eigenvalues, in exact arithmetic. Where a
    direction of non-positive curvature ``p^T H p <= 0`` is met (to rounding), the iterate before it
    is returned with status INDEFINITE; if there is none, the right-hand side scaled by
    ``|rhs| / |H rhs|`` (by 1 if ``H rhs = 0``). Two waits for the device a product.

    Args:
        max_products: at most this many products.
        rtol: converged when ``|r| <= rtol |rhs|``; None takes ten times the machine epsilon of the
            vectors.
        damping: solves ``(H + damping I) v = rhs``.
        preconditioner: for example ``Nystrom(10)``, built anew in every solve; the scaled
            right-hand side is then the preconditioned one.

    Example:
        >>> import torch
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> solution = CG(2)(lambda v: (H @ v[0],), (torch.tensor([4.0, 7.0]),))
        >>> [round(x, 4) for x in solution.value[0].tolist()], solution.status.value
        ([1.0, 2.0], 'converged')
        >>> CG(2)(lambda v: (-H @ v[0],), (torch.tensor([4.0, 7.0]),)).status.value
        'indefinite'

    Reference: Hestenes and Stiefel (1952); for hypergradients Pedregosa (2016), arXiv:1602.02355.
    """

    max_products: int = 10
    rtol: float | None = None
    damping: float = 0.0
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("max_products", self.max_products, at_least=1)
        check_rtol(self.rtol)
        check_not_negative("damping", self.damping)
        check_preconditioner(self.preconditioner, self.max_products)

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the last iterate, started from `init` or from zero."""
        system = LinearSystem(matvec, rhs, damping=self.damping)
        if system.trivial is not None:
            return system.trivial
        target = system.target(self.rtol)
        x, r, length = system.start(init)
        if length <= target:
            return system.solution(x, Status.CONVERGED, length)
        moved = length < system.size
        apply = system.preconditioner(self.preconditioner)
        p = z = apply(r)
        rz = pp = float(dot(r, z))  # |r|^2 and |p|^2, in the geometry of the preconditioner
        norm_h, first = 0.0, rz
        while system.num_products < self.max_products:
            if not rz > 0.0:
                return system.solution(x, Status.INDEFINITE, length)
            hp = system.product(p)
            curvature, size_hp = numbers(dot(p, hp), norm(hp))
            if not math.isfinite(size_hp):
                return system.solution(x, Status.DIVERGED, length)
            size_p = math.sqrt(pp)
            along = size_hp / size_p if self.preconditioner is None else curvature / pp
            norm_h = max(norm_h, along)
            alpha = rz / curvature if curvature > 0.0 else math.inf
            if system.singular_along(alpha * size_p, norm_h, math.sqrt(min(rz, first))):
                if not moved:
                    factor = system.size / size_hp if size_hp > 0.0 else 1.0
                    x, length = scale(factor, p), float(norm(axpy(-factor, hp, r)))
                return system.solution(x, Status.INDEFINITE, length)
            x, r, moved = axpy(alpha, p, x), axpy(-alpha, hp, r), True
            z = apply(r)
            length, rz_following = numbers(norm(r), dot(r, z))
            if length <= target:
                return system.solution(x, Status.CONVERGED, length)
            beta = rz_following / rz
            p, pp, rz = axpy(beta, p, z), rz_following + beta**2 * pp, rz_following
        return system.solution(x, Status.TRUNCATED, length)


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
        if not bool(torch.isfinite(h).all()):
            return system.solution(zeros_like(system.rhs), Status.DIVERGED, system.size)
        b = _flatten(system.rhs)
        factors, pivots, _ = torch.linalg.lu_factor_ex(h)
        diagonal = factors.diagonal().abs()
        singular = SINGULAR * n * system.eps
        if bool(diagonal.min() > singular * diagonal.max()):
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
