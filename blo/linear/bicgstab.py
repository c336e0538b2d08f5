"""BiCGSTAB: a matrix that need not be symmetric, in fixed memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from blo.linear.settings import check_count, check_not_negative, check_rtol
from blo.linear.system import LinearSystem, MatVec, Solution, Status, numbers
from blo.linear.tensors import Tensors, add, axpy, dot, norm, scale

# Vectors at an angle of smaller cosine are orthogonal to the recurrence: it begins anew.
ORTHOGONAL = 1e-8


@dataclass(frozen=True)
class BiCGSTAB:
    """Stabilised biconjugate gradients, for any square `H`, two products an iteration.

    Residuals are not monotone: the iterate with the smallest is returned. Where a recurrence breaks
    down, the iteration begins anew from its residual; where that breaks down too (a singular `H`,
    or one near skew-symmetry), it stops with status TRUNCATED. Eight vectors of memory, two waits
    for the device a product.

    Args:
        max_products: at most this many products; an odd one is used for half an iteration.
        rtol: converged when ``|r| <= rtol |rhs|``; None takes ten times the machine epsilon.
        damping: solves ``(H + damping I) v = rhs``.

    Reference: van der Vorst (1992), SIAM J. Sci. Stat. Comput. 13, 631-644.

    Example:
        >>> import torch
        >>> shear = lambda v: (torch.stack([v[0][0] + v[0][1], v[0][1]]),)
        >>> solution = BiCGSTAB(4)(shear, (torch.tensor([3.0, 1.0]),))
        >>> [round(x, 4) for x in solution.value[0].tolist()], solution.num_products
        ([2.0, 1.0], 3)
    """

    max_products: int = 20
    rtol: float | None = None
    damping: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("max_products", self.max_products, at_least=1)
        check_rtol(self.rtol)
        check_not_negative("damping", self.damping)

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the iterate of smallest residual, started from `init` or from zero."""
        system = LinearSystem(matvec, rhs, damping=self.damping)
        if system.trivial is not None:
            return system.trivial
        target = system.target(self.rtol)
        x, r, length = system.start(init)
        best, smallest = x, length
        status, norm_h = Status.TRUNCATED, 0.0
        p = shadow = r
        rho, size_shadow, fresh = length**2, length, True
        while smallest > target and system.num_products < self.max_products:
            hp = system.product(p)
            sigma, size_p, size_hp = numbers(dot(shadow, hp), norm(p), norm(hp))
            if not math.isfinite(size_hp):
                status = Status.DIVERGED
                break
            norm_h = max(norm_h, size_hp / size_p)
            if fresh and abs(sigma) <= ORTHOGONAL * size_shadow * size_hp and size_hp > 0.0:
                # r and H r are orthogonal: a shadow between them is orthogonal to neither.
                shadow = add(scale(1.0 / length, r), scale(1.0 / size_hp, hp))
                sigma, rho, size_shadow = numbers(dot(shadow, hp), dot(shadow, r), norm(shadow))
            alpha = rho / sigma if sigma != 0.0 else math.inf
            if system.singular_along(abs(alpha) * size_p, norm_h, smallest):
                if fresh:
                    break
                p = shadow = r
                rho, size_shadow, fresh = length**2, length, True
                continue
            half, s = axpy(alpha, p, x), axpy(-alpha, hp, r)
            size_s = float(norm(s))
            if size_s < smallest:
                best, smallest = half, size_s
            if smallest <= target or system.num_products >= self.max_products:
                break
            hs = system.product(s)
            inner, size_hs = numbers(dot(hs, s), norm(hs))
            if not math.isfinite(size_hs):
                status = Status.DIVERGED
                break
            norm_h = max(norm_h, size_hs / size_s)
            omega = inner / size_hs**2 if size_hs > 0.0 else math.inf
            if system.singular_along(abs(omega) * size_s, norm_h, smallest):
                break
            x, r = axpy(omega, s, half), axpy(-omega, hs, s)
            length, rho_following = numbers(norm(r), dot(shadow, r))
            if length < smallest:
                best, smallest = x, length
            if (
                abs(inner) <= ORTHOGONAL * size_s * size_hs
                or abs(rho_following) <= ORTHOGONAL * size_shadow * length
            ):
                p = shadow = r
                rho, size_shadow, fresh = length**2, length, True
                continue
            beta = (rho_following / rho) * (alpha / omega)
            p = axpy(beta, axpy(-omega, hp, p), r)
            rho, fresh = rho_following, False
        if smallest <= target:
            status = Status.CONVERGED
        return system.solution(best, status, smallest)
