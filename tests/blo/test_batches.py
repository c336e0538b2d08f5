"""Batches: copies that share nothing, and edits that are noticed."""

import collections
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from blo.batches import edited, fresh, leaves_of, version, versions


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Frozen:
    x: Any
    note: str = "kept"


@dataclass
class Slots:
    __slots__ = ("x", "y")
    x: Any
    y: Any


class Encoding(collections.UserDict):
    """As transformers.BatchEncoding: a UserDict with attributes."""

    def __init__(self, data, note):
        super().__init__(data)
        self.note = note


class Wrapper:
    """A mapping by its looks alone."""

    def __init__(self, **data):
        self.data = data

    def items(self):
        return self.data.items()

    def __getitem__(self, key):
        return self.data[key]


class Clones:
    """As tensordict or torch_geometric: copied by a method of its own."""

    def __init__(self, x):
        self.x = x

    def clone(self):
        return Clones(self.x.clone())

    def items(self):
        return [("x", self.x)]


def tensor():
    return torch.arange(3.0)


SHAPES = {
    "tensor": (lambda t: t, "batch"),
    "dict": (lambda t: {"x": t, "n": 3}, "batch['x']"),
    "list": (lambda t: ["text", t], "batch[1]"),
    "tuple": (lambda t: (None, t), "batch[1]"),
    "deep": (lambda t: {"a": [({"b": t},)]}, "batch['a'][0][0]['b']"),
    "named tuple": (lambda t: Pair(1, [t]), "batch.y[0]"),
    "ordered dict": (lambda t: collections.OrderedDict(x=t), "batch['x']"),
    "default dict": (lambda t: collections.defaultdict(list, x=[t]), "batch['x'][0]"),
    "dataclass": (lambda t: {"a": Frozen([t])}, "batch['a'].x[0]"),
    "slots": (lambda t: Slots(0, t), "batch.y"),
    "UserDict": (lambda t: Encoding({"x": t}, "kept"), "batch['x']"),
    "mapping": (lambda t: [Wrapper(x=t)], "batch[0]['x']"),
    "own clone": (lambda t: Clones(t), "batch['x']"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_copies_share_nothing_and_edits_are_found(shape):
    make, path = SHAPES[shape]
    batch = make(tensor())
    twin = fresh(batch)
    assert type(twin) is type(batch)
    assert list(leaves_of(batch)) == list(leaves_of(twin)) == [path]
    before = versions(batch)
    assert edited(before) == ()
    leaves_of(twin)[path][1:].mul_(2)
    assert torch.equal(leaves_of(twin)[path], torch.tensor([0.0, 2.0, 4.0]))
    assert edited(before) == ()
    assert torch.equal(leaves_of(batch)[path], tensor())
    leaves_of(batch)[path][1:].mul_(2)
    assert edited(before) == (path,)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "own clone"])
def test_numpy_arrays_are_copied_and_compared(shape):
    make, path = SHAPES[shape]
    array = np.array([1.0, np.nan, 3.0])
    batch = make(array)
    twin, before = fresh(batch), versions(batch, arrays=True)
    assert list(leaves_of(batch)) == [path]
    leaves_of(twin)[path][0] = 5
    assert edited(before) == ()
    array[0] = 5
    assert edited(before) == (path,)
    assert edited(versions(batch)) == ()


def test_other_things_in_a_batch_stay():
    frozen = fresh({"a": Frozen(tensor()), "text": "t", "f": print, "none": None})
    assert (frozen["a"].note, frozen["text"], frozen["f"], frozen["none"]) == (
        "kept",
        "t",
        print,
        None,
    )
    assert fresh(Encoding({"x": 1}, "kept")).note == "kept"
    assert fresh(collections.defaultdict(list))["new"] == []


def test_a_tensor_at_two_places_stays_one():
    t = tensor()
    batch = {"x": t, "y": [t, tensor()]}
    twin = fresh(batch)
    assert twin["x"] is twin["y"][0]
    assert list(leaves_of(batch)) == ["batch['x']", "batch['y'][1]"]
    before = versions(batch)
    t += 1
    assert edited(before) == ("batch['x']",)


def test_copies_are_differentiated():
    t = tensor().requires_grad_()
    (gradient,) = torch.autograd.grad(fresh([t])[0].square().sum(), t)
    assert torch.equal(gradient, 2 * tensor())


def test_changed_containers_within_a_batch_are_found():
    inner, record = {"x": tensor()}, Slots(0, 1)
    batch = {"a": (inner, record), "b": [1, 2], "c": 3}
    before = versions(batch)
    batch["c"] = 4  # own_copy makes this the loss's own
    del batch["b"]
    assert edited(before) == ()
    inner["x"] = inner["x"] * 2
    record.y = 5
    assert edited(before) == ("batch['a'][0]", "batch['a'][1]")
    record = Slots(0, 1)
    before = versions(record)
    record.x = 1
    assert edited(before) == ("batch",)


def test_inference_tensors_count_as_not_edited():
    with torch.inference_mode():
        t = tensor()
        before = versions([t])
        t.mul_(2)
    assert version(t) == 0
    assert edited(before) == ()
    assert edited(versions([t])) == ()
    assert not fresh([t])[0].is_inference()


def test_arrays_of_objects_and_of_other_shapes_are_compared():
    array = np.array(["a", None], dtype=object)
    before = versions([array], arrays=True)
    assert edited(before) == ()
    array[0] = "b"
    assert edited(before) == ("batch[0]",)


def test_watching_an_ordinary_batch_is_cheap():
    batch = {k: torch.zeros(4, 8, dtype=torch.long) for k in ("input_ids", "mask", "labels")}
    times = []
    for _ in range(200):
        start = time.perf_counter()
        edited(versions(batch))
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-4
