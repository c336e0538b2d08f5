"""What a library is to the benchmarks, and which there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.peers.task import Task

# A round: the lower steps, a hypergradient, a step of the optimizer above.
Round = Callable[[], object]
Train = Callable[[Task], Round]


class Absent(Exception):  # noqa: N818 - an outcome, not an error
    """A library, or a method of it, that is not there, with the reason."""


@dataclass(frozen=True)
class Claim:
    """What a method says that its hypergradient is; `reference.py` computes it in float64.

    Attributes:
        kind: "one step", "identity", "steps", "series", "krylov" or "implicit".
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
        claim: what its hypergradient claims to be; None where it is the claim of the row.
    """

    train: Train
    claim: Claim | None = None


@dataclass(frozen=True)
class Library:
    """A library beside the others.

    Attributes:
        name: as it is shown.
        package: as pip knows it, for its version.
        find: imports what it needs, or raises ImportError or `Absent`.
        methods: by the names in `rows.py`.
        is_torch: whether torch allocates its memory, which is else not measured.
    """

    name: str
    package: str
    find: Callable[[], object]
    methods: Mapping[str, Entry]
    is_torch: bool = True

    def round_of(self, method: str, task: Task) -> Round:
        """Return the rounds of a method on a task.

        Raises:
            Absent: the library is not installed, or has no such method.
        """
        try:
            self.find()
        except ImportError as error:
            raise Absent(f"{self.package} cannot be imported: {error}") from error
        if method not in self.methods:
            raise Absent(f"{self.name} has no {method}")
        return self.methods[method].train(task)


LIBRARIES: dict[str, Library] = {}


def register(library: Library) -> Library:
    """Add a library to the comparison, and return it."""
    if library.name in LIBRARIES:
        raise ValueError(f"a library called {library.name!r} is registered already")
    LIBRARIES[library.name] = library
    return library
