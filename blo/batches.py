"""What a batch is: copies that share nothing, edits that are noticed, the right device."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


def own_copy(batch: Any) -> Any:
    """Return a shallow copy of a dict or list, so that a loss may pop entries from its batch."""
    return copy.copy(batch) if isinstance(batch, (MutableMapping, list)) else batch


def fresh(batch: Any) -> Any:
    """Return a copy of `batch` that shares no tensor with it, so that a loss may edit it in place.

    Tensors are cloned (with their graphs), numpy arrays copied, at any depth of dictionaries,
    lists, tuples (named ones too), dataclasses, mappings of other kinds; other objects are copied
    by their own ``clone`` if they have one, and are else the same. A tensor at two places stays
    one; two views of one memory do not.
    """
    return _fresh(batch, {})


def _fresh(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, Tensor) or _is_array(value):
        if id(value) not in known:
            known[id(value)] = value.clone() if isinstance(value, Tensor) else value.copy()
        return known[id(value)]
    kind = type(value)
    if kind is dict:
        return {k: _fresh(v, known) for k, v in value.items()}
    if kind is list:
        return [_fresh(v, known) for v in value]
    if value is None or isinstance(value, (str, bytes, int, float, type)):
        return value
    if isinstance(value, tuple):
        items = [_fresh(v, known) for v in value]
        return kind(*items) if hasattr(value, "_fields") else kind(items)
    if isinstance(value, (dict, list)):
        twin = copy.copy(value)
        for k, v in _parts(value):
            twin[k] = _fresh(v, known)
        return twin
    if _is_record(value):
        twin = copy.copy(value)
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                item = _fresh(getattr(value, field.name), known)
                object.__setattr__(twin, field.name, item)  # frozen ones, too
        return twin
    if callable(getattr(value, "clone", None)):
        return value.clone()
    if isinstance(value, Mapping) or callable(getattr(value, "items", None)):
        twin = copy.copy(value)
        for k, v in getattr(value, "__dict__", {}).items():
            twin.__dict__[k] = _fresh(v, known)
        return twin
    return value


def leaves_of(batch: Any) -> dict[str, Any]:
    """Return the tensors and numpy arrays of a batch by where they are, such as
    ``batch['x'][0]``.

    Looked into are dictionaries, lists, tuples, dataclasses and objects with ``items``; what is at
    two places is returned once, at the first.
    """
    found: dict[int, tuple[str, Any]] = {}
    _collect(batch, "batch", found, [])
    return dict(found.values())


def _collect(
    value: Any,
    path: str,
    found: dict[int, tuple[str, Any]],
    containers: list[tuple[str, Any]],
) -> None:
    """Add the leaves within `value` to `found`, and the containers that can be changed to
    `containers`.
    """
    if isinstance(value, Tensor) or _is_array(value):
        found.setdefault(id(value), (path, value))
        return
    if value is None or isinstance(value, (str, bytes, int, float, type)):
        return
    parts = _parts(value)
    if not parts:
        return
    if not isinstance(value, tuple):
        containers.append((path, value))
    start, end = (".", "") if hasattr(value, "_fields") or _is_record(value) else ("[", "]")
    for k, v in parts:
        name = k if start == "." else repr(k)
        _collect(v, f"{path}{start}{name}{end}", found, containers)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """Return what a container holds, by key, number or name; nothing for other objects."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", range(len(value)))
        return list(zip(names, value, strict=True))
    if _is_record(value):
        names = [f.name for f in dataclasses.fields(value)]
        return [(n, getattr(value, n)) for n in names if hasattr(value, n)]
    return list(value.items()) if callable(getattr(value, "items", None)) else []


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, dict)


class Versions(NamedTuple):
    """What tells later whether a batch was edited in place; see `versions`.

    Attributes:
        tensors: each tensor with the number of its edits, by where it is.
        arrays: each numpy array with a copy of it.
        containers: each container that can be changed, with what it held; without the batch itself
            where `own_copy` copies it.
    """

    tensors: dict[str, tuple[Tensor, int]]
    arrays: dict[str, tuple[Any, Any]]
    containers: dict[str, tuple[Any, list[tuple[Any, Any]]]]


def versions(batch: Any, *, arrays: bool = False) -> Versions:
    """Return what `edited` compares with: the numbers of edits of the tensors in a batch, what its
    containers hold, and copies of its numpy arrays if `arrays`.
    """
    found: dict[int, tuple[str, Any]] = {}
    containers: list[tuple[str, Any]] = []
    _collect(batch, "batch", found, containers)
    if isinstance(batch, (MutableMapping, list)):
        del containers[:1]
    leaves = found.values()
    return Versions(
        {p: (t, version(t)) for p, t in leaves if isinstance(t, Tensor)},
        {p: (a, a.copy()) for p, a in leaves if arrays and not isinstance(a, Tensor)},
        {p: (c, _parts(c)) for p, c in containers},
    )


def edited(before: Versions) -> tuple[str, ...]:
    """Return where in a batch something was edited in place since `before`: a tensor, an array if
    `versions` kept them, or an entry of a container within the batch.

    Torch counts edits of a tensor and of its views. It counts none of tensors made in inference
    mode, and none through ``.data`` or through a numpy array of the same memory: those are not
    noticed.
    """
    return (
        *(p for p, (t, number) in before.tensors.items() if version(t) != number),
        *(p for p, (array, kept) in before.arrays.items() if not _equal(array, kept)),
        *(p for p, (c, kept) in before.containers.items() if not _holds(c, kept)),
    )


def _holds(container: Any, kept: list[tuple[Any, Any]]) -> bool:
    """Return whether a container holds the very objects in `kept`."""
    now = _parts(container)
    return len(now) == len(kept) and all(
        k == j and v is u for (k, v), (j, u) in zip(now, kept, strict=True)
    )


def version(tensor: Tensor) -> int:
    """Return the number of edits in place of a tensor; 0 for those made in inference mode, which
    have no counter.
    """
    try:
        return int(tensor._version)
    except RuntimeError:
        return 0


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _equal(array: Any, kept: Any) -> bool:
    """Return whether two arrays hold the same bytes: NaN equals itself, objects are compared."""
    if array.shape != kept.shape or array.dtype != kept.dtype:
        return False
    if array.dtype.hasobject:
        return bool((array == kept).all())
    return bool(array.tobytes() == kept.tobytes())


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
