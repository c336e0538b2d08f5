"""The state of random generators as plain data: tensors, numbers and strings, which a file holds
and ``torch.load(weights_only=True)`` reads.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from blo.derivatives.random_state import Generator, RandomState

_ARRAY = "array"  # the entry by which the stored form of a numpy array is known


def stored(state: RandomState) -> dict[str, Any]:
    """Return a state as plain data, without the generators and devices that it belongs to."""
    return {
        "torch": [s.clone() for _, s in state.states],
        "python": None if state.python is None else _stored_python(state.python),
        "numpy": None if state.numpy is None else _stored(state.numpy),
        "own": [stored_generator(g, s) for g, s in state.own],
    }


def recalled(
    data: dict[str, Any], devices: Iterable[torch.device], generators: Sequence[Generator] = ()
) -> RandomState:
    """Return what `stored` was given, for these devices and generators."""
    places = [torch.device("cpu"), *(d for d in devices if d.type not in ("cpu", "meta"))]
    loaded = data["numpy"] is not None and "numpy" in sys.modules
    return RandomState(
        tuple(zip(places, (s.clone() for s in data["torch"]), strict=True)),
        None if data["python"] is None else _recalled_python(data["python"]),
        _recalled(data["numpy"]) if loaded else None,
        tuple((g, recalled_generator(g, s)) for g, s in zip(generators, data["own"], strict=True)),
    )


def stored_generator(generator: Generator, state: Any) -> Any:
    """Return the state of one generator as plain data."""
    return _stored_python(state) if isinstance(generator, random.Random) else _stored(state)


def recalled_generator(generator: Generator, data: Any) -> Any:
    """Return the state of one generator from plain data.

    Raises:
        ValueError: if the data are of a generator of another kind.
    """
    kind = kind_of(generator)
    if _kind_of_data(data) != kind:
        raise ValueError(f"a generator must be {_kind_of_data(data)}, as saved, got {kind}")
    return _recalled_python(data) if isinstance(generator, random.Random) else _recalled(data)


def kind_of(generator: Generator) -> str:
    """Return what a generator is, such as ``torch.Generator`` or ``PCG64``."""
    if isinstance(generator, torch.Generator):
        return "torch.Generator"
    if isinstance(generator, random.Random):
        return "random.Random"
    bits = getattr(generator, "bit_generator", None)
    return "MT19937" if bits is None else type(bits).__name__


def _kind_of_data(data: Any) -> str:
    if isinstance(data, Tensor):
        return "torch.Generator"
    if isinstance(data, dict) and "words" in data:
        return "random.Random"
    return str(data.get("bit_generator")) if isinstance(data, dict) else type(data).__name__


def _stored_python(state: Any) -> dict[str, Any]:
    version, words, gauss = state
    return {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss}


def _recalled_python(data: dict[str, Any]) -> Any:
    return data["version"], tuple(data["words"].tolist()), data["gauss"]


def _stored(value: Any) -> Any:
    """Return a numpy generator's state with arrays as bytes, or a torch generator's copied."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _stored(v) for k, v in value.items()}
    if hasattr(value, "tobytes") and hasattr(value, "shape") and value.shape:
        raw = torch.tensor(list(value.tobytes()), dtype=torch.uint8)
        return {_ARRAY: raw, "dtype": str(value.dtype), "shape": list(value.shape)}
    return value.item() if hasattr(value, "item") else value


def _recalled(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.clone()
    if isinstance(data, dict) and _ARRAY in data:
        raw = bytes(data[_ARRAY].tolist())
        return sys.modules["numpy"].frombuffer(raw, data["dtype"]).reshape(data["shape"]).copy()
    return {k: _recalled(v) for k, v in data.items()} if isinstance(data, dict) else data
