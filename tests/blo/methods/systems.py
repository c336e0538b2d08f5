"""Linear systems with known answers, for the tests of the solvers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

MAX_SIZE = 7


@dataclass
class Products:
    """``v -> H v`` on vectors of any shapes, counting; not a number from some product on."""

    matrix: Tensor
    fail_from: float = math.inf
    count: int = field(default=0, init=False)

    def __call__(self, v: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.count += 1
        flat = torch.cat([t.reshape(-1) for t in v])
        product = self.matrix.to(flat.dtype) @ flat
        if self.count >= self.fail_from:
            product = product * math.nan
        pieces = product.split([t.numel() for t in v])
        return tuple(p.reshape(t.shape) for p, t in zip(pieces, v, strict=True))


@dataclass(frozen=True)
class System:
    """``matrix v = rhs``."""

    matrix: Tensor
    rhs: Tensor

    @property
    def solution(self) -> Tensor:
        return torch.linalg.solve(self.matrix, self.rhs)

    @property
    def size(self) -> int:
        return self.rhs.numel()

    def products(self, fail_from: float = math.inf) -> Products:
        return Products(self.matrix, fail_from)

    def residual(self, value: tuple[Tensor, ...]) -> float:
        """``|rhs - H v| / |rhs|`` of a solver's value."""
        v = torch.cat([t.reshape(-1) for t in value])
        return float((self.rhs - self.matrix @ v).norm() / self.rhs.norm())

    def error(self, value: tuple[Tensor, ...]) -> float:
        """``|v - v*| / |v*|`` of a solver's value."""
        v = torch.cat([t.reshape(-1) for t in value])
        return float((v - self.solution).norm() / self.solution.norm())


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def symmetric(eigenvalues: Tensor, generator: torch.Generator) -> Tensor:
    """A symmetric matrix with the given eigenvalues and random eigenvectors."""
    q, _ = torch.linalg.qr(normal(generator, eigenvalues.numel(), eigenvalues.numel()))
    matrix = q @ torch.diag(eigenvalues) @ q.T
    return 0.5 * (matrix + matrix.T)


def system(kind: str, size: int, seed: int, condition: float = 20.0) -> System:
    """A random system: "definite", "indefinite" or "general" (not symmetric)."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(size, generator=generator, dtype=torch.float64)
    eigenvalues = condition**spread
    if kind == "indefinite":
        eigenvalues = eigenvalues * torch.sign(normal(generator, size))
    matrix = symmetric(eigenvalues, generator)
    if kind == "general":
        matrix = matrix + 0.3 * normal(generator, size, size)
        # The singular values of the symmetric part bound those of a matrix from below.
        lowest = torch.linalg.eigvalsh(0.5 * (matrix + matrix.T))[0]
        matrix = matrix + torch.clamp(0.5 - lowest, min=0.0) * torch.eye(size, dtype=torch.float64)
    return System(matrix, normal(generator, size))


def systems(kind: str, min_size: int = 1, condition: float = 20.0) -> st.SearchStrategy[System]:
    """Random systems of one kind and several sizes."""
    return st.builds(
        system,
        st.just(kind),
        st.integers(min_size, MAX_SIZE),
        st.integers(0, 2**32 - 1),
        st.just(condition),
    )


def krylov(matrix: Tensor, start: Tensor, size: int) -> Tensor:
    """An orthonormal basis of the space spanned by ``start, matrix start, ...``, as columns."""
    columns = [start / start.norm()]
    for _ in range(size - 1):
        v = matrix @ columns[-1]
        for _ in range(2):
            for c in columns:
                v = v - (c @ v) * c
        if v.norm() < 1e-8:
            break
        columns.append(v / v.norm())
    return torch.stack(columns, dim=1)
