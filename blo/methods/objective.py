"""Scalar losses of given parameters, and the conditions under which they can be evaluated twice
with one answer.

A hypergradient evaluates the same lower loss several times: at perturbed weights, under double
differentiation. Each evaluation must see the same dropout masks (`RandomState`) and must not meet
cached casts of other weights (`fresh_autocast`). An `Objective` owns both, and the scope in which
its gradients have to be taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from blo.methods.tensors import Tensors

LossFn: TypeAlias = Callable[[Tensors, Tensors], Tensor]


class Objective(Protocol):
    """A scalar loss ``g(upper, lower)`` that gives the same value however often it is evaluated."""

    @property
    def precision(self) -> torch.dtype | None:
        """The autocast type that the loss is computed in, or None without autocast."""

    def scope(self, upper: Tensors, lower: Tensors) -> AbstractContextManager[Callable[[], Tensor]]:
        """Return a context that yields ``evaluate() -> g(upper, lower)``.

        Gradients are taken inside the context: activation checkpointing runs the forward pass again
            during the
        backward pass and must find the same parameters. The context can be entered again later, to
        differentiate a graph that was kept.
        """


@dataclass(frozen=True)
class RandomState:
    """The state of the random generators of the CPU and of some devices."""

    states: tuple[tuple[torch.device, Tensor], ...]

    @staticmethod
    def capture(devices: Iterable[torch.device] = ()) -> RandomState:
        """Return the present state of the CPU's generator and of the generators of `devices`."""
        states = [(torch.device("cpu"), torch.get_rng_state())]
        states += [
            (device, torch.get_device_module(device).get_rng_state(device))
            for device in devices
            if device.type not in ("cpu", "meta")
        ]
        return RandomState(tuple(states))

    @staticmethod
    def draw(devices: Iterable[torch.device] = ()) -> RandomState:
        """Return a new state, seeded by one draw from the CPU's generator."""
        devices = tuple(devices)
        seed = int(torch.randint(2**62, ()).item())
        before = RandomState.capture(devices)
        torch.manual_seed(seed)
        state = RandomState.capture(devices)
        before.restore()
        return state

    def restore(self) -> None:
        """Set the generators to this state."""
        for device, state in self.states:
            if device.type == "cpu":
                torch.set_rng_state(state)
            else:
                torch.get_device_module(device).set_rng_state(state, device)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Run a block from this state and leave the generators as they were before the block."""
        before = RandomState.capture(device for device, _ in self.states)
        self.restore()
        try:
            yield
        finally:
            before.restore()


def devices_of(tensors: Iterable[Tensor]) -> tuple[torch.device, ...]:
    """Return the distinct devices of some tensors, in the order they are met."""
    return tuple(dict.fromkeys(t.device for t in tensors))


def fresh_autocast(
    device: torch.device, dtype: torch.dtype | None = None
) -> AbstractContextManager[object]:
    """Return a context that runs a block under autocast to `dtype` without casts that were cached
    for other weights.

    With ``dtype=None`` the autocast context around the block, if there is one, is entered afresh.
    Autocast keeps its low-precision copies of the weights until the outermost context ends; a
    finite difference inside one such context would compare a weight with itself and be exactly
    zero.
    """
    around = torch.is_autocast_enabled(device.type)
    if dtype is None and not around:
        return nullcontext()
    dtype = torch.get_autocast_dtype(device.type) if dtype is None else dtype
    return torch.autocast(device.type, dtype=dtype, cache_enabled=not around)


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


def scalar(value: object, name: str) -> Tensor:
    """Return the loss in `value`, a tensor of one element or a dict that holds one under "loss".

    Raises:
        TypeError: if `value` is neither.
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
    return loss.reshape(())
