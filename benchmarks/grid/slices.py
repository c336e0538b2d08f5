"""The grid file: slices, each a grid as ``applications.compare`` reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from applications.comparison.grid import Grid, Run, made_grid, narrowed, planned
from applications.errors import UsageError

SHARED = ("common", "methods", "command", "resplit")
"""What slices without such a key take from the file."""


@dataclass(frozen=True)
class Regime:
    """What D1 is: training examples of the task as they are, unless said otherwise.

    Attributes:
        noise: the share of D1's labels that are replaced by another class.
        lower_from: the task whose training examples D1 consists of.
    """

    noise: float = 0.0
    lower_from: str | None = None


@dataclass(frozen=True)
class Slice:
    """A part of the grid that runs on its own."""

    name: str
    grid: Grid
    regimes: Mapping[str, Regime]

    def runs(
        self,
        flags: Mapping[str, Any],
        seeds: Sequence[int] | None = None,
        tasks: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
    ) -> list[Run]:
        """Its runs, or those of some seeds, tasks and methods; seeds outermost.

        Raises:
            UsageError: a task or a method that it does not have.
        """
        grid = narrowed(self.grid, tasks=tasks, methods=methods)
        chosen = [seed for seed in grid.seeds if seeds is None or seed in seeds]
        return planned(replace(grid, seeds=chosen), flags) if chosen else []


def read_slices(path: Path) -> dict[str, Slice]:
    """The slices of a file, by name.

    Raises:
        UsageError: something in it is unknown or refused.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    shared = {key: content[key] for key in SHARED if key in content}
    found = {}
    for name, values in content["slices"].items():
        place = f"grid file {str(path)!r}, slice {name!r}"
        values = {**shared, **values}
        regimes = {task: Regime(**each) for task, each in values.pop("regimes", {}).items()}
        grid = made_grid(values, place)
        unknown = set(regimes) - set(grid.tasks)
        if unknown:
            raise UsageError(f"{place}: regimes of tasks that it does not have: {sorted(unknown)}")
        found[str(name)] = Slice(str(name), grid, regimes)
    return found
