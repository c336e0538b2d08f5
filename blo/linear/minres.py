"""MINRES: the symmetric indefinite case, which is that of neural networks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from blo.linear.settings import check_count, check_not_negative, check_preconditioner, check_rtol
from blo.linear.system import (
    SINGULAR,
    LinearSystem,
    MatVec,
    Preconditioner,
    Solution,
    Status,
    numbers,
)
from blo.linear.tensors import Tensors, axpy, dot, norm, scale, zeros_like


@dataclass(frozen=True)
class MINRES:
    """Minimal residuals for a symmetric `H`, indefinite or singular ones included.

    The iterate after `k` products minimises ``|rhs - (H + damping I) v|`` over the Krylov space of
    dimension `k`, so that the residual never grows, whatever the signs of the eigenvalues. On a
    singular system it stops at a least-squares solution, with its residual and status TRUNCATED.
    Six vectors of memory, two waits for the device a product.

    With a preconditioner `P` it is the residual's norm in ``P^{-1}`` that never grows; the residual
    that is tested and reported is Euclidean all the same. A preconditioner that is not positive
    definite ends the solve with status INDEFINITE.

    Args:
        max_products: at most this many products.
        rtol: converged when ``|r| <= rtol |rhs|``; None takes ten times the machine epsilon.
        damping: solves ``(H + damping I) v = rhs``: a shift of the spectrum, which helps an
            indefinite `H` only where it moves no eigenvalue onto zero.
        preconditioner: for example ``Nystrom(10)``, built anew in every solve.

    Reference: Paige and Saunders (1975), SIAM J. Numer. Anal. 12, 617-629.

    Example:
        >>> import torch
        >>> swap = lambda v: (v[0].flip(0),)  # eigenvalues 1 and -1
        >>> solution = MINRES(5)(swap, (torch.tensor([1.0, 3.0]),))
        >>> [round(x, 4) for x in solution.value[0].tolist()], solution.num_products
        ([3.0, 1.0], 2)
    """

    max_products: int = 20
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
        apply = system.preconditioner(self.preconditioner)

        # Lanczos: H v_k = beta_k z_{k-1} + alpha_k z_k + beta_{k+1} z_{k+1},  v_k = P^{-1} z_k.
        z, v = r, apply(r)
        square = float(dot(z, v))
        if not square > 0.0:
            return system.solution(x, Status.INDEFINITE, length)
        phi_bar = math.sqrt(square)
        z, v = scale(1.0 / phi_bar, z), scale(1.0 / phi_bar, v)
        z_before = w = w_before = zeros_like(r)
        beta, largest, qr = 0.0, 0.0, Reflections(phi_bar)
        while system.num_products < self.max_products:
            y = axpy(-beta, z_before, system.product(v))
            curvature = dot(v, y)
            y = axpy(-curvature, z, y)
            u = apply(y)
            alpha, square = numbers(curvature, dot(y, u))
            if not (math.isfinite(alpha) and math.isfinite(square)):
                return system.solution(x, Status.DIVERGED, length)
            largest = max(largest, abs(alpha), beta, math.sqrt(abs(square)))
            if square < -system.eps * largest**2:
                return system.solution(x, Status.INDEFINITE, length)
            beta_following = math.sqrt(max(square, 0.0))
            epsilon, delta, gamma, slope = qr.append(alpha, beta_following)
            if slope <= SINGULAR * system.eps * largest:
                break  # |H r| <= slope |r|: x is a least-squares solution

            following = axpy(-delta, w, axpy(-epsilon, w_before, v))
            w_before, w = w, scale(1.0 / gamma, following)
            z_before, beta = z, beta_following
            exhausted = beta <= system.eps * largest
            if not exhausted:
                z, v = scale(1.0 / beta, y), scale(1.0 / beta, u)
            if self.preconditioner is None:
                size_w, length_following = float(norm(w)), qr.phi_bar
            else:
                r = axpy(-qr.phi_bar * qr.c, z, scale(qr.s**2, r))
                size_w, length_following = numbers(norm(w), norm(r))
            if system.singular_along(abs(qr.phi) * size_w, largest, length):
                break
            x, length = axpy(qr.phi, w, x), length_following
            if length <= target or exhausted:
                break
        status = Status.CONVERGED if length <= target else Status.TRUNCATED
        return system.solution(x, status, length)


class Reflections:
    """The QR factorisation of a tridiagonal matrix that grows by a column at a time, by plane
    reflections ``[[c, s], [s, -c]]``, and the right-hand side ``size e_1`` under them.

    Attributes:
        phi: the last entry of the right-hand side within the triangle.
        phi_bar: the entry below it, the norm of the residual.
    """

    def __init__(self, size: float) -> None:
        self.c, self.s = -1.0, 0.0
        self.phi, self.phi_bar = 0.0, size
        self._delta_bar = self._epsilon = 0.0

    def append(self, alpha: float, beta: float) -> tuple[float, float, float, float]:
        """Add the column ``(.., alpha, beta)``; return that of the triangle, ``(.., epsilon, delta,
        gamma)``, and ``|H r| / |r|`` for the residual before it.
        """
        epsilon = self._epsilon
        delta = self.c * self._delta_bar + self.s * alpha
        gamma_bar = self.s * self._delta_bar - self.c * alpha
        self._epsilon, self._delta_bar = self.s * beta, -self.c * beta
        slope = math.hypot(gamma_bar, self._delta_bar)
        gamma = math.hypot(gamma_bar, beta)
        if gamma > 0.0:
            self.c, self.s = gamma_bar / gamma, beta / gamma
        self.phi, self.phi_bar = self.c * self.phi_bar, self.s * self.phi_bar
        return epsilon, delta, gamma, slope
