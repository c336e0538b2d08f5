"""What the libraries are given to work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

# A module, or what stands in for one: called in the same way, with other parameters in it.
Part: TypeAlias = Callable[..., Any]
Loss: TypeAlias = Callable[[Part, Part], Tensor]


@dataclass(frozen=True)
class Task:
    """A two-level problem at its start, on one batch a level, so that every library computes the
    same.

    Attributes:
        problem: its name.
        setting: sizes and shapes.
        upper: the module that holds the upper parameters.
        lower: the module that holds the lower parameters; the same one for adapters.
        x: the upper parameters.
        y: the lower parameters.
        upper_loss: ``f(upper, lower)``.
        lower_loss: ``g(upper, lower)``.
        optimizer: of the lower problem, "SGD" or "Adam".
        lr: of the lower optimizer.
        steps: lower steps a round.
        upper_lr: of plain SGD above.
        from_upper: the lower steps start from the upper parameters in every round (MAML); `upper`
            then has the same shapes as `lower`, and holds `x`.
        data: inputs and targets below, inputs and targets above, of a regression: for a library
            that cannot call torch's modules.
    """

    problem: str
    setting: str
    upper: nn.Module
    lower: nn.Module
    x: list[nn.Parameter]
    y: list[nn.Parameter]
    upper_loss: Loss
    lower_loss: Loss
    optimizer: str = "SGD"
    lr: float = 0.1
    steps: int = 1
    upper_lr: float = 1e-3
    from_upper: bool = False
    data: tuple[Tensor, ...] | None = None

    @property
    def is_shared(self) -> bool:
        """Whether one module holds both levels."""
        return self.upper is self.lower

    def lower_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer of the lower parameters."""
        kind = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[self.optimizer]
        return kind(self.y, self.lr)

    def upper_optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimizer of the upper parameters."""
        return torch.optim.SGD(self.x, self.upper_lr)

    def f(self) -> Tensor:
        """Return the upper loss where the modules stand."""
        return self.upper_loss(self.upper, self.lower)

    def g(self) -> Tensor:
        """Return the lower loss where the modules stand."""
        return self.lower_loss(self.upper, self.lower)

    def at(self, loss: Loss, x: list[Tensor], y: list[Tensor]) -> Tensor:
        """Return a loss at other values of the parameters."""
        values = dict(zip(map(id, [*self.x, *self.y]), [*x, *y], strict=True))
        parts = [self.upper] if self.is_shared else [self.upper, self.lower]
        calls = [_called_with(part, values) for part in parts]
        return loss(calls[0], calls[-1])


def _called_with(module: nn.Module, values: dict[int, Tensor]) -> Part:
    """Return the module as a function, with `values` for parameters known by identity."""
    placed = {n: values[id(p)] for n, p in module.named_parameters() if id(p) in values}
    return lambda *inputs, **named: torch.func.functional_call(module, placed, inputs, named)
