"""Closures over modules as pure losses of given parameters.

A user's loss is a closure ``loss(batch)`` over ordinary modules. To evaluate it at other values of
some parameters, the tensors are put in the parameters' places in the modules for the time of a
scope, and buffers are replaced by copies. No parameter is ever edited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from blo.batches import own_copy
from blo.derivatives.objective import scalar
from blo.derivatives.precision import fresh_autocast
from blo.derivatives.random_state import RandomState
from blo.linear.tensors import Tensors

Loss: TypeAlias = Callable[[Any], "Tensor | dict[str, Any]"]


class ParameterSpace:
    """The places of all parameters and buffers of some modules, each parameter known by identity.

    A parameter shared by several modules has several places, and all of them are substituted
    together.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        self._buffers: list[tuple[dict[str, Any], str]] = []
        self.names: dict[int, str] = {}
        seen: set[int] = set()
        for i, module in enumerate(modules):
            for prefix, part in module.named_modules():
                if id(part) in seen:
                    continue
                seen.add(id(part))
                for name, parameter in part._parameters.items():
                    if parameter is not None:
                        place = (part._parameters, name)
                        self._places.setdefault(id(parameter), []).append(place)
                        label = f"{i}.{prefix}.{name}" if prefix else f"{i}.{name}"
                        self.names.setdefault(id(parameter), label)
                self._buffers += [
                    (part._buffers, n) for n, b in part._buffers.items() if b is not None
                ]

    def __contains__(self, parameter: Tensor) -> bool:
        """Return whether some module holds `parameter`."""
        return id(parameter) in self._places

    def parameters(self) -> tuple[Tensor, ...]:
        """Return every parameter, once."""
        return tuple(tensors[name] for ((tensors, name), *_) in self._places.values())

    def buffers(self) -> list[Tensor]:
        """Return copies of all buffers, in the order of the modules."""
        return [tensors[name].detach().clone() for tensors, name in self._buffers]

    def load_buffers(self, values: Sequence[Tensor]) -> None:
        """Copy `values` into the buffers."""
        with torch.no_grad():
            for (tensors, name), value in zip(self._buffers, values, strict=True):
                tensors[name].copy_(value)

    @contextmanager
    def with_buffers(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Run a block with `values` in the places of the buffers."""
        before = [tensors[name] for tensors, name in self._buffers]
        try:
            for (tensors, name), value in zip(self._buffers, values, strict=True):
                tensors[name] = value
            yield
        finally:
            for (tensors, name), value in zip(self._buffers, before, strict=True):
                tensors[name] = value

    @contextmanager
    def substituted(self, parameters: Sequence[Tensor], values: Tensors) -> Iterator[None]:
        """Run a block with `values` in the places of `parameters`, and copies in the places of all
        buffers.
        """
        undo = []
        try:
            for parameter, value in zip(parameters, values, strict=True):
                for tensors, name in self._places[id(parameter)]:
                    undo.append((tensors, name, tensors[name]))
                    tensors[name] = value
            for tensors, name in self._buffers:
                undo.append((tensors, name, tensors[name]))
                tensors[name] = tensors[name].clone()
            yield
        finally:
            for tensors, name, original in reversed(undo):
                tensors[name] = original


@dataclass(frozen=True)
class ModuleObjective:
    """One loss on one batch with fixed random draws, as an `Objective` of two lists of parameters.

    Args:
        space: the places of the parameters.
        upper: the parameters that the first argument stands for.
        lower: the parameters that the second argument stands for.
        loss: the closure.
        batch: its argument.
        random_state: the generators' state when the loss was first evaluated.
        precision: autocast type, or None.
        name: of the problem, for messages.
        held: other parameters whose values are not those of now.
        values: of these.
    """

    space: ParameterSpace
    upper: tuple[Tensor, ...]
    lower: tuple[Tensor, ...]
    loss: Loss
    batch: Any
    random_state: RandomState
    precision: torch.dtype | None
    name: str
    held: tuple[Tensor, ...] = ()
    values: Tensors = ()

    @contextmanager
    def scope(self, upper: Tensors, lower: Tensors) -> Iterator[Callable[[], Tensor]]:
        """Yield the evaluation of the loss with `upper` and `lower` in the modules."""
        parameters = self.upper + self.lower + self.held
        with self.space.substituted(parameters, (*upper, *lower, *self.values)):
            yield self.evaluate

    def evaluate(self) -> Tensor:
        """Return the loss at the parameters that the modules hold now, with the recorded random
        draws.
        """
        device = self.lower[0].device
        with self.random_state.replay(), fresh_autocast(device, self.precision):
            return scalar(self.loss(own_copy(self.batch)), f"loss of problem {self.name!r}")
