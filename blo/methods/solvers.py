"""Linear solvers for ``H v = rhs``, where the symmetric matrix `H` is known by its products only.

A solver is called as ``solver(matvec, rhs, init)`` and returns a `Solution`. Truncation, negative
curvature and divergence are outcomes that the `Solution` reports; none of them raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch

from blo.methods.context import Status
from blo.methods.tensors import (
    Tensors,
    add,
    axpy,
    dot,
    flatten,
    norm,
    numel,
    scale,
    subtract,
    unflatten,
    zeros_like,
)

MatVec: TypeAlias = Callable[[Tensors], Tensors]


class Solution(NamedTuple):
    """An approximate solution of ``H v = rhs``.

    Attributes:
        value: `v`, in the shapes of the right-hand side.
        status: how the solve ended.
        num_products: products with `H` used, those for an unknown scale included.
        residual: ``|rhs - H v| / |rhs|``; NaN where the solver does not know it.
        scale: the factor that the solver used in place of, or beside, the inverse; None where there
            is none.
    """

    value: Tensors
    status: Status
    num_products: int
    residual: float
    scale: float | tuple[float, ...] | None = None


class LinearSolver(Protocol):
    """Anything that solves ``H v = rhs`` approximately."""

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return an approximate solution, started from `init` where the solver iterates."""


@dataclass(frozen=True)
class Identity:
    """``v = scale * rhs``: the inverse Hessian replaced by a number, or by one number a tensor. No
    products.
    """

    scale: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        """Check the scale."""
        for value in self.scale if isinstance(self.scale, tuple) else (self.scale,):
            _check_finite("scale", value)

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return ``scale * rhs``; `matvec` and `init` are not used."""
        return Solution(scale(self.scale, rhs), Status.TRUNCATED, 0, math.nan, self.scale)


@dataclass(frozen=True)
class Neumann:
    """Truncated Neumann series.

    ``v = scale * sum_{k=0}^{max_products} (I - scale H)^k rhs``, which converges iff every
    eigenvalue of `H` that `rhs` excites lies in ``(0, 2 / scale)``. For symmetric `H` the ratio of
    successive terms never falls, so a term larger than the one before it
    proves divergence: the sum up to the term before is returned, with status DIVERGED.

    Args:
        max_products: number of products, at least 0.
        scale: None takes ``1 / L`` with `L` the largest curvature seen by `num_power_iterations`
            power iterations started at `rhs` (which cost a product each, beyond `max_products`).
            They see the eigenvectors that the series sees.
        damping: solves ``(H + damping I) v = rhs``.
        rtol: stop when a term is this small relative to `rhs`; a term is the residual of the sum
            before it.

    Reference: Lorraine, Vicol and Duvenaud (2020), arXiv:1911.02590, algorithm 3.
    """

    max_products: int = 20
    scale: float | None = None
    damping: float = 0.0
    rtol: float | None = None
    num_power_iterations: int = 5

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_count("max_products", self.max_products, at_least=0)
        _check_not_negative("damping", self.damping)
        _check_count("num_power_iterations", self.num_power_iterations, at_least=1)
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(
                f"scale must be positive and finite, or None to estimate it, got {self.scale}"
            )

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the truncated series; `init` is not used."""
        size = float(norm(rhs))
        if size == 0.0:
            return Solution(zeros_like(rhs), Status.CONVERGED, 0, 0.0, self.scale)
        matvec = _damped(matvec, self.damping)
        used = 0
        step = self.scale
        if step is None:
            bound = curvature_bound(matvec, rhs, self.num_power_iterations)
            used += self.num_power_iterations
            step = 1.0 / bound if bound > 0.0 else 1.0
        rtol = _tolerance(self.rtol, rhs)
        term = total = rhs
        length, status = size, Status.TRUNCATED
        for _ in range(self.max_products):
            following = axpy(-step, matvec(term), term)
            used += 1
            length_following = float(norm(following))
            if not length_following <= length:
                status = Status.DIVERGED
                break
            term, length = following, length_following
            total = add(total, term)
            if length <= rtol * size:
                status = Status.CONVERGED
                break
        return Solution(scale(step, total), status, used, length / size, step)


@dataclass(frozen=True)
class CG:
    """Conjugate gradients for a positive definite `H`.

    Exact after as many products as `H` has distinct eigenvalues, in exact arithmetic. Where a
    direction of non-positive curvature ``p^T H p <= 0`` is met, the iterate before it is returned
    with status INDEFINITE; if there is none, the right-hand side scaled by ``|rhs| / |H rhs|`` (by
    1 if ``H rhs = 0``).

    Args:
        max_products: at most this many products (one more for the residual of a warm start counts
            among them).
        rtol: converged when ``|r| <= rtol |rhs|``; None takes ten times the machine epsilon of the
            vectors.
        damping: solves ``(H + damping I) v = rhs``.

    Reference: Hestenes and Stiefel (1952); for hypergradients Pedregosa (2016), arXiv:1602.02355.
    """

    max_products: int = 10
    rtol: float | None = None
    damping: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_count("max_products", self.max_products, at_least=1)
        _check_not_negative("damping", self.damping)

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the last iterate, started from `init` or from zero."""
        size = float(norm(rhs))
        if size == 0.0:
            return Solution(zeros_like(rhs), Status.CONVERGED, 0, 0.0)
        matvec = _damped(matvec, self.damping)
        target = _tolerance(self.rtol, rhs) * size
        x, r, used = zeros_like(rhs), rhs, 0
        if init is not None:
            x, r, used = init, subtract(rhs, matvec(init)), 1
        p, rr = r, float(dot(r, r))
        while math.sqrt(rr) > target:
            if used >= self.max_products:
                return Solution(x, Status.TRUNCATED, used, math.sqrt(rr) / size)
            hp = matvec(p)
            used += 1
            curvature = float(dot(p, hp))
            if not math.isfinite(curvature):
                return Solution(x, Status.DIVERGED, used, math.sqrt(rr) / size)
            if curvature <= 0.0:
                if used == 1:
                    x = _scaled_rhs(rhs, hp, size)
                    return Solution(x, Status.INDEFINITE, used, math.nan)
                return Solution(x, Status.INDEFINITE, used, math.sqrt(rr) / size)
            alpha = rr / curvature
            x = axpy(alpha, p, x)
            r = axpy(-alpha, hp, r)
            rr_following = float(dot(r, r))
            p = axpy(rr_following / rr, p, r)
            rr = rr_following
        return Solution(x, Status.CONVERGED, used, math.sqrt(rr) / size)


@dataclass(frozen=True)
class Dense:
    """The direct solve, for tests and small problems: `H` is built column by column, one product an
    unknown.

    A singular but consistent system gives the solution of least norm. An inconsistent one gives the
    least-squares solution, with its residual and status TRUNCATED.

    Args:
        max_size: refuse more unknowns than this.
        damping: solves ``(H + damping I) v = rhs``.
    """

    max_size: int = 4096
    damping: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_count("max_size", self.max_size, at_least=1)
        _check_not_negative("damping", self.damping)

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
        b = flatten(rhs)
        size = float(torch.linalg.vector_norm(b))
        if size == 0.0:
            return Solution(zeros_like(rhs), Status.CONVERGED, 0, 0.0)
        h = dense_matrix(_damped(matvec, self.damping), rhs)
        x, failed = torch.linalg.solve_ex(h, b)
        if int(failed) != 0 or not bool(torch.isfinite(x).all()):
            x = torch.linalg.pinv(h, hermitian=False) @ b
        residual = float(torch.linalg.vector_norm(b - h @ x)) / size
        converged = residual <= math.sqrt(torch.finfo(b.dtype).eps)
        status = Status.CONVERGED if converged else Status.TRUNCATED
        return Solution(unflatten(x, rhs), status, n, residual)


def dense_matrix(matvec: MatVec, like: Tensors) -> torch.Tensor:
    """Return the matrix of `matvec`, shape ``(numel, numel)``, column by column."""
    n = numel(like)
    eye = torch.eye(n, dtype=like[0].dtype, device=like[0].device)
    return torch.stack([flatten(matvec(unflatten(e, like))) for e in eye], dim=1)


def curvature_bound(matvec: MatVec, start: Tensors, num_iterations: int) -> float:
    """Return ``max_k |H u_k|`` over power iterations from `start`, a lower bound of the spectral
    norm of `H`.

    A `start` that lies in an invariant subspace gives the norm of `H` on that subspace. NaN
    products give NaN.
    """
    u, bound = start, 0.0
    for _ in range(num_iterations):
        length = float(norm(u))
        if not length > 0.0:
            break
        u = matvec(scale(1.0 / length, u))
        bound = max(bound, float(norm(u)))
    return bound


def _scaled_rhs(rhs: Tensors, h_rhs: Tensors, size: float) -> Tensors:
    length = float(norm(h_rhs))
    return scale(size / length, rhs) if length > 0.0 and math.isfinite(length) else rhs


def _damped(matvec: MatVec, damping: float) -> MatVec:
    if damping == 0.0:
        return matvec
    return lambda v: axpy(damping, v, matvec(v))


def _tolerance(rtol: float | None, x: Tensors) -> float:
    return 10 * torch.finfo(x[0].dtype).eps if rtol is None else rtol


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _check_not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


def _check_count(name: str, value: int, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}")
