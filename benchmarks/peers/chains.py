"""Chains of two and more levels, each a function of the type it is computed in and of its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.nested import Vector


@dataclass(frozen=True)
class Chain:
    """Quadratic problems, each but the top one reading the level above, the top one reading all.

    Level k > 0 minimises ``y_k H_k y_k / 2 + b_k y_k + y_k C_k y_{k-1}``, and all of them stand at
    their solution for the top variables x = y_0; the top one minimises ``x H_0 x / 2 + sum_k
    |y_k - t_k + C_k x|^2 / 2``. What is numbered 0 and not in these formulas is not used.

    Attributes:
        modules: that hold y_k, top first.
        curvatures: H_k, positive definite.
        linear: b_k.
        shifts: t_k.
        couplings: C_k.
        lr: of plain SGD below.
        upper_lr: of plain SGD at the top.
    """

    modules: list[Vector]
    curvatures: list[Tensor]
    linear: list[Tensor]
    shifts: list[Tensor]
    couplings: list[Tensor]
    lr: float = 0.1
    upper_lr: float = 1e-3
    problem: str = "chain"
    steps: int = 1
    optimizer: str = "SGD"

    @property
    def setting(self) -> str:
        """Sizes."""
        return f"{len(self.modules)} levels of {len(self.linear[0])} unknowns"

    @property
    def x(self) -> list[nn.Parameter]:
        """The parameters at the top."""
        return [self.modules[0].value]

    @property
    def y(self) -> list[nn.Parameter]:
        """The parameters of the levels below, from the top down."""
        return [module.value for module in self.modules[1:]]

    def loss(self, level: int) -> Tensor:
        """Return the loss of a level where the modules stand; 0 is the top."""
        return self.at(level, [module.value for module in self.modules])

    def at(self, level: int, values: Sequence[Tensor]) -> Tensor:
        """Return the loss of a level at other values of all of them."""
        v = values[level]
        own = 0.5 * v @ (self.curvatures[level] @ v)
        if level:
            return own + self.linear[level] @ v + v @ (self.couplings[level] @ values[level - 1])
        for y, shift, coupling in zip(values[1:], self.shifts[1:], self.couplings[1:], strict=True):
            own = own + 0.5 * (y - shift + coupling @ v).square().sum()
        return own

    def optimizer_of(self, level: int) -> torch.optim.Optimizer:
        """Return a new optimizer of a level."""
        return torch.optim.SGD([self.modules[level].value], self.lr if level else self.upper_lr)


def chain(dtype: torch.dtype, *, levels: int, size: int = 3) -> Chain:
    """Return a chain at its solution; numbers are drawn in float64 and cast."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def positive() -> Tensor:
        a = normal(size, size) / size**0.5
        return a @ a.T + 2 * torch.eye(size, dtype=torch.float64)

    curvatures = [positive() for _ in range(levels)]
    couplings = [normal(size, size) / size**0.5 for _ in range(levels)]
    linear, shifts = ([normal(size) for _ in range(levels)] for _ in range(2))
    values = [normal(size)]
    for h, b, c in zip(curvatures[1:], linear[1:], couplings[1:], strict=True):
        values.append(-torch.linalg.solve(h, b + c @ values[-1]))
    cast = ([t.to(dtype) for t in part] for part in (curvatures, linear, shifts, couplings))
    return Chain([Vector(v.to(dtype)) for v in values], *cast)
