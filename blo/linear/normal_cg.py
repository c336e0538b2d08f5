"""Conjugate gradients on the normal equations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from blo.linear.settings import check_count, check_not_negative, check_rtol
from blo.linear.system import SINGULAR, LinearSystem, MatVec, Solution, Status, numbers
from blo.linear.tensors import Tensors, axpy, norm


@dataclass(frozen=True)
class NormalCG:
    """Conjugate gradients on ``H^2 v = H rhs``, for a symmetric `H` of any signature.

    The residual ``|rhs - H v|`` never grows. Two products an iteration, and the square of the
    condition number: `MINRES` reaches the same residual with half the products or fewer. A singular
    system ends at the least-squares solution, with its residual and status TRUNCATED. Five vectors
    of memory, three waits for the device an iteration.

    Args:
        max_products: at most this many products, at least 2.
        rtol: converged when ``|r| <= rtol |rhs|``; None takes ten times the machine epsilon.
        damping: solves ``(H + damping I) v = rhs``, by the normal equations of ``H + damping I``.

    Reference: Hestenes and Stiefel (1952), section 10; Blondel et al. (2022), arXiv:2105.15183.

    Example:
        >>> import torch
        >>> swap = lambda v: (v[0].flip(0),)
        >>> solution = NormalCG(2)(swap, (torch.tensor([1.0, 3.0]),))
        >>> [round(x, 4) for x in solution.value[0].tolist()], solution.num_products
        ([3.0, 1.0], 2)
    """

    max_products: int = 20
    rtol: float | None = None
    damping: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("max_products", self.max_products, at_least=2)
        check_rtol(self.rtol)
        check_not_negative("damping", self.damping)

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the last iterate, started from `init` or from zero."""
        system = LinearSystem(matvec, rhs, damping=self.damping)
        if system.trivial is not None:
            return system.trivial
        target = system.target(self.rtol)
        x, r, length = system.start(init)
        p, size_before, norm_h = None, 0.0, 0.0
        while length > target and system.num_products + 2 <= self.max_products:
            s = system.product(r)
            size = float(norm(s))
            if not math.isfinite(size):
                return system.solution(x, Status.DIVERGED, length)
            norm_h = max(norm_h, size / length)
            if size <= SINGULAR * system.eps * norm_h * length:
                break  # H r = 0: x is a least-squares solution
            p = s if p is None else axpy((size / size_before) ** 2, p, s)
            q = system.product(p)
            size_q, size_p = numbers(norm(q), norm(p))
            if not math.isfinite(size_q):
                return system.solution(x, Status.DIVERGED, length)
            norm_h = max(norm_h, size_q / size_p)
            alpha = (size / size_q) ** 2 if size_q > 0.0 else math.inf
            if system.singular_along(alpha * size_p, norm_h, length):
                break
            x, r = axpy(alpha, p, x), axpy(-alpha, q, r)
            length, size_before = float(norm(r)), size
        status = Status.CONVERGED if length <= target else Status.TRUNCATED
        return system.solution(x, status, length)
