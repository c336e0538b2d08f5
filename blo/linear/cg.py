"""Conjugate gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

from blo.linear.settings import check_count, check_not_negative, check_preconditioner, check_rtol
from blo.linear.system import (
    LinearSystem,
    MatVec,
    Preconditioner,
    Solution,
    Status,
    add_into,
    numbers,
    scale_into,
)
from blo.linear.tensors import Tensors, axpy, dot, norm, scale


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
        p = tuple(t.clone() for t in apply(r))  # x, r and p are edited in place
        # |r|^2 and |p|^2, in the geometry of the preconditioner
        rz = pp = length * length if self.preconditioner is None else float(dot(r, p))
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
            add_into(x, alpha, p)
            add_into(r, -alpha, hp)
            z, moved = apply(r), True
            if self.preconditioner is None:
                length = float(norm(r))
                rz_following = length * length
            else:
                length, rz_following = numbers(norm(r), dot(r, z))
            if length <= target:
                return system.solution(x, Status.CONVERGED, length)
            beta = rz_following / rz
            scale_into(p, beta)
            add_into(p, 1.0, z)
            pp, rz = rz_following + beta**2 * pp, rz_following
        return system.solution(x, Status.TRUNCATED, length)
