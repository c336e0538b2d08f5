"""GMRES: minimal residuals for a matrix that need not be symmetric."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blo.linear.settings import check_count, check_not_negative, check_rtol
from blo.linear.system import SINGULAR, Basis, LinearSystem, MatVec, Solution, Start, Status
from blo.linear.tensors import Tensors, add, norm, scale


@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residuals, for any square `H`.

    The iterate after `k` products minimises ``|rhs - (H + damping I) v|`` over the Krylov space of
    dimension `k`. The basis of that space is kept and orthogonalised twice, so that rounding does
    not delay convergence as it can with `MINRES`; that costs ``restart + 1`` vectors of memory and
    one wait for the device a product.

    Args:
        max_products: at most this many products.
        restart: begin a new basis after this many products; None never does. Restarted, the method
            can stagnate.
        rtol: converged when ``|r| <= rtol |rhs|``; None takes ten times the machine epsilon.
        damping: solves ``(H + damping I) v = rhs``.

    Reference: Saad and Schultz (1986), SIAM J. Sci. Stat. Comput. 7, 856-869.

    Example:
        >>> import torch
        >>> turn = lambda v: (torch.stack([-v[0][1], v[0][0]]),)  # by a right angle
        >>> solution = GMRES(5)(turn, (torch.tensor([1.0, 3.0]),))
        >>> [round(x, 4) for x in solution.value[0].tolist()], solution.num_products
        ([3.0, -1.0], 2)
    """

    max_products: int = 20
    restart: int | None = None
    rtol: float | None = None
    damping: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("max_products", self.max_products, at_least=1)
        if self.restart is not None:
            check_count("restart", self.restart, at_least=1)
        check_rtol(self.rtol)
        check_not_negative("damping", self.damping)

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the last iterate, started from `init` or from zero."""
        system = LinearSystem(matvec, rhs, damping=self.damping)
        if system.trivial is not None:
            return system.trivial
        target = system.target(self.rtol)
        start, status = system.start(init), Status.TRUNCATED
        while start.length > target and system.num_products < self.max_products:
            left = self.max_products - system.num_products
            steps = left if self.restart is None else min(left, self.restart)
            before = start.length
            start, status = _cycle(system, start, target, min(steps, system.num_unknowns))
            if status is Status.DIVERGED or start.length > (1.0 - 1e-3) * before:
                break
        if start.length <= target:
            status = Status.CONVERGED
        return system.solution(start.x, status, start.length)


def _cycle(
    system: LinearSystem, start: Start, target: float, num_steps: int
) -> tuple[Start, Status]:
    """Return the best iterate in ``start.x`` plus the Krylov space of `num_steps` products."""
    basis = Basis(num_steps + 1, start.r)
    basis.append(scale(1.0 / start.length, start.r))
    problem = HessenbergProblem(start.length)
    status = Status.TRUNCATED
    for _ in range(num_steps):
        product = system.product(basis.last())
        rest, coefficients = basis.orthogonalise(product)
        *column, size_rest = torch.cat([coefficients, norm(rest)[None]]).tolist()
        if not math.isfinite(sum(column) + size_rest):
            status = Status.DIVERGED
            break
        exhausted = size_rest <= 10 * system.eps * math.hypot(*column, size_rest)
        length = problem.append(column, 0.0 if exhausted else size_rest)
        if exhausted:
            break
        basis.append(scale(1.0 / size_rest, rest))
        if length <= target:
            break
    if not problem.columns:
        return start, status
    y, residual = problem.solve(rcond=SINGULAR * system.eps)
    x = add(start.x, basis.combine(y))
    r = basis.combine(residual[: basis.count])
    return Start(x, r, float(torch.linalg.vector_norm(residual))), status


class HessenbergProblem:
    """``min_y |size e_1 - G y|`` for an upper Hessenberg `G` that grows by a column at a time."""

    def __init__(self, size: float) -> None:
        self.columns: list[list[float]] = []
        self._size = size
        self._rotations: list[tuple[float, float]] = []
        self._length = size

    def append(self, column: list[float], below: float) -> float:
        """Add a column and the entry below the diagonal; return the norm of the residual."""
        self.columns.append([*column, below])
        column = list(column)
        for i, (c, s) in enumerate(self._rotations):
            column[i], column[i + 1] = (
                c * column[i] + s * column[i + 1],
                c * column[i + 1] - s * column[i],
            )
        gamma = math.hypot(column[-1], below)
        c, s = (column[-1] / gamma, below / gamma) if gamma > 0.0 else (0.0, 1.0)
        self._rotations.append((c, s))
        self._length *= abs(s)
        return self._length

    def solve(self, rcond: float) -> tuple[Tensor, Tensor]:
        """Return the `y` of least norm, and the residual ``size e_1 - G y``, in float64.

        Singular values below `rcond` times the largest are taken for zero.
        """
        n = len(self.columns)
        g = torch.zeros(n + 1, n, dtype=torch.float64)
        for j, column in enumerate(self.columns):
            g[: len(column), j] = torch.tensor(column, dtype=torch.float64)
        first = torch.zeros(n + 1, dtype=torch.float64)
        first[0] = self._size
        y = torch.linalg.lstsq(g, first[:, None], rcond=rcond, driver="gelsd").solution[:, 0]
        return y, first - g @ y
