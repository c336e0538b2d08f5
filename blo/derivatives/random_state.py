"""The state of random generators, so that a loss is evaluated again with the draws it had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


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
