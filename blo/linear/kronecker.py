"""Kronecker products ``A (x) G`` of two positive semi-definite matrices, and their damped inverses.

The matrices are held by their eigenvalues, so that those of low rank cost their rank. A vector is a
matrix `V` with a row for each row of `G` and a column for each of `A`; the product takes it to
``G V A``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Factor(Protocol):
    """A positive semi-definite matrix ``U diag(values) U^T``."""

    @property
    def values(self) -> Tensor:
        """The eigenvalues that are kept."""

    @property
    def mean(self) -> float:
        """The mean of all eigenvalues."""

    def inwards(self, v: Tensor) -> Tensor:
        """Return ``U^T v``."""

    def outwards(self, c: Tensor) -> Tensor:
        """Return ``U c``."""


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

    def inwards(self, v: Tensor) -> Tensor:
        """Return ``U^T v``."""
        return self.vectors.T @ v

    def outwards(self, c: Tensor) -> Tensor:
        """Return ``U c``."""
        return self.vectors @ c


@dataclass(frozen=True)
class Diagonal:
    """``M = diag(values)``, as the counts of an embedding's rows are."""

    values: Tensor

    @property
    def mean(self) -> float:
        """The mean of all eigenvalues."""
        return float(self.values.mean())

    def inwards(self, v: Tensor) -> Tensor:
        """Return `v`."""
        return v

    def outwards(self, c: Tensor) -> Tensor:
        """Return `c`."""
        return c


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

    @property
    def values(self) -> Tensor:
        """The eigenvalues, ``(rank of G, rank of A)``."""
        return self.scale * torch.outer(self.outputs.values, self.inputs.values)

    def inwards(self, v: Tensor) -> Tensor:
        """Return the coordinates of `V` along the eigenvectors."""
        return self.inputs.inwards(self.outputs.inwards(v).T).T

    def outwards(self, c: Tensor) -> Tensor:
        """Return the `V` of these coordinates."""
        return self.inputs.outwards(self.outputs.outwards(c).T).T

    def draw(self, generator: torch.Generator) -> tuple[Tensor, float]:
        """Return a random `V` with the product for its covariance, and ``<V, scale * G V A>``."""
        values = self.values
        signs = torch.randint(0, 2, values.shape, generator=generator).to(values)
        drawn = self.outwards(values.sqrt() * (2.0 * signs - 1.0))
        return drawn, float(values.square().sum())

    def inverse(self, v: Tensor, damping: float) -> Tensor:
        """Return `V` divided by ``scale * A (x) G + damping I``; by the pseudo-inverse where
        `damping` is 0.
        """
        values, inside = self.values, self.inwards(v)
        if damping == 0.0:
            return self.outwards(torch.where(values > 0.0, inside / values, 0.0))
        weights = values / (damping * (values + damping))
        return v / damping - self.outwards(weights * inside)
