"""What a library is to the benchmarks, and which there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.chains import Chain
from benchmarks.peers.task import Task

# A round: the lower steps, a hypergradient, a step of the optimizer above.
Round = Callable[[], object]
Train = Callable[[Any], Round]  # of a `Task`, or of a `Chain` where the entry is one for chains


class Absent(Exception):  # noqa: N818 - an outcome, not an error
    """A library, or a method of it, that is not there, with the reason."""


@dataclass(frozen=True)
class Claim:
    """What a method says that its hypergradient is; `reference.py` computes it in float64.

    Attributes:
        kind: "one step", "identity", "steps", "steps, earlier Adam", "series", "krylov", "implicit"
            or "none".
        size: terms or products, where there are such.
    """

    kind: str
    size: int = 0

    def __str__(self) -> str:
        return f"{self.kind}({self.size})" if self.size else self.kind


@dataclass(frozen=True)
class Entry:
    """One method of a library.

    Attributes:
        train: makes its rounds on a task.
        claim: what its hypergradient claims to be, or a function of the problem that returns it;
            None where it is the claim of the row.
    """

    train: Train
    claim: Claim | Callable[[Any], Claim] | None = None

    def claimed(self, problem: Task | Chain, usual: Claim) -> Claim:
        """Return what the hypergradient of a problem claims to be; `usual` if nothing is said."""
        return self.claim(problem) if callable(self.claim) else self.claim or usual


@dataclass(frozen=True)
class Library:
    """A library beside the others.

    Attributes:
        name: as it is shown.
        package: as pip knows it, for its version.
        find: imports what it needs, or raises ImportError or `Absent`.
        methods: on two levels, by the names in `rows.py`.
        chains: the same on chains of two and more levels.
        is_torch: whether torch allocates its memory, which is else not measured.
    """

    name: str
    package: str
    find: Callable[[], object]
    methods: Mapping[str, Entry]
    chains: Mapping[str, Entry] = field(default_factory=dict)
    is_torch: bool = True

    def entry(self, method: str, problem: Task | Chain) -> Entry:
        """Return a method as it is on a problem.

        Raises:
            Absent: the library is not installed, or has no such method.
        """
        try:
            self.find()
        except ImportError as error:
            raise Absent(f"{self.package} cannot be imported: {error}") from error
        of_chains = isinstance(problem, Chain)
        found = self.chains if of_chains else self.methods
        if method not in found:
            raise Absent(f"{self.name} has no {method}{' for chains' * of_chains}")
        return found[method]

    def round_of(self, method: str, problem: Task | Chain) -> Round:
        """Return the rounds of a method on a problem.

        Raises:
            Absent: the library is not installed, or has no such method.
        """
        return self.entry(method, problem).train(problem)


LIBRARIES: dict[str, Library] = {}


def register(library: Library) -> Library:
    """Add a library to the comparison, and return it."""
    if library.name in LIBRARIES:
        raise ValueError(f"a library called {library.name!r} is registered already")
    LIBRARIES[library.name] = library
    return library
