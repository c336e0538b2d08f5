"""Directional derivatives by extrapolated central differences, and vectors compared with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from blo.linear.tensors import Tensors, axpy, dot, norm, numel, scale

# (first step relative to the vector, step of the reference's own products), by type.
STEPS: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-2, 1e-5),
    torch.float32: (5e-2, 5e-3),
}
COARSE = (1e-1, 5e-2)  # half precision
LEVELS = 7  # halvings of the first step, plus one


class Slope(NamedTuple):
    """A derivative, and how far two of its estimates lie apart."""

    value: float
    uncertainty: float


class Basis(NamedTuple):
    """Orthonormal directions: the span of the vectors in question, then random ones beside it."""

    directions: tuple[Tensors, ...]
    num_own: int
    weight: float  # dimensions that a random direction stands for

    @property
    def complete(self) -> bool:
        """Whether the directions span the whole space."""
        return len(self.directions) == numel(self.directions[0])


class Measure(NamedTuple):
    """A vector compared with a reference that is known by its slopes along a basis.

    Attributes:
        size: ``|v|``.
        length: ``|reference|``.
        inner: ``<v, reference>``.
        error: ``|v - reference|``.
        unsure: how far off the reference may be.
    """

    size: float
    length: float
    inner: float
    error: float
    unsure: float

    @property
    def relative_error(self) -> float:
        """The error over the length of the reference; 0 where both are."""
        return _over(self.error, self.length)

    @property
    def uncertainty(self) -> float:
        """The reference's uncertainty over its length; infinite where that is 0."""
        return _over(self.unsure, self.length) if self.length else math.inf

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the two; 0 where one of them is."""
        return self.inner / (self.size * self.length) if self.size and self.length else 0.0

    @property
    def scale_ratio(self) -> float:
        """The length of the vector over that of the reference; 1 where both are 0."""
        return _over(self.size, self.length) if self.size or self.length else 1.0

    @property
    def excess(self) -> float:
        """The error beyond what the reference leaves open, over the longer of the two."""
        return _over(max(self.error - 3 * self.unsure, 0.0), max(self.size, self.length))


def slopes(
    f: Callable[[Tensors], Sequence[float]],
    point: Tensors,
    basis: Basis,
    dtype: torch.dtype,
    radius: float | None = None,
) -> list[list[Slope]]:
    """Return the derivatives at `point` of the numbers that `f` returns, along each direction.

    Args:
        f: a function of a vector.
        point: the vector.
        basis: the directions.
        dtype: the type that `f` is as accurate as.
        radius: first step relative to `point`; None takes that of `dtype` in `STEPS`.
    """
    start = step_length(point, STEPS.get(dtype, COARSE)[0] if radius is None else radius)
    eps = torch.finfo(dtype).eps
    found = []
    for d in basis.directions:

        def along(t: float, d: Tensors = d) -> Sequence[float]:
            return f(axpy(t, d, point))

        found.append(_extrapolated(along, start, eps))
    return found


def basis(own: Sequence[Tensors], like: Tensors, *, num_random: int, seed: int) -> Basis:
    """Return the span of the `own` vectors and `num_random` random directions orthogonal to it.

    Where that many directions span the whole space, errors are exact; elsewhere the random ones
    stand for all that are left out, which is right in the mean.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensors] = []
    for vector in own:
        _append(found, vector)
    num_own, size = len(found), numel(like)
    for _ in range(min(num_random, size - num_own)):
        noise = (torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in like)
        pairs = zip(noise, like, strict=True)
        _append(found, tuple(n.to(t.device, t.dtype) for n, t in pairs))
    num_random = len(found) - num_own
    weight = (size - num_own) / num_random if num_random else 0.0
    return Basis(tuple(found), num_own, weight)


def measure(vector: Tensors, basis: Basis, reference: Sequence[Slope]) -> Measure:
    """Return how `vector`, which lies in the span of the basis' own directions, compares with the
    vector whose slopes along the basis are given.
    """
    weights = [1.0] * basis.num_own + [basis.weight] * (len(basis.directions) - basis.num_own)
    mine = [float(dot(vector, d)) for d in basis.directions]
    terms = list(zip(weights, mine, reference, strict=True))
    return Measure(
        size=float(norm(vector)),
        length=math.sqrt(sum(w * s.value**2 for w, _, s in terms)),
        inner=sum(w * a * s.value for w, a, s in terms),
        error=math.sqrt(sum(w * (a - s.value) ** 2 for w, a, s in terms)),
        unsure=math.sqrt(sum(w * s.uncertainty**2 for w, _, s in terms)),
    )


def step_length(point: Tensors, radius: float) -> float:
    """Return `radius` times the length of the vector, or of a vector of tenths if longer."""
    return radius * max(float(norm(point)), 0.1 * math.sqrt(numel(point)))


def steps_of(point: Tensors) -> tuple[float, float]:
    """Return the entry of `STEPS` for the coarsest type in `point`."""
    coarsest = max((t.dtype for t in point), key=lambda dtype: torch.finfo(dtype).eps)
    return STEPS.get(coarsest, COARSE)


def unit(point: Tensors, seed: int) -> Tensors:
    """Return a random direction of length 1."""
    return basis((), point, num_random=1, seed=seed).directions[0]


def _extrapolated(f: Callable[[float], Sequence[float]], start: float, eps: float) -> list[Slope]:
    """Return the derivatives at 0 of the numbers that `f` returns, by Ridders' extrapolation.

    Central differences with steps ``start / 2^i`` are extrapolated to step 0; each number takes the
    entry of the table that its neighbours confirm best. Stops when halving makes all of them worse.
    `eps` is the relative rounding error of the numbers.

    Reference: Ridders (1982), Advances in Engineering Software 4(2), 75-76.
    """
    found: list[Slope] = []
    older: list[list[float]] = []
    for i in range(LEVELS):
        h = start / 2**i
        pairs = list(zip(f(h), f(-h), strict=True))
        rows: list[list[float]] = []
        for k, (plus, minus) in enumerate(pairs):
            row = [(plus - minus) / (2 * h)]
            rounding = eps * (abs(plus) + abs(minus)) / h
            if i == 0:
                found.append(Slope(row[0], math.inf))
            for j, before in enumerate(older[k] if i else ()):
                row.append(row[j] + (row[j] - before) / (4 ** (j + 1) - 1))
                apart = max(abs(row[j + 1] - row[j]), abs(row[j + 1] - before)) + rounding
                if apart < found[k].uncertainty:
                    found[k] = Slope(row[j + 1], apart)
            rows.append(row)
        if i and all(
            abs(row[i] - before[i - 1]) > 2 * best.uncertainty
            or best.uncertainty <= 1e-8 * abs(best.value)
            for row, before, best in zip(rows, older, found, strict=True)
        ):
            break
        older = rows
    return found


def _append(found: list[Tensors], vector: Tensors) -> None:
    """Append the part of `vector` that is orthogonal to those found, at length 1."""
    size = float(norm(vector))
    if not size > 0.0:
        return
    v = scale(1.0 / size, vector)
    for _ in range(2):
        for d in found:
            v = axpy(-float(dot(d, v)), d, v)
    left = float(norm(v))
    if left > math.sqrt(max(torch.finfo(t.dtype).eps for t in v)):
        found.append(scale(1.0 / left, v))


def _over(a: float, b: float) -> float:
    return a / b if b else (0.0 if a == 0.0 else math.inf)
