"""The truncated Neumann series."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from blo.linear.settings import check_count, check_not_negative, check_positive, check_rtol
from blo.linear.system import Basis, LinearSystem, MatVec, Solution, Status, add_into
from blo.linear.tensors import Tensors, norm, scale, subtract


@dataclass(frozen=True)
class Neumann:
    """Truncated Neumann series.

    ``v = init + scale * sum_{k=0}^{K} (I - scale H)^k r`` with ``r = rhs - H init`` after `K`
    products, which converges iff every eigenvalue of `H` that `r` excites lies in
    ``(0, 2 / scale)``. A term is the residual of the sum before it. For symmetric `H` the ratio of
    successive terms never falls, so a term larger than the one before it proves divergence: the sum
    without it is returned, with status DIVERGED. Otherwise the residual reported is that of the sum
    without its last term, an upper bound.

    Args:
        max_products: at most this many products, at least 1 unless `scale` is given.
        scale: None takes ``1 / L`` with `L` the largest curvature seen by `num_power_iterations`
            power iterations from `r`. They see the eigenvectors that the series sees, and cost
            nothing: the first terms of the series are combinations of the same powers ``H^k r``.
            Where a growing term shows a larger curvature later, the sum is continued with its
            inverse.
        damping: solves ``(H + damping I) v = rhs``.
        rtol: converged when ``|r| <= rtol |rhs|``; None takes ten times the machine epsilon.
        num_power_iterations: at most; a vector of memory each.

    Example:
        >>> import torch
        >>> double, rhs = lambda v: (2 * v[0],), (torch.tensor([8.0]),)  # solved by 4
        >>> solution = Neumann(2, scale=0.25)(double, rhs)  # (8 + 4 + 2) / 4
        >>> solution.value[0].tolist(), solution.status.value
        ([3.5], 'truncated')
        >>> Neumann(2, scale=1.5)(double, rhs).status.value  # 2 is not below 2 / scale
        'diverged'

    Reference: Lorraine, Vicol and Duvenaud (2020), arXiv:1911.02590, algorithm 3.
    """

    max_products: int = 20
    scale: float | None = None
    damping: float = 0.0
    rtol: float | None = None
    num_power_iterations: int = 5

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("max_products", self.max_products, at_least=1 if self.scale is None else 0)
        check_not_negative("damping", self.damping)
        check_rtol(self.rtol)
        check_count("num_power_iterations", self.num_power_iterations, at_least=1)
        check_positive("scale", self.scale, "to estimate it")

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the truncated series."""
        system = LinearSystem(matvec, rhs, damping=self.damping)
        if system.trivial is not None:
            return system.trivial
        target = system.target(self.rtol)
        x, term, length = system.start(init if self.max_products > 0 else None)
        if length <= target:
            return system.solution(x, Status.CONVERGED, length, self.scale)
        num_powers = min(self.num_power_iterations, self.max_products - system.num_products)
        if self.scale is None and num_powers == 0:
            return system.solution(x, Status.TRUNCATED, length)
        powers, step, known, slack = None, self.scale, 0, 1.0 + 10 * system.eps
        if step is None:
            powers = Powers(system, term, length, num_powers)
            step, known = powers.step, powers.num_products
        add_into(x, step, term)
        for k in itertools.count(1):
            if powers is not None and k <= known:
                before, term = term, powers.term(k)
                along = norm(subtract(before, term)) / step
            elif system.num_products < self.max_products:
                along = norm(system.descend(term, step))
            else:
                break
            length, length_before = float(norm(term)), length
            if not length <= slack * length_before:
                curvature = float(along) / length_before
                if self.scale is not None or not 1.1 < step * curvature < math.inf:
                    return system.solution(x, Status.DIVERGED, length, step)
                step, known = 1.0 / curvature, 0
            add_into(x, step, term)
            if length <= target:
                break
        status = Status.CONVERGED if length <= target else Status.TRUNCATED
        return system.solution(x, status, length, step)


class Powers:
    """``H^k r`` by power iteration, the curvature bound that they give, and the first terms
    ``(I - step H)^k r`` of the Neumann series as their combinations.
    """

    def __init__(self, system: LinearSystem, r: Tensors, length: float, num_products: int) -> None:
        self.num_products = 0
        self._lengths = [length]
        self._directions = Basis(num_products + 1, r)
        self._directions.append(scale(1.0 / self._lengths[0], r))
        for _ in range(num_products):
            following = system.product(self._directions.last())
            length = float(norm(following))
            self.num_products += 1
            self._lengths.append(length)
            if not (length > 0.0 and math.isfinite(length)):
                self._directions.append(following)
                break
            self._directions.append(scale(1.0 / length, following))

    @property
    def step(self) -> float:
        """``1 / max_k |H u_k|`` over the unit vectors ``u_k``; 1 where `H` maps them to zero."""
        bound = max((a for a in self._lengths[1:] if math.isfinite(a)), default=0.0)
        return 1.0 / bound if bound > 0.0 else 1.0

    def term(self, k: int) -> Tensors:
        """Return ``(I - step H)^k r = sum_j C(k, j) (-step)^j H^j r``."""
        factors, power = [], self._lengths[0]
        for j in range(k + 1):
            if j > 0:
                power *= -self.step * self._lengths[j]
            factors.append(math.comb(k, j) * power)
        return self._directions.combine(torch.tensor(factors, dtype=torch.float64))
