"""The modules that hold the parameters of the problems."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Penalties(nn.Module):
    """Log penalties, one for each feature; called, it returns the penalties."""

    def __init__(self, size: int, value: float) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.full((size,), value))

    def forward(self) -> Tensor:
        return self.logs.exp()


class Importance(nn.Module):
    """A number for each example; called, it returns weights between 0 and 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(size))

    def forward(self) -> Tensor:
        return self.logits.sigmoid()


class Linear(nn.Module):
    """A linear model, which returns its weights beside what it predicts."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(0.1 * torch.randn(size))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs @ self.w, self.w


class Grid(nn.Module):
    """Parameters in rows, returned as they are."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(rows, size))

    def forward(self) -> Tensor:
        return self.w


class Layers(nn.Sequential):
    """A network of linear layers with ReLU between them; it returns half its squared length beside
    what it predicts.
    """

    def __init__(self, *sizes: int) -> None:
        *pairs, last = pairwise(sizes)
        inner: list[nn.Module] = []
        for i, o in pairs:
            inner += [nn.Linear(i, o), nn.ReLU()]
        super().__init__(*inner, nn.Linear(*last))

    def forward(self, inputs: Tensor, *, with_size: bool = False) -> Any:
        outputs = super().forward(inputs)
        if not with_size:
            return outputs
        parts = [part for part in self if isinstance(part, nn.Linear)]
        return outputs, 0.5 * sum((p.weight**2).sum() + (p.bias**2).sum() for p in parts)
