"""Independent references: problems with known hypergradients, finite differences.

The problems are those of the benchmarks: closed forms and dense matrices of autograd.functional.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.cases import Loss, TwoLevel, at_solution, logistic, newton, ridge, scalar_problem
from benchmarks.nested import GRAPHS, NestedQuadratics, Vector

__all__ = [
    "GRAPHS",
    "NestedQuadratics",
    "TwoLevel",
    "Vector",
    "by_matrices",
    "cosine",
    "finite_difference",
    "flat",
    "logistic",
    "newton",
    "relative_error",
    "ridge",
    "scalar_problem",
]


def by_matrices(f: Loss, g: Loss, x: Tensor, start: Tensor) -> TwoLevel:
    """The problem at its lower minimiser, its hypergradient from dense matrices."""
    return at_solution(f, g, x, newton(lambda w: g((x,), (w,)), start))


def finite_difference(
    f: Callable[[Tensor], float | Tensor], x: Tensor, radius: float = 1e-5
) -> Tensor:
    """The gradient of `f` at `x` by central differences, entry by entry."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        e = torch.zeros(x.numel(), dtype=x.dtype)
        e[i] = radius
        e = e.view_as(x)
        gradient.view(-1)[i] = (float(f(x + e)) - float(f(x - e))) / (2 * radius)
    return gradient


def relative_error(value: Tensor, reference: Tensor) -> float:
    """``|value - reference| / |reference|``."""
    return float((value - reference).norm() / reference.norm())


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of the angle between two tensors."""
    return float((a * b).sum() / (a.norm() * b.norm()))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all entries."""
    return torch.cat([t.reshape(-1) for t in tensors])
