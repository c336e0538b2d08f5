"""The Nystrom approximation of the inverse Hessian, on its own and as a preconditioner."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blo.linear.settings import check_count, check_flag, check_positive
from blo.linear.system import SINGULAR, Basis, LinearSystem, MatVec, Solution, Status, numbers
from blo.linear.tensors import Tensors, add, axpy, norm, scale, subtract, zeros_like


@dataclass(frozen=True)
class Nystrom:
    """The inverse of a Hessian of low rank, from `rank` of its columns and a multiple of the
    identity.

    With a sketch `S` of `rank` directions, ``H_k = H S (S^T H S)^+ S^T H`` agrees with `H` on them
    (and equals `H` where its rank is at most `rank`). The solution is ``(H_k + rho I)^{-1} rhs``,
    by the Woodbury identity in an orthonormal basis of the columns ``H S``. It does not iterate:
    `rank` products, one more for a warm start, which it refines, and one more without `rho`; `rank`
    vectors of memory, one wait for the device a product. The status is TRUNCATED and the residual
    is not known.

    For positive semi-definite `H`, and accurate only if `rho` is near the eigenvalues that the
    sketch leaves out. As a preconditioner it needs no such luck:
    ``CG(40, preconditioner=Nystrom(10))``; negative eigenvalues enter by their absolute values
    there.

    Args:
        rank: number of columns `k`, or of all unknowns where there are fewer.
        rho: added to all eigenvalues, as in the paper. None adds nothing to the eigenvalues of
            ``H_k``, and measures what stands for those left out, ``|H t| / |t|`` with `t` the part
            of the right-hand side that the sketch does not see: free of scale, and exact where
            `rank` reaches the number of unknowns.
        gaussian: sketch with Gaussian directions in place of columns of the identity: better where
            a few columns do not see the leading eigenvectors.
        seed: of the sketch; the same columns are taken in every solve.

    Reference: Hataya and Yamada (2023), arXiv:2302.09726; as a preconditioner Frangella, Tropp and
        Udell (2023), arXiv:2110.02820.

    Example:
        >>> import torch
        >>> H = torch.diag(torch.tensor([4.0, 0.0, 1.0]))
        >>> solution = Nystrom(3, rho=1.0)(lambda v: (H @ v[0],), (torch.ones(3),))
        >>> [round(x, 4) for x in solution.value[0].tolist()]
        [0.2, 1.0, 0.5]
    """

    rank: int = 20
    rho: float | None = None
    gaussian: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("rank", self.rank, at_least=1)
        check_positive("rho", self.rho, "to measure it")
        check_flag("gaussian", self.gaussian)

    @property
    def num_products(self) -> int:
        """Products that the approximation takes."""
        return self.rank + (self.rho is None)

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return ``init + (H_k + rho I)^{-1} (rhs - H init)``."""
        system = LinearSystem(matvec, rhs)
        if system.trivial is not None:
            return system.trivial
        x, r, length = system.start(init)
        if length <= system.target(None):
            return system.solution(x, Status.CONVERGED, length)
        sketch = self._sketch(system)
        tail = None if sketch is None else self._tail(system, sketch, r)
        if sketch is None or tail is None:
            return system.solution(x, Status.DIVERGED, length)
        value = add(x, sketch.solve(r, sketch.eigenvalues + (self.rho or 0.0), tail))
        return system.solution(value, Status.TRUNCATED, math.nan)

    def inverse(self, matvec: MatVec, like: Tensors, damping: float) -> MatVec:
        """Return ``r -> P^{-1} r`` with ``P = |H_k| + (rho + damping) I``, positive definite; the
        identity where a product is not finite.
        """
        system = LinearSystem(matvec, like)
        sketch = None if system.trivial is not None else self._sketch(system)
        tail = None if sketch is None else self._tail(system, sketch, system.rhs)
        if sketch is None or tail is None:
            return lambda r: r
        pack, unpack = system.layout.pack, system.layout.unpack
        shifted = sketch.eigenvalues.abs() + (self.rho or 0.0) + damping
        return lambda r: unpack(sketch.solve(pack(r), shifted, tail + damping))

    def _tail(self, system: LinearSystem, sketch: Sketch, r: Tensors) -> float | None:
        """Return the eigenvalue that stands for those left out; None where a product is not finite.

        The smallest of the sketch where `r` says nothing of them, 1 where there is none.
        """
        if self.rho is not None:
            return self.rho
        rest = sketch.complement(r)
        size_rest, size = numbers(norm(rest), norm(r))
        values = sketch.eigenvalues.abs()
        smallest = float(values.min()) if values.numel() else 1.0
        if size_rest <= SINGULAR * system.eps * size:
            return smallest
        measured = float(norm(system.undamped_product(scale(1.0 / size_rest, rest))))
        if not math.isfinite(measured):
            return None
        largest = float(values.max()) if values.numel() else 0.0
        return measured if measured > SINGULAR * system.eps * largest else smallest

    def _sketch(self, system: LinearSystem) -> Sketch | None:
        """Return ``H_k`` by its eigenvalues; None where a product is not finite."""
        directions = Directions.drawn(system, self)
        basis = Basis(len(directions), system.rhs)
        columns = []
        for s in directions:
            hs = system.undamped_product(s)
            rest, coefficients = basis.orthogonalise(hs)
            size_rest, size = numbers(norm(rest), norm(hs))
            if not math.isfinite(size):
                return None
            column = coefficients.new_zeros(len(directions))
            column[: basis.count] = coefficients
            if size_rest > 10 * system.eps * size:
                column[basis.count] = size_rest
                basis.append(scale(1.0 / size_rest, rest))
            columns.append(column)
        seen = torch.stack([basis.coefficients(s) for s in directions])  # S^T Q
        # Small matrices, in float64 on the CPU: H S = Q R, H_k = Q R (S^T Q R)^+ R^T Q^T.
        R = torch.stack(columns, dim=1)[: basis.count].to("cpu", torch.float64)
        W = seen.to("cpu", torch.float64) @ R
        values, vectors = _eigen(W, system.eps)
        half = R @ vectors
        values, vectors = _eigen(half @ torch.diag(1.0 / values) @ half.T, system.eps)
        return Sketch(basis, values, vectors)


@dataclass(frozen=True)
class Sketch:
    """``H_k = Q V diag(eigenvalues) V^T Q^T`` with orthonormal `Q` and `V`, the latter small."""

    basis: Basis
    eigenvalues: Tensor
    vectors: Tensor

    def solve(self, r: Tensors, shifted: Tensor, tail: float) -> Tensors:
        """Return ``Q V diag(1 / shifted) V^T Q^T r + (I - Q V V^T Q^T) r / tail``."""
        c = self._coordinates(r)
        inside = self.basis.combine(self.vectors.to(c) @ (c / shifted.to(c)))
        return axpy(1.0 / tail, self.complement(r), inside)

    def complement(self, r: Tensors) -> Tensors:
        """Return ``(I - Q V V^T Q^T) r``."""
        c = self._coordinates(r)
        return subtract(r, self.basis.combine(self.vectors.to(c) @ c))

    def _coordinates(self, r: Tensors) -> Tensor:
        coefficients = self.basis.coefficients(r)
        return self.vectors.to(coefficients).T @ coefficients


@dataclass(frozen=True)
class Directions:
    """The sketch: columns of the identity or Gaussian vectors, made when they are asked for."""

    like: Tensors
    indices: tuple[int, ...]
    seeds: tuple[int, ...] | None

    @staticmethod
    def drawn(system: LinearSystem, nystrom: Nystrom) -> Directions:
        """Return the directions that the seed of `nystrom` stands for."""
        generator = random.Random(nystrom.seed)
        n = system.num_unknowns
        k = min(nystrom.rank, n)
        indices = tuple(generator.sample(range(n), k))
        seeds = tuple(generator.getrandbits(62) for _ in range(k)) if nystrom.gaussian else None
        return Directions(system.rhs, indices, seeds)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.indices)

    def __iter__(self) -> Iterator[Tensors]:
        """Make each in turn."""
        for i, index in enumerate(self.indices):
            yield self._column(index) if self.seeds is None else self._gaussian(self.seeds[i])

    def _column(self, index: int) -> Tensors:
        column = zeros_like(self.like)
        for t in column:
            if 0 <= index < t.numel():
                t[index] = 1.0
            index -= t.numel()
        return column

    def _gaussian(self, seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in self.like
        )


def _eigen(matrix: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues that rounding tells from zero, and their eigenvectors."""
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
    if values.numel():
        kept = values.abs() > values.numel() * eps * values.abs().max()
        values, vectors = values[kept], vectors[:, kept]
    return values, vectors
