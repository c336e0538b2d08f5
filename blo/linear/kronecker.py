"""Kronecker products ``A (x) G`` of two positive semi-definite matrices, and their damped inverses.

The matrices are held by their eigenvalues, so that those of low rank cost their rank. A vector is a
matrix `V` with a row for each row of `G` and a column for each of `A`; the product takes it to
``G V A``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Factor(Protocol):
    """A positive semi-definite matrix, as a map of the columns of a matrix."""

    @property
    def mean(self) -> float:
        """The mean of all eigenvalues."""

    @property
    def values(self) -> Tensor:
        """The eigenvalues that are kept."""

    def half(self, v: Tensor) -> Tensor:
        """Return the product with ``U diag(sqrt(values))``, a square root of the matrix."""

    def inverse(self, v: Tensor, shift: float) -> Tensor:
        """Return ``(M + shift I)^{-1} v``; the pseudo-inverse where `shift` is 0."""


@dataclass(frozen=True)
class Covariance:
    """``M = U diag(values) U^T``, with the eigenvalues of rounding left out.

    Attributes:
        values: the eigenvalues above zero, ``(rank,)``.
        vectors: `U`, ``(size, rank)``, orthonormal columns.
    """

    values: Tensor
    vectors: Tensor

    @staticmethod
    def of(rows: Sequence[Tensor], scale: float) -> Covariance:
        """Return ``scale * sum_i R_i^T R_i`` for matrices of rows ``(count, size)``: by their inner
        products where there are fewer rows than columns.
        """
        found = torch.cat(tuple(rows)) if len(rows) > 1 else rows[0]
        few = found.shape[0] < found.shape[1]
        small = found @ found.T if few else found.T @ found
        values, vectors = torch.linalg.eigh(small)
        least = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0.0)
        kept = values > least
        values, vectors = values[kept], vectors[:, kept]
        if few:
            vectors = found.T @ (vectors / values.sqrt())
        return Covariance(values * scale, vectors)

    @property
    def mean(self) -> float:
        """The mean of all eigenvalues."""
        return float(self.values.sum()) / self.vectors.shape[0]

    def half(self, v: Tensor) -> Tensor:
        """Return the product with ``U diag(sqrt(values))``."""
        return self.vectors @ (self.values.sqrt()[:, None] * v)

    def inverse(self, v: Tensor, shift: float) -> Tensor:
        """Return ``(M + shift I)^{-1} v``."""
        inside = self.vectors.T @ v
        if shift == 0.0:
            return self.vectors @ (inside / self.values[:, None])
        weights = self.values / (shift * (self.values + shift))
        return v / shift - self.vectors @ (weights[:, None] * inside)


@dataclass(frozen=True)
class Diagonal:
    """``M = diag(values)``, as the counts of an embedding's rows are."""

    values: Tensor

    @property
    def mean(self) -> float:
        """The mean of all eigenvalues."""
        return float(self.values.mean())

    def half(self, v: Tensor) -> Tensor:
        """Return the product with ``diag(sqrt(values))``."""
        return self.values.sqrt()[:, None] * v

    def inverse(self, v: Tensor, shift: float) -> Tensor:
        """Return ``(M + shift I)^{-1} v``."""
        shifted = self.values[:, None] + shift
        return torch.where(shifted > 0.0, v / shifted, 0.0)


@dataclass(frozen=True)
class Kronecker:
    """``scale * A (x) G``.

    Args:
        inputs: `A`.
        outputs: `G`.
        scale: a number above 0.
    """

    inputs: Factor
    outputs: Factor
    scale: float = 1.0

    @property
    def mean(self) -> float:
        """The mean of all eigenvalues."""
        return self.scale * self.inputs.mean * self.outputs.mean

    def draw(self, generator: torch.Generator) -> tuple[Tensor, float]:
        """Return a random `V` with ``E[vec(V) vec(V)^T] = A (x) G``, and ``<V, A (x) G V>``."""
        a, g = self.inputs.values, self.outputs.values
        signs = torch.randint(0, 2, (len(g), len(a)), generator=generator).to(g)
        drawn = self.inputs.half(self.outputs.half(2.0 * signs - 1.0).T).T
        return drawn, float(a.square().sum() * g.square().sum())

    def inverse(self, v: Tensor, damping: float) -> Tensor:
        """Return `V` divided by ``scale * A (x) G + damping I``, nearly.

        The damping is shared by the factors, ``(A + pi sqrt(d) I) (x) (G + sqrt(d) / pi I)`` with
        ``d = damping / scale``, where ``pi^2`` is the mean eigenvalue of `A` over that of `G`: of
        all shares the one for which a bound on what is added too much is least. Exact where the
        damping is 0.

        Reference: Martens and Grosse (2015), arXiv:1503.05671, section 6.3.
        """
        if not self.mean > 0.0:
            return v / damping if damping > 0.0 else torch.zeros_like(v)
        root = math.sqrt(damping / self.scale)
        pi = math.sqrt(self.inputs.mean / self.outputs.mean)
        inner = self.outputs.inverse(v, root / pi)
        return self.inputs.inverse(inner.T, root * pi).T / self.scale
