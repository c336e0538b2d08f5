"""What can be checked: problems below one, as functions of given values."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from blo.check.landscape import Landscape, Partials, Values
from blo.check.witnesses import Log
from blo.derivatives.random_state import RandomState
from blo.linear.tensors import Tensors
from blo.methods.context import Info, Method
from blo.methods.implicit import OneStep

# The Newton step, relative to the parameters, at which a lower problem counts as solved.
SOLVED: dict[torch.dtype, float] = {torch.float64: 1e-11, torch.float32: 1e-5}
COARSELY_SOLVED = 1e-2


class Claim(enum.Enum):
    """What the response of a lower problem claims to be the derivative of."""

    SOLUTION = "solved again"
    GRADIENT_STEP = "one gradient step taken again"
    STEPS = "its last steps taken again"

    @staticmethod
    def of(method: Method) -> Claim:
        """Return the claim of a method, as its kind or its requirements tell."""
        if isinstance(method, OneStep):
            return Claim.GRADIENT_STEP
        needs = method.requirements
        return Claim.STEPS if needs.before or needs.history != 0 else Claim.SOLUTION


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a check is made; see `check_hypergradient`."""

    num_directions: int
    radius: float | None
    rtol: float | None
    tol: float | None
    to_solution: bool
    warm_up: int
    seed: int
    detached: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, least in (("num_directions", 1), ("warm_up", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
        for name in ("radius", "rtol", "tol"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, or None, got {value!r}")

    def solved(self, dtype: torch.dtype) -> float:
        """Return the tolerance of lower solves for parameters of `dtype`."""
        return SOLVED.get(dtype, COARSELY_SOLVED) if self.rtol is None else self.rtol

    def random_state(
        self, number: int, devices: Iterable[torch.device], generators: Iterable[Any] = ()
    ) -> RandomState:
        """Return the random state that goes with a number and the seed."""
        with RandomState.capture(foreign=False).replay():
            torch.default_generator.manual_seed(1000 * self.seed + number)
            return RandomState.draw(devices, generators)


class Parts(NamedTuple):
    """A hypergradient in its two parts, and how it was computed."""

    direct: Tensors
    response: Tensors
    infos: Mapping[str, Info]


class Stand(NamedTuple):
    """Where a lower problem ended.

    Attributes:
        end: its parameters.
        again: where what its method claims leads with the other problems elsewhere.
    """

    end: Tensors
    again: Callable[[Values], Tensors]


class Run(Protocol):
    """The methods at work; nothing of it is left when it ends."""

    def take(self, name: str, values: Values, steps: str) -> Stand:
        """Return where problem `name` ends from `values`, its response prepared.

        `steps` says how far it goes: "all" of a round, the "last" that its method records, "none".
        """

    def hypergradient(self, values: Values) -> tuple[Parts, Parts]:
        """Return the hypergradient at `values`, and once more after the random generators have
        moved, with witnesses of what its methods compute.
        """


class Subject(Protocol):
    """The problem whose hypergradient is checked, and those below it, as functions of values.

    No method changes anything: parameters, buffers and optimizers stay as they are.

    Attributes:
        name: of the checked problem.
        below: the problems below it whose solutions matter, top to bottom.
        methods: how they respond.
        claims: what their methods claim.
        felt: for each problem, those below whose solutions its loss depends on.
        inputs: for each problem, those above that its solution depends on.
        saddles: the problems that are minimised over some tensors and maximised over others.
        start: all parameters, in the type that losses are evaluated in.
        dtype: the coarsest type of the parameters.
        devices: where they are.
        precision: autocast type of the hypergradient.
        notes: what limits the check.
        symptoms: what was seen to be wrong.
    """

    name: str
    below: tuple[str, ...]
    methods: Mapping[str, Method]
    claims: Mapping[str, Claim]
    felt: Mapping[str, tuple[str, ...]]
    inputs: Mapping[str, tuple[str, ...]]
    saddles: frozenset[str]
    start: dict[str, Tensors]
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    precision: torch.dtype | None
    notes: list[str]
    symptoms: list[str]

    def reads(self, name: str) -> tuple[str, ...]:
        """Return the problems that the loss of problem `name` depends on; none where it has no
        gradient.
        """

    def look(self, name: str) -> object:
        """Return the loss of problem `name` with the random numbers of now."""

    def evaluate(self, name: str, values: Values, wanted: Sequence[str]) -> tuple[float, Partials]:
        """Return what problem `name` minimises at `values` and its derivatives for the problems
        `wanted`, without autocast.
        """

    def solve(self, values: Values) -> dict[str, Tensors] | None:
        """Return `values` with the lower problem at its solution by the caller's solver, None if
        there is none.
        """

    def run(self, stepped: Set[str], landscape: Landscape, log: Log) -> AbstractContextManager[Run]:
        """Return a block in which the methods are at work and `log` gets what is witnessed.

        The problems `stepped` take their steps; the others that they feel are solved on the way.
        """


def coarsest(x: Tensors) -> torch.dtype:
    """Return the type of least precision among the tensors."""
    return max((t.dtype for t in x), key=lambda dtype: torch.finfo(dtype).eps)


@contextmanager
def full_precision(devices: Iterable[torch.device]) -> Iterator[None]:
    """Run a block without the autocast that may be around it."""
    with ExitStack() as stack:
        for kind in {device.type for device in devices}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
