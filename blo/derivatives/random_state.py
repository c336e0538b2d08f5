"""The state of random generators, so that a loss is evaluated again with the draws it had."""

from __future__ import annotations

import ctypes
import functools
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from blo.derivatives.numpy_state import drawn_numpy_state, numpy_state, set_numpy_state
from blo.derivatives.python_state import python_mark

# A torch.Generator, random.Random, numpy.random.Generator or numpy.random.RandomState.
Generator: TypeAlias = Any

LIBRARIES = {"torch", "numpy", "builtins"} | (sys.stdlib_module_names - {"__main__"})
DEPTH = 4  # the helper of a loss, its object, that object's list, the list's generator
MERSENNE = 625 * 4  # bytes of a Mersenne twister's state: 624 words and a position
MOST = 64  # items of a container that are looked at


@dataclass(frozen=True)
class RandomState:
    """The state of the random generators of the CPU and of some devices, of Python and numpy, and
    of some generators of the user's own.

    Attributes:
        states: of torch's generators, by device; the CPU first.
        python: of `random`, or None where it was not captured.
        numpy: of `numpy.random`, or None where it was not captured or there is no numpy.
        own: other generators, each with its state.
    """

    states: tuple[tuple[torch.device, Tensor], ...]
    python: Any = None
    numpy: Any = None
    own: tuple[tuple[Generator, Any], ...] = ()

    @staticmethod
    def capture(
        devices: Iterable[torch.device] = (),
        generators: Iterable[Generator] = (),
        *,
        foreign: bool = True,
    ) -> RandomState:
        """Return the present state of the CPU's generator, of the generators of `devices`, of
        `generators`, and of Python's and numpy's if `foreign`.

        numpy's is captured if numpy is loaded. Python's takes ten times as long as torch's.
        """
        states = [(torch.device("cpu"), torch.get_rng_state())]
        states += [
            (device, torch.get_device_module(device).get_rng_state(device))
            for device in devices
            if device.type not in ("cpu", "meta")
        ]
        numpy = _numpy() if foreign else None
        return RandomState(
            tuple(states),
            random.getstate() if foreign else None,
            None if numpy is None else numpy_state(numpy),
            tuple((g, _state(g)) for g in generators),
        )

    @staticmethod
    def draw(
        devices: Iterable[torch.device] = (),
        generators: Iterable[Generator] = (),
        *,
        foreign: bool = True,
    ) -> RandomState:
        """Return a new state of the same generators as `capture`, seeded by one draw from the CPU's
        generator, the only one that moves.
        """
        seed = int(torch.randint(2**62, ()).item())
        places = [torch.device("cpu")]
        places += [device for device in devices if device.type not in ("cpu", "meta")]
        numpy = _numpy() if foreign else None
        python = random.Random(seed) if foreign else None
        return RandomState(
            tuple((d, torch.Generator(d).manual_seed(seed).get_state()) for d in places),
            None if python is None else python.getstate(),
            None if numpy is None or python is None else drawn_numpy_state(numpy, python),
            tuple((g, _seeded(g, seed)) for g in generators),
        )

    def restore(self) -> None:
        """Set the generators to this state."""
        for device, state in self.states:
            if device.type == "cpu":
                torch.set_rng_state(state)
            else:
                torch.get_device_module(device).set_rng_state(state, device)
        if self.python is not None:
            random.setstate(self.python)
        numpy = None if self.numpy is None else _numpy()
        if numpy is not None:
            set_numpy_state(self.numpy, numpy)
        for generator, state in self.own:
            _set_state(generator, state)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Run a block from this state and leave the generators as they were before the block."""
        before = RandomState(
            RandomState.capture((device for device, _ in self.states), foreign=False).states,
            None if self.python is None else random.getstate(),
            None if self.numpy is None else numpy_state(_numpy()),
            tuple((g, _state(g)) for g, _ in self.own),
        )
        self.restore()
        try:
            yield
        finally:
            before.restore()


def foreign_marks() -> tuple[object, object]:
    """Return where the global generators of Python and numpy stand, for `drawn_from`."""
    return python_mark(), _numpy_mark()


def drawn_from(marks: tuple[object, object]) -> bool:
    """Return whether Python's or numpy's global generator was drawn from since `marks`.

    A normal number that numpy had left over from the draw before is not noticed.
    """
    return foreign_marks() != marks


def _numpy_mark() -> object:
    """Return the numbers that numpy's global generator stands at, a thirtieth of the cost of its
    state; None where numpy is not loaded.
    """
    numpy = _numpy()
    if numpy is None:
        return None
    bits = numpy.random.rand.__self__._bit_generator
    if not isinstance(bits, numpy.random.MT19937):
        return str(bits.state)
    return ctypes.string_at(bits.ctypes.state_address, MERSENNE)


def devices_of(tensors: Iterable[Tensor]) -> tuple[torch.device, ...]:
    """Return the distinct devices of some tensors, in the order they are met."""
    return tuple(dict.fromkeys(t.device for t in tensors))


def generators_of(loss: object, modules: Iterable[nn.Module] = ()) -> tuple[Generator, ...]:
    """Return the generators of the user's own that `loss` and `modules` can draw from, each once,
    in the order they are met.

    Looked at are what a function closes over, its defaults, the globals and the attributes of
    modules that its code names, the arguments of `functools.partial`, the object of a bound method,
    the attributes of objects and of modules with their submodules, and short lists, tuples and
    dictionaries; through `DEPTH` of these, and into no function of Python's library, torch or
    numpy. Not found are generators that are only reached by code: made in the loss, kept in the
    slots of an object or behind a property. Torch's, Python's and numpy's global generators are
    left out.
    """
    found: dict[int, Generator] = {}
    seen: dict[int, tuple[object, int]] = {}  # the object, too: a number is used again without it
    for value in (loss, *modules):
        _visit(value, DEPTH, found, seen)
    return tuple(found.values())


def modules_named_by(loss: object) -> tuple[nn.Module, ...]:
    """Return the modules that a function closes over, has as defaults or names among its globals.

    Those reached through other objects are not found.
    """
    values = _named(loss) if isinstance(loss, FunctionType) else ()
    return tuple(value for value in values if isinstance(value, nn.Module))


def _visit(
    value: object, depth: int, found: dict[int, Generator], seen: dict[int, tuple[object, int]]
) -> None:
    """Note the generators within `depth` of `value`, which may have been met nearer the end of an
    earlier way.
    """
    if is_generator(value):
        found.setdefault(id(value), value)
        return
    if depth == 0 or seen.get(id(value), (None, 0))[1] >= depth:
        return
    seen[id(value)] = value, depth
    for child in _children(value):
        _visit(child, depth - 1, found, seen)


def _children(value: object) -> Sequence[object]:
    """Return what `value` holds or names."""
    if value is None or isinstance(value, (Tensor, str, bytes, int, float, ModuleType)):
        return ()
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        return () if _is_of_a_library(value.__module__) else _named(value)
    if isinstance(value, nn.Module):
        return _held_by(value)
    if isinstance(value, dict):
        return tuple(value.values()) if len(value) <= MOST else ()
    if isinstance(value, (list, tuple)):
        return value if len(value) <= MOST else ()
    if isinstance(value, type):
        return ()
    call = next((vars(c)["__call__"] for c in type(value).__mro__ if "__call__" in vars(c)), None)
    calls = (call,) if isinstance(call, FunctionType) else ()
    return (*getattr(value, "__dict__", {}).values(), *calls)


def _held_by(module: nn.Module) -> list[object]:
    """Return the attributes of a module and of its submodules, and the forward functions of their
    classes.
    """
    inner = {"_parameters", "_buffers", "_modules"}
    parts = list(module.modules())
    held: list[object] = [v for part in parts for k, v in vars(part).items() if k not in inner]
    return held + list(dict.fromkeys(type(part).forward for part in parts))


def _named(function: FunctionType) -> list[object]:
    """Return what a function closes over, its defaults, and the globals that its code names, with
    attributes of modules among them.
    """
    values: list[object] = []
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    names = dict.fromkeys(_names(function.__code__))
    values += [function.__globals__[n] for n in names if n in function.__globals__]
    spaces = [v for v in values if isinstance(v, ModuleType) and not _is_of_a_library(v.__name__)]
    return values + [vars(space)[n] for space in spaces for n in names if n in vars(space)]


def _names(code: CodeType) -> Iterator[str]:
    """Yield the globals and attributes that some code names, with the functions defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_of_a_library(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in LIBRARIES


def _numpy() -> Any:
    """Return numpy if it is loaded."""
    return sys.modules.get("numpy")


def is_generator(value: object) -> bool:
    """Return whether a value is a random generator, and none of the global ones."""
    if isinstance(value, torch.Generator):
        return value is not torch.default_generator
    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom) and value is not random._inst
    numpy = sys.modules.get("numpy.random")
    return (
        numpy is not None
        and isinstance(value, (numpy.Generator, numpy.RandomState))
        and value is not numpy.rand.__self__
    )


def _state(generator: Generator) -> Any:
    """Return a copy of the state of a generator."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    if not hasattr(generator, "get_state"):
        raise TypeError(
            "generators must be of the types torch.Generator, random.Random, numpy.random.Generator"
            f" or numpy.random.RandomState, got {type(generator).__name__}"
        )
    return (
        generator.get_state()
        if isinstance(generator, torch.Generator)
        else generator.get_state(legacy=False)
    )


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _seeded(generator: Generator, seed: int) -> Any:
    """Return the state that a generator of this kind would have from `seed`."""
    if isinstance(generator, torch.Generator):
        return torch.Generator(generator.device).manual_seed(seed).get_state()
    if isinstance(generator, random.Random):
        return random.Random(seed).getstate()
    if hasattr(generator, "bit_generator"):
        return type(generator.bit_generator)(seed).state
    state = _state(generator)
    kind = getattr(_numpy().random, state["bit_generator"])
    return {**kind(seed).state, "has_gauss": 0, "gauss": 0.0}
