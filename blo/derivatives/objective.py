"""Scalar losses of given parameters, and the conditions under which they can be evaluated twice
with one answer.

A hypergradient evaluates the same lower loss several times: at perturbed weights, under double
differentiation. Each evaluation must see the same dropout masks (`RandomState`) and must not meet
cached casts of other weights (`fresh_autocast`). An `Objective` owns both, and the scope in which
its gradients have to be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from blo.derivatives.precision import fresh_autocast
from blo.derivatives.pullback import Gradient
from blo.derivatives.random_state import RandomState
from blo.linear.tensors import Tensors

LossFn: TypeAlias = Callable[[Tensors, Tensors], Tensor]


class Objective(Protocol):
    """A scalar loss ``g(upper, lower)`` that gives the same value however often it is evaluated."""

    @property
    def precision(self) -> torch.dtype | None:
        """The coarsest type that the loss is computed in; None where it is that of its tensors."""

    def scope(self, upper: Tensors, lower: Tensors) -> AbstractContextManager[Callable[[], Tensor]]:
        """Return a context that yields ``evaluate() -> g(upper, lower)``.

        Gradients are taken inside the context: activation checkpointing runs the forward pass again
            during the
        backward pass and must find the same parameters. The context can be entered again later, to
        differentiate a graph that was kept.
        """

    def by_backward(self, upper: Tensors, lower: Tensors) -> Gradient:
        """Return the gradient of ``g(upper, lower)``, where parameters are sharded."""


@dataclass(frozen=True)
class FunctionObjective:
    """A plain function ``loss(upper, lower)`` as an `Objective`."""

    loss: LossFn
    random_state: RandomState
    device: torch.device
    name: str = "lower_loss"

    @property
    def precision(self) -> torch.dtype | None:
        """The type of the autocast context around the call, if any."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return None

    @contextmanager
    def scope(self, upper: Tensors, lower: Tensors) -> Iterator[Callable[[], Tensor]]:
        """Yield the evaluation of the loss at `upper` and `lower`."""

        def evaluate() -> Tensor:
            with self.random_state.replay(), fresh_autocast(self.device):
                return scalar(self.loss(upper, lower), self.name)

        yield evaluate

    def by_backward(self, upper: Tensors, lower: Tensors) -> Gradient:
        """Raise, as a plain function computes on the tensors that it is given."""
        raise TypeError(
            f"{self.name} was given sharded tensors (DTensor); fully_shard works with modules, in "
            "Problem and Engine, or give whole tensors"
        )


def scalar(value: object, name: str) -> Tensor:
    """Return the loss in `value`, a tensor of one element or a dict that holds one under "loss".

    Raises:
        TypeError: if `value` is neither, or no floating-point number.
        ValueError: if the tensor has more than one element.
    """
    loss = value["loss"] if isinstance(value, dict) and "loss" in value else value
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{name} must return a scalar tensor or a dict with a scalar tensor under 'loss', "
            f"got {type(value).__name__}"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"{name} must return a scalar, got a tensor of shape {tuple(loss.shape)}; "
            "take its mean or its sum"
        )
    if not loss.is_floating_point():
        raise TypeError(
            f"{name} must return a real number with decimals, got one of {loss.dtype}; take the "
            "square of its absolute value, or .float()"
        )
    return loss if loss.dim() == 0 else loss.reshape(())
