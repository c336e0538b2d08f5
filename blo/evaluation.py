"""Closures over modules as pure losses of given parameters.

A user's loss is a closure ``loss(batch)`` over ordinary modules. To evaluate it at other values of
some parameters, the tensors are put in the parameters' places in the modules for the time of a
scope, and buffers are replaced by copies. No parameter is ever edited.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from blo.batches import fresh, own_copy, version
from blo.derivatives.objective import scalar
from blo.derivatives.precision import coarsest, fresh_autocast
from blo.derivatives.pullback import Gradient
from blo.derivatives.random_state import RandomState
from blo.derivatives.sharded import backward_gradient, fully_sharded, written
from blo.linear.tensors import Tensors

Loss: TypeAlias = Callable[[Any], "Tensor | dict[str, Any]"]


class ParameterSpace:
    """The places of all parameters and buffers of some modules, each parameter known by identity.

    A parameter shared by several modules has several places, and all of them are substituted
    together; so it is with a buffer. Buffers have numbers, in the order of the modules. A place
    stays the same when a module puts another tensor there (``self.u = u``); a buffer that is
    registered later is found when its turn comes and has the next number.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        self._buffers: list[tuple[dict[str, Any], str]] = []
        self._known: set[tuple[int, str]] = set()  # of buffers
        self._registers: list[dict[str, Any]] = []
        self._embeddings: list[nn.Embedding | nn.EmbeddingBag] = []
        self.names: dict[int, str] = {}
        self._fully_sharded: list[nn.Module] = []
        seen: set[int] = set()
        for i, module in enumerate(modules):
            self._fully_sharded += fully_sharded(module)
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
                self._registers.append(part._buffers)
                if isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
                    self._embeddings.append(part)
        self._buffer_places()

    def standing_in(self, others: Mapping[int, Tensor]) -> ParameterSpace:
        """Return the same places, where `others` are known in place of the parameters with these
        identities: for a block in which they are put there.
        """
        twin = copy.copy(self)
        known = {key: id(others[key]) if key in others else key for key in self._places}
        twin._places = {known[key]: places for key, places in self._places.items()}
        twin.names = {known[key]: name for key, name in self.names.items()}
        return twin

    def __contains__(self, parameter: Tensor) -> bool:
        """Return whether some module holds `parameter`."""
        return id(parameter) in self._places

    def holds(self, parameter: Tensor) -> bool:
        """Return whether `parameter` is still where it was found."""
        return all(held.get(name) is parameter for held, name in self._places[id(parameter)])

    def parameters(self) -> tuple[Tensor, ...]:
        """Return every parameter, once."""
        return tuple(tensors[name] for ((tensors, name), *_) in self._places.values())

    def buffers(self) -> list[Tensor]:
        """Return copies of all buffers, in the order of their numbers."""
        return [tensors[name].detach().clone() for tensors, name in self._filled_places()]

    def load_buffers(self, values: Sequence[Tensor]) -> None:
        """Copy `values` into the buffers."""
        with torch.no_grad():
            for (tensors, name), value in zip(self._filled_places(), values, strict=True):
                tensors[name].copy_(value)

    def versions(self) -> tuple[tuple[Tensor | None, int], ...]:
        """Return each buffer with the number of its edits in place, for `changed`."""
        held = (tensors.get(name) for tensors, name in self._buffer_places())
        return tuple((t, 0 if t is None else version(t)) for t in held)

    def changed(self, before: Sequence[tuple[Tensor | None, int]]) -> tuple[int, ...]:
        """Return the numbers of the buffers that were edited in place, replaced or registered since
        `before`, which `versions` returned.
        """
        now = self.versions()
        return tuple(
            i
            for i, (tensor, number) in enumerate(now)
            if (i >= len(before) and tensor is not None)
            or (i < len(before) and (tensor is not before[i][0] or number != before[i][1]))
        )

    def copies_of(self, numbers: Collection[int]) -> dict[int, Tensor]:
        """Return copies of the buffers with these numbers; those that hold nothing are left out."""
        if not numbers:
            return {}
        places, copies = self._buffer_places(), _Copies()
        found = ((i, places[i][0].get(places[i][1])) for i in numbers)
        with torch.no_grad():
            return {i: copies.of(t) for i, t in found if t is not None}

    @contextmanager
    def with_buffers(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Run a block with `values` in the places of the buffers."""
        places = self._filled_places()
        before = [tensors[name] for tensors, name in places]
        try:
            for (tensors, name), value in zip(places, values, strict=True):
                tensors[name] = value
            yield
        finally:
            for (tensors, name), value in zip(places, before, strict=True):
                tensors[name] = value

    @contextmanager
    def substituted(
        self,
        parameters: Sequence[Tensor],
        values: Tensors,
        buffers: Mapping[int, Tensor] | None = None,
    ) -> Iterator[Callable[[], None]]:
        """Run a block with `values` in the places of `parameters`, and copies in the places of all
        buffers: of `buffers`, by number, where there are such, else of those of now.

        Yields a function that puts new copies there, since an evaluation may change them. A buffer
        that the block registers is gone after it. Embeddings have dense gradients meanwhile
        (`dense_embeddings`).
        """
        given = {} if buffers is None else buffers
        places = self._buffer_places()
        replaced = {(id(places[i][0]), places[i][1]): value for i, value in given.items()}
        kept = [(register, dict(register)) for register in self._registers if register]

        def place_copies() -> None:
            copies = _Copies()
            self._clear_registers()
            for register, content in kept:
                for name, buffer in content.items():
                    value = replaced.get((id(register), name), buffer)
                    register[name] = None if value is None else copies.of(value)

        with self.placed(parameters, values):
            try:
                place_copies()
                with self.dense_embeddings():
                    yield place_copies
            finally:
                self._clear_registers()
                for register, content in kept:
                    register.update(content)

    @contextmanager
    def placed(self, parameters: Sequence[Tensor], values: Tensors) -> Iterator[None]:
        """Run a block with `values` in the places of `parameters`, buffers as they are."""
        undo: list[tuple[dict[str, Any], str, Tensor]] = []
        try:
            for parameter, value in zip(parameters, values, strict=True):
                for tensors, name in self._places[id(parameter)]:
                    undo.append((tensors, name, tensors[name]))
                    tensors[name] = value
            yield
        finally:
            for tensors, name, original in reversed(undo):
                tensors[name] = original

    @property
    def has_sparse_gradients(self) -> bool:
        """Whether an embedding has sparse gradients, which cannot be differentiated again."""
        return any(part.sparse for part in self._embeddings)

    @property
    def is_sharded(self) -> bool:
        """Whether ``fully_shard`` was called on a module."""
        return bool(self._fully_sharded)

    @contextmanager
    def written(self, parameters: Sequence[Tensor], values: Tensors) -> Iterator[None]:
        """Run a block with `values` written into `parameters`: where they are sharded."""
        with written(parameters, values, self._fully_sharded):
            yield

    def backward(self, loss: Tensor, inputs: Tensors) -> Gradient:
        """Return the gradient of `loss` from ``backward()``: where parameters are sharded."""
        return backward_gradient(loss, inputs, self.parameters())

    @contextmanager
    def dense_embeddings(self) -> Iterator[None]:
        """Run a block in which ``nn.Embedding(sparse=True)`` and ``nn.EmbeddingBag(sparse=True)``
        have dense gradients: torch cannot differentiate sparse ones again.
        """
        sparse = [part for part in self._embeddings if part.sparse]
        try:
            for part in sparse:
                part.sparse = False
            yield
        finally:
            for part in sparse:
                part.sparse = True

    def _buffer_places(self) -> list[tuple[dict[str, Any], str]]:
        """Return the places of all buffers by number, with those that were registered meanwhile."""
        if sum(map(len, self._registers)) != len(self._known) or not self._known.issuperset(
            (id(r), n) for r in self._registers for n in r
        ):
            new = [(r, n) for r in self._registers for n in r if (id(r), n) not in self._known]
            self._buffers += new
            self._known.update((id(r), n) for r, n in new)
        return self._buffers

    def _clear_registers(self) -> None:
        for register in self._registers:
            if register:
                register.clear()

    def _filled_places(self) -> list[tuple[dict[str, Any], str]]:
        """Return the places that hold a buffer now."""
        return [(r, n) for r, n in self._buffer_places() if r.get(n) is not None]


class _Copies:
    """Copies of tensors, one for each: places that share a tensor share its copy."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """Return the copy of `tensor`."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = tensor.clone()
        return self._known[id(tensor)]


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
        autocast: its type, or None.
        name: of the problem, for messages.
        held: other parameters whose values are not those of now.
        values: of these.
        buffers: the buffers that had other values when the loss was first evaluated, by number in
            `space`; None if all are as they were.
        copies: give the loss a copy of its batch each time, as it edits the batch in place.
        computed_in: the coarsest type in the loss's graph, where it is known.
    """

    space: ParameterSpace
    upper: tuple[Tensor, ...]
    lower: tuple[Tensor, ...]
    loss: Loss
    batch: Any
    random_state: RandomState
    autocast: torch.dtype | None
    name: str
    held: tuple[Tensor, ...] = ()
    values: Tensors = ()
    buffers: Mapping[int, Tensor] | None = None
    copies: bool = False
    computed_in: torch.dtype | None = None

    @property
    def precision(self) -> torch.dtype | None:
        """The coarsest type that the loss is computed in, as far as it is known."""
        known = [t for t in (self.autocast, self.computed_in) if t is not None]
        return coarsest(known) if known else None

    @contextmanager
    def scope(self, upper: Tensors, lower: Tensors) -> Iterator[Callable[[], Tensor]]:
        """Yield the evaluation of the loss with `upper` and `lower` in the modules; each starts
        from the same buffers.
        """
        parameters, values = self.upper + self.lower + self.held, (*upper, *lower, *self.values)
        with self.space.substituted(parameters, values, self.buffers) as renew_buffers:
            evaluated = False

            def evaluate() -> Tensor:
                nonlocal evaluated
                if evaluated:
                    renew_buffers()
                evaluated = True
                return self.evaluate()

            yield evaluate

    def by_backward(self, upper: Tensors, lower: Tensors) -> Gradient:
        """Return the gradient of ``g(upper, lower)`` from ``backward()``."""
        parameters, values = self.upper + self.lower + self.held, (*upper, *lower, *self.values)
        with (
            self.space.written(parameters, values),
            self.space.substituted((), (), self.buffers),
        ):
            return self.space.backward(self.evaluate(), self.upper + self.lower)

    def evaluate(self) -> Tensor:
        """Return the loss at the parameters and buffers that the modules hold now, with the
        recorded random draws.
        """
        device = self.lower[0].device
        batch = fresh(self.batch) if self.copies else own_copy(self.batch)
        with self.random_state.replay(), fresh_autocast(device, self.autocast):
            return scalar(self.loss(batch), f"loss of problem {self.name!r}")
