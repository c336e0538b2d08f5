"""A problem's batches as a stream: iterated again for ever, and resumable."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from blo.derivatives.random_state import Generator, RandomState, generators_of
from blo.derivatives.stored_random_state import recalled, recalled_generator, stored

logger = logging.getLogger("blo")


class BatchStream:
    """An endless stream over an iterable of batches; each pass over it is an epoch.

    A position is found again in one of two ways. What has ``state_dict`` and ``load_state_dict``
    (the batches themselves; within a DataLoader without workers an iterable data set, a sampler or
    a batch sampler) is asked for its own position. Else the epoch is begun again, with the random
    state, the generators and the counters that it began with, and the batches before are passed
    over.

    Args:
        batches: a DataLoader, a list ... anything that can be iterated again; a one-shot iterator
            ends with an error. None: only what is handed in.
        name: of the problem, for messages.
    """

    def __init__(self, batches: Iterable[Any] | None, name: str) -> None:
        self._batches = batches
        self._name = name
        self._iterator: Iterator[Any] = iter(())
        self._waiting: list[Any] = []
        self._parts: dict[str, Any] = _parts_of(batches)
        stateful: dict[str, Any] = {k: p for k, p in self._parts.items() if _is_stateful(p)}
        self._stateful: dict[str, Any] = {"batches": batches} if "batches" in stateful else stateful
        self._cursors = _cursors(batches, self._stateful)
        self._initial = {k: _counters(p) for k, p in self._parts.items()}
        self.generators: tuple[Generator, ...] = generators_of(batches)
        self._start: dict[str, Any] | None = None
        self._held: dict[str, Any] | None = None
        self._resumed = False
        self.epoch = -1
        self.position = 0
        self.count = 0
        self._warn_of_workers()

    def peek(self) -> Any:
        """Return the next batch and leave it in the stream."""
        if not self._waiting:
            self._held = self._place() if self._cursors else None
            self._waiting.append(self._draw())
        return self._waiting[0]

    def next(self) -> Any:
        """Return the next batch."""
        batch = self._waiting.pop(0) if self._waiting else self._draw()
        self._held = None
        self.position += 1
        self.count += 1
        return batch

    def hand(self, batches: Iterable[Any]) -> None:
        """Put batches into the stream, to be returned next."""
        self._waiting.extend(batches)

    @property
    def handed(self) -> int:
        """The number of batches that wait in the stream; one that does not is asked for."""
        return max(1, len(self._waiting))

    def _draw(self) -> Any:
        if self._batches is None:
            raise RuntimeError(
                f"problem {self._name!r} has no batches of its own (batches=None): hand them in, "
                f"engine.step({self._name!r}, [batch]), or give the Problem batches"
            )
        if self.epoch < 0:
            self._begin()
        try:
            return next(self._iterator)
        except StopIteration:
            pass
        self._begin()
        try:
            return next(self._iterator)
        except StopIteration:
            if self._is_one_shot() and self.count:
                raise RuntimeError(
                    f"the batches of problem {self._name!r} ran out after {self.count}; they are a "
                    "one-shot iterator "
                    "(a generator?): pass a list, a DataLoader or another object that can be "
                    "iterated again"
                ) from None
            raise ValueError(
                f"batches of problem {self._name!r} must hold at least one batch, got an empty "
                f"{type(self._batches).__name__}"
            ) from None

    def _begin(self) -> None:
        """Start an epoch, keeping what is needed to start it again."""
        if self._resumed:
            # datasets.IterableDataset would begin every later pass where the loaded one began.
            for part in self._cursors.values():
                if getattr(part, "_starting_state_dict", None) is not None:
                    part.load_state_dict(None)
            self._resumed = False
        if not isinstance(self._batches, (list, tuple)):
            self._start = {
                "random_state": RandomState.capture(generators=self.generators),
                "counters": self._moved_counters(),
                "workers": self._are_workers_kept() and self._loader()._iterator is None,
            }
        self.epoch += 1
        self.position = 0
        for part in (self._batches, getattr(self._batches, "sampler", None)):
            set_epoch = getattr(part, "set_epoch", None)
            if callable(set_epoch):
                set_epoch(self.epoch)
        self._iterator = iter(() if self._batches is None else self._batches)

    # Saving.

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream as plain data, with what the epoch started from."""
        return {
            **(self._place() if self._held is None else self._held),
            "waiting": bool(self._waiting),
            "now": stored(RandomState.capture(generators=self.generators, foreign=False))["own"],
        }

    def _place(self) -> dict[str, Any]:
        start = self._start
        return {
            "epoch": self.epoch,
            "position": self.position,
            "count": self.count,
            "random_state": None if start is None else stored(start["random_state"]),
            "counters": {} if start is None else copy.deepcopy(start["counters"]),
            "workers": start is not None and start["workers"],
            "parts": {k: copy.deepcopy(p.state_dict()) for k, p in self._stateful.items()},
        }

    # Loading.

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise unless `load_state_dict` can go to a saved position, as far as can be seen before.

        Raises:
            ValueError: naming what is of another kind.
        """
        whose = f"batches of problem {self._name!r}"
        needed = {"epoch", "position", "count", "random_state", "generators"}
        if "now" in state:
            needed = {*needed, "counters", "workers", "parts", "waiting"} - {"generators"}
        missing = sorted(needed - set(state))
        if missing:
            raise ValueError(f"state lacks {missing} for the {whose}; it is not whole")
        for key in ("epoch", "position", "count"):
            if type(state[key]) is not int or state[key] < (-1 if key == "epoch" else 0):
                raise ValueError(f"state has {key}={state[key]!r} for the {whose}; it is damaged")
        parts = set(state.get("parts", ()))
        if "now" in state and parts != set(self._stateful):
            raise ValueError(
                f"state has positions of {sorted(parts)} for the {whose}, and those with a "
                f"state_dict are {sorted(self._stateful)}; give the kind of loader it was saved "
                "with"
            )
        length = self._known_length()
        if length is not None and not self._cursors and state["position"] > length:
            raise ValueError(
                f"state is at batch {state['position']} of an epoch, and the {whose} are {length}; "
                "give the data it was saved with"
            )
        if self._is_one_shot() and not self._cursors and state["count"] < self.count:
            raise ValueError(
                f"state is {state['count']} batches into the {whose}, a one-shot iterator of which "
                f"{self.count} are used up; build them anew before loading"
            )
        own = _start_of(state)["own"] if state["random_state"] is not None else None
        for values in (own, state.get("now")):
            if "now" not in state or values is None:
                continue
            if len(values) != len(self.generators):
                raise ValueError(
                    f"state has {len(values)} generators of their own for the {whose}, and they "
                    f"have {len(self.generators)}; give the kind of loader it was saved with"
                )
            for g, value in zip(self.generators, values, strict=True):
                try:
                    recalled_generator(g, value)
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"state does not fit the {whose}: {error}") from None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position.

        The global generators are left as they are found.

        Raises:
            ValueError: if there are fewer batches than were saved.
        """
        with RandomState.capture().replay():
            if self._is_one_shot() and not self._cursors:
                self._pass_on(state)
            elif self._cursors and "parts" in state:
                self._go_to(state)
            else:
                self._begin_again(state)
        if "now" in state:
            own = zip(self.generators, state["now"], strict=True)
            RandomState((), own=tuple((g, recalled_generator(g, s)) for g, s in own)).restore()

    def _go_to(self, state: Mapping[str, Any]) -> None:
        """Hand the parts their own positions."""
        self._waiting.clear()
        self._held = None
        self._restore_start(state)
        for key, saved in state["parts"].items():
            if saved is not None:
                self._stateful[key].load_state_dict(copy.deepcopy(saved))
        self._resumed = True
        self.epoch, self.position, self.count = (state[k] for k in ("epoch", "position", "count"))
        self._iterator = iter(self._loader()) if self.epoch >= 0 else iter(())
        if state["waiting"]:
            self.peek()

    def _begin_again(self, state: Mapping[str, Any]) -> None:
        """Begin the epoch with what it began with, and pass over the batches before."""
        self._waiting.clear()
        self._iterator, self._start = iter(()), None
        self.epoch, self.position, self.count = state["epoch"] - 1, 0, state["count"]
        if state["epoch"] < 0:
            self.epoch, self.position = -1, state["position"]
            return
        self._make_workers(state)
        self._restore_start(state)
        self._begin()
        before = None
        for i in range(state["position"]):
            if i == 1 and self._may_order_late():
                before = RandomState.capture()
            self._skip()
        if before is not None and not _is_now(before):
            logger.warning(
                "the batches of problem %r draw from the global random generators as they are "
                "passed over; if the order of later ones depends on these draws, it is another "
                "than before. Give them a generator of their own, or state_dict and "
                "load_state_dict",
                self._name,
            )
        self.position = state["position"]
        if state.get("waiting"):
            self._waiting.append(next(self._iterator))
        for key, saved in state.get("parts", {}).items():
            if saved is not None:
                self._stateful[key].load_state_dict(copy.deepcopy(saved))

    def _pass_on(self, state: Mapping[str, Any]) -> None:
        """Pass on in a one-shot iterator to where it was."""
        for _ in range(state["count"] - self.count):
            self.next()
        self.epoch, self.position = state["epoch"], state["position"]
        if state.get("waiting"):
            self.peek()

    def _skip(self) -> None:
        try:
            next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"the batches of problem {self._name!r} are fewer than when the state was saved; "
                "give the data it was saved with"
            ) from None

    def _restore_start(self, state: Mapping[str, Any]) -> None:
        saved = state.get("counters", {})
        for key, part in self._parts.items():
            for name, value in {**self._initial[key], **saved.get(key, {})}.items():
                if getattr(part, name, None) != value:
                    setattr(part, name, value)
        if state["random_state"] is None:
            return
        if "now" in state:
            recalled(state["random_state"], (), self.generators).restore()
            return
        # Version 1 knew the generators of a loader and of its sampler alone.
        torch.set_rng_state(state["random_state"])
        sampler = getattr(self._batches, "sampler", None)
        for key, holder in (("loader", self._batches), ("sampler", sampler)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and key in state["generators"]:
                generator.set_state(state["generators"][key])

    def _make_workers(self, state: Mapping[str, Any]) -> None:
        """Bring the workers that a loader keeps into the state that the epoch began with: a first
        epoch, which starts them, draws otherwise than later ones.
        """
        if not self._are_workers_kept():
            return
        loader = self._loader()
        if state.get("workers", state["epoch"] == 0):
            loader._iterator = None
        elif loader._iterator is None:
            iter(loader)
        if state["epoch"] > 0:
            logger.warning(
                "the batches of problem %r come from workers that are kept for all epochs "
                "(persistent_workers=True): their order is as it was, random draws that the "
                "workers make (augmentation) are not",
                self._name,
            )

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Run a block that reads the stream, and put generators and counters back after it."""
        counters = {k: _counters(p) for k, p in self._parts.items()}
        try:
            with RandomState.capture(generators=self.generators).replay():
                yield
        finally:
            for key, values in counters.items():
                for name, value in values.items():
                    if getattr(self._parts[key], name, None) != value:
                        setattr(self._parts[key], name, value)

    def moves_when_read(self) -> bool:
        """Return whether the position is the batches' own, so that reading them on the side moves
        it.
        """
        if self._batches is None:
            return True
        return self._is_one_shot() or bool(self._cursors) or self._are_workers_kept()

    # What the batches are.

    def _loader(self) -> Any:
        return self._batches

    def _is_one_shot(self) -> bool:
        return isinstance(self._batches, Iterator)

    def _are_workers_kept(self) -> bool:
        return isinstance(self._batches, DataLoader) and self._batches.persistent_workers

    def _may_order_late(self) -> bool:
        """Return whether the order of batches may be drawn while they are read: torch's own loaders
        with torch's own samplers draw it when an epoch begins, lists are in order.
        """
        if isinstance(self._batches, (list, tuple)):
            return False
        samplers = [p for k, p in self._parts.items() if k not in ("batches", "dataset")]
        torch_alone = all(type(s).__module__.startswith("torch.utils.data") for s in samplers)
        is_map = isinstance(self._batches, DataLoader) and not isinstance(
            self._batches.dataset, IterableDataset
        )
        return not (is_map and torch_alone)

    def _known_length(self) -> int | None:
        if isinstance(self._batches, (list, tuple)):
            return len(self._batches)
        return None

    def _moved_counters(self) -> dict[str, dict[str, Any]]:
        """Return the plain numbers among the attributes of the parts that are not what they were
        at first, such as the number of an epoch that a sampler counts.
        """
        moved = {}
        for key, part in self._parts.items():
            first = self._initial[key]
            now = {n: v for n, v in _counters(part).items() if n not in first or v != first[n]}
            if now:
                moved[key] = now
        return moved

    def _warn_of_workers(self) -> None:
        if not isinstance(self._batches, DataLoader) or not self._batches.num_workers:
            return
        lost = sorted(set(self._stateful) - set(self._cursors) - {"dataset"})
        if isinstance(self._batches.dataset, IterableDataset) and "dataset" in self._stateful:
            lost.append("dataset")
        if lost and "batches" not in self._stateful:
            kinds = ", ".join(f"{k} ({type(self._stateful[k]).__name__})" for k in lost)
            warnings.warn(
                f"the batches of problem {self._name!r} are read ahead by workers, so that the "
                f"position of their {kinds} cannot be known; a run that is resumed passes over the "
                "batches before instead. Use num_workers=0, or a loader with a state_dict of its "
                "own",
                stacklevel=2,
            )


def _start_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the random state that an epoch started from; that of version 1 is torch's alone."""
    start = state["random_state"]
    if not isinstance(start, dict):
        return {"torch": [start], "python": None, "numpy": None, "own": []}
    return start


def _parts_of(batches: Any) -> dict[str, Any]:
    """Return the objects that may know a position, by name, each once."""
    found = {"batches": batches}
    if isinstance(batches, DataLoader):
        found["dataset"] = batches.dataset
        found["sampler"] = getattr(batches, "sampler", None)
        found["batch_sampler"] = getattr(batches, "batch_sampler", None)
        found["batch_sampler.sampler"] = getattr(found["batch_sampler"], "sampler", None)
    seen: set[int] = set()
    parts = {}
    for key, part in found.items():
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            parts[key] = part
    return parts


def _is_stateful(part: Any) -> bool:
    """Return whether an object saves and loads a state; that of a module is its weights, and the
    loaders of accelerate have the methods without having one.
    """
    if not getattr(part, "use_stateful_dataloader", True):
        return False
    methods = (getattr(part, name, None) for name in ("state_dict", "load_state_dict"))
    return not isinstance(part, (type, nn.Module)) and all(callable(m) for m in methods)


def _cursors(batches: Any, stateful: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts whose own states say where the stream is: the batches themselves, or within
    a loader without workers an iterable data set and samplers.
    """
    if "batches" in stateful:
        return {"batches": batches}
    if not isinstance(batches, DataLoader) or batches.num_workers:
        return {}
    is_iterable = isinstance(batches.dataset, IterableDataset)
    return {k: p for k, p in stateful.items() if k != "dataset" or is_iterable}


def _counters(part: Any) -> dict[str, Any]:
    """Return the plain numbers among the attributes of an object."""
    held = getattr(part, "__dict__", {})
    found = {k: v for k, v in held.items() if type(v) in (int, float, bool)}
    if isinstance(part, DataLoader):
        return {k: v for k, v in found.items() if not k.startswith("_")}
    return found


def _is_now(state: RandomState) -> bool:
    """Return whether the global generators are in a state."""
    now = stored(RandomState.capture())
    then = stored(state)
    return all(_are_equal(now[k], then[k]) for k in ("torch", "python", "numpy"))


def _are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(_are_equal(a[k], b[k]) for k in a)
        )
    if isinstance(a, list):
        return len(a) == len(b) and all(_are_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
