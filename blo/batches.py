"""A problem's batches: re-iterated for ever, on the right device, and resumable."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor

from blo.derivatives.random_state import RandomState


class BatchStream:
    """An endless stream over an iterable of batches; each pass over it is an epoch.

    Args:
        batches: a DataLoader, a list ... anything that can be iterated again; a one-shot iterator
            ends with an error.
        name: of the problem, for messages.
    """

    def __init__(self, batches: Iterable[Any], name: str) -> None:
        self._batches = batches
        self._name = name
        self._iterator: Iterator[Any] = iter(())
        self._waiting: list[Any] = []
        self._start: dict[str, Any] = {}
        self.epoch = -1
        self.position = 0
        self.count = 0

    def peek(self) -> Any:
        """Return the next batch and leave it in the stream."""
        if not self._waiting:
            self._waiting.append(self._draw())
        return self._waiting[0]

    def next(self) -> Any:
        """Return the next batch."""
        batch = self._waiting.pop() if self._waiting else self._draw()
        self.position += 1
        self.count += 1
        return batch

    def _draw(self) -> Any:
        if self.epoch < 0:
            self._begin()
        try:
            return next(self._iterator)
        except StopIteration:
            pass
        if iter(self._batches) is self._batches:
            raise RuntimeError(
                f"the batches of problem {self._name!r} ran out after {self.count}; they are a "
                "one-shot iterator "
                "(a generator?): pass a list, a DataLoader or another object that can be iterated "
                "again"
            )
        self._begin()
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"batches of problem {self._name!r} must hold at least one batch, got an empty "
                f"{type(self._batches).__name__}"
            ) from None

    def _begin(self) -> None:
        """Start an epoch, keeping what is needed to start it again: the generators that a sampler
        may draw from.
        """
        self._start = {"random_state": RandomState.capture(), "generators": {}}
        for key, generator in self.generators().items():
            self._start["generators"][key] = generator.get_state()
        self._iterator = iter(self._batches)
        self.epoch += 1
        self.position = 0

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators of their own that the loader and its sampler draw from."""
        loader = self._batches
        found = {
            "loader": getattr(loader, "generator", None),
            "sampler": getattr(getattr(loader, "sampler", None), "generator", None),
        }
        return {k: g for k, g in found.items() if isinstance(g, torch.Generator)}

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream, with the random state that the epoch started from."""
        states = self._start.get("random_state")
        return {
            "epoch": self.epoch,
            "position": self.position,
            "count": self.count,
            "random_state": None if states is None else states.states[0][1],
            "generators": dict(self._start.get("generators", {})),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position: the epoch is begun with its random state and the batches before
        are passed over.

        The global generators are left as they are found.
        """
        self._waiting.clear()
        self.epoch, self.count = state["epoch"] - 1, state["count"]
        if state["epoch"] < 0:
            return
        cpu = RandomState(((torch.device("cpu"), state["random_state"]),))
        for key, generator in self.generators().items():
            generator.set_state(state["generators"][key])
        with cpu.replay():
            self._begin()
            for _ in range(state["position"]):
                next(self._iterator)
        self.position = state["position"]


def own_copy(batch: Any) -> Any:
    """Return a shallow copy of a dict or list, so that a loss may pop entries from its batch."""
    return copy.copy(batch) if isinstance(batch, (MutableMapping, list)) else batch


def to_device(batch: Any, device: torch.device) -> Any:
    """Return `batch` with its tensors on `device`: tensors, dicts, lists, tuples (named ones too),
    objects with ``to``.

    A batch without a tensor to move is returned as it is.
    """
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        moved = {k: to_device(v, device) for k, v in batch.items()}
        return batch if all(moved[k] is batch[k] for k in batch) else type(batch)(moved)
    if isinstance(batch, (list, tuple)):
        items = [to_device(v, device) for v in batch]
        if all(a is b for a, b in zip(items, batch, strict=True)):
            return batch
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if device.type != "cpu" and hasattr(batch, "to"):
        return batch.to(device)
    return batch
