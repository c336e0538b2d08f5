"""What is to be run: tasks x train sizes x methods x seeds, each with its options.

Precedence of options, from low to high: the application's defaults, equal scale, ``common``, the
task's, the method's, ``overrides`` in their order, the command line. The grid itself sets ``seed``,
``max_train_samples`` and (``resplit``) ``split_seed``. Equal scale is ``scale_by_rank`` for softmax
values, which else start at 1/r: a difference to LoRA would be one of scale.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from applications.comparison.settings import check_command, checked, near, resolved
from applications.data.tasks import COMMANDS
from applications.errors import UsageError
from applications.methods import METHODS
from applications.options.files import read_settings

T = TypeVar("T")
KEYS = (
    *("command", "common", "tasks", "methods", "train_sizes", "seeds", "resplit"),
    *("reference", "overrides", "exclude"),
)
AXES = ("task", "method", "train_size", "seed")
ALL = "all"
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Run:
    """One run: its place in the grid and the options that are given to the application."""

    task: str
    train_size: int | None
    variant: str
    seed: int
    command: str
    options: Mapping[str, Any]
    resolved: Mapping[str, Any] = field(default_factory=dict)
    """All options, defaults included, as the application understands the given ones."""
    data: str | None = None
    """A digest of the files that the data are read from; None where there are none."""

    @property
    def size_label(self) -> str:
        """The train size as text."""
        return size_label(self.train_size)

    @property
    def name(self) -> str:
        """The run's folder below ``runs``, also its name in messages."""
        task, variant = folder_name(self.task), folder_name(self.variant)
        return f"{task}/{self.size_label}/{variant}/seed{self.seed}"

    @property
    def cell(self) -> tuple[str, str, int]:
        """What the runs that are compared with one another share."""
        return self.task, self.size_label, self.seed


@dataclass(frozen=True)
class Condition:
    """Some runs of a grid: those whose place is among the named values, on every named axis."""

    values: Mapping[str, frozenset[Any]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, place: Mapping[str, Any]) -> bool:
        """Whether the run at ``place`` (axis to value) is meant."""
        return all(place[axis] in values for axis, values in self.values.items())


@dataclass(frozen=True)
class Grid:
    """The axes and the options that belong to them."""

    command: str | None = None
    """The application of all tasks; None for each task's own."""
    common: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    task_commands: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    train_sizes: Sequence[int | None] = (None,)
    seeds: Sequence[int] = (0,)
    resplit: bool = False
    reference: str | None = None
    overrides: Sequence[Condition] = ()
    exclude: Sequence[Condition] = ()


def size_label(size: int | None) -> str:
    """A train size as text."""
    return ALL if size is None else str(size)


def folder_name(label: str) -> str:
    """The label without what a folder's name should not hold."""
    return re.sub(r"[^\w.+=-]", "-", label)


def read_grid(path: Path) -> Grid:
    """The grid in a YAML or JSON file.

    Raises:
        UsageError: it cannot be read, or something in it is unknown or refused.
    """
    return made_grid(read_settings(path, "grid file"), f"grid file {str(path)!r}")


def made_grid(values: Any, place: str) -> Grid:
    """The grid that a mapping describes; ``place`` names its origin in messages."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{place}: must hold one mapping with some of {', '.join(KEYS)}")
    check_keys(values, KEYS, place)
    command = values.get("command")
    if command is not None:
        command = check_command(str(command), place)
    tasks = {str(k): dict(v or {}) for k, v in mapping(values, "tasks", place).items()}
    commands = {
        name: check_command(
            str(options.pop("command", command or command_of(options.get("task_name", name)))),
            f"{place}, task {name!r}",
        )
        for name, options in tasks.items()
    }
    methods = mapping(values, "methods", place)
    grid = Grid(
        command=command,
        common=checked(values.get("common"), f"{place}, common"),
        tasks={k: checked(v, f"{place}, task {k!r}") for k, v in tasks.items()},
        task_commands=commands,
        methods={str(k): checked(v, f"{place}, method {k!r}") for k, v in methods.items()},
        train_sizes=train_sizes(values.get("train_sizes", [None]), f"{place}, train_sizes"),
        seeds=seeds(values.get("seeds", [0]), f"{place}, seeds"),
        resplit=flag(values.get("resplit", False), f"{place}, resplit"),
        reference=reference(values.get("reference"), f"{place}, reference"),
    )
    for name in ("task_name", "method"):
        if name in grid.common:
            raise UsageError(f"{place}, common: option {name!r} belongs to a task or a method")
    return replace(
        grid,
        overrides=conditions(values, "overrides", grid, place),
        exclude=conditions(values, "exclude", grid, place),
    )


def command_of(task: object) -> str:
    """The application of a known task; ``nlu`` for one's own data."""
    return COMMANDS.get(str(task), "nlu")


def mapping(values: Mapping[str, Any], key: str, place: str) -> Mapping[Any, Any]:
    """The mapping under ``key``; a list of names stands for names without options."""
    found = values.get(key) or {}
    if isinstance(found, list):
        return {str(name): {} for name in found}
    if not isinstance(found, Mapping):
        raise UsageError(f"{place}, {key}: must be a mapping of names to options, got {found!r}")
    return found


def check_keys(values: Mapping[Any, Any], known: Sequence[str], place: str) -> None:
    """Raise a UsageError for the first key that is not known."""
    for key in values:
        if key not in known:
            raise UsageError(f"{place}: unknown key {key!r}: {near(str(key), known)}")


def flag(value: Any, place: str) -> bool:
    """The value, if it is true or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{place}: must be true or false, got {value!r}")
    return value


def train_sizes(values: Any, place: str) -> list[int | None]:
    """Train sizes, ``all`` or null meaning all examples there are."""
    listed = values if isinstance(values, list) else [values]
    result: list[int | None] = []
    for value in listed:
        size = None if value in (None, ALL) else whole(value, place)
        if size is not None and size < 2:
            raise UsageError(f"{place}: a train size must be at least 2 or 'all', got {size}")
        result.append(size)
    return unrepeated(result, place)


def reference(value: Any, place: str) -> str | None:
    """The name of a method, if there is one."""
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{place}: must be the name of one method, got {value!r}")
    return value


def seeds(values: Any, place: str) -> list[int]:
    """Seeds from a count (5: 0 to 4) or a list."""
    if isinstance(values, list):
        return unrepeated([whole(value, place) for value in values], place)
    count = whole(values, place)
    if count < 1:
        raise UsageError(f"{place}: at least one seed is needed, got {count}")
    if count > MOST_SEEDS:
        raise UsageError(
            f"{place}: at most {MOST_SEEDS} seeds are planned at once, got {count}; one seed of "
            f"that number is [{count}]"
        )
    return list(range(count))


def whole(value: Any, place: str) -> int:
    """The value as a whole number of at least 0."""
    try:
        number = int(str(value))
    except ValueError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise UsageError(f"{place}: must be a whole number of at least 0, got {value!r}")
    return number


def unrepeated(values: list[T], place: str) -> list[T]:
    """The values, if there are some and each is there once."""
    if not values or len(set(values)) < len(values):
        raise UsageError(f"{place}: must hold at least one value and each once, got {values}")
    return values


def conditions(values: Mapping[str, Any], key: str, grid: Grid, place: str) -> list[Condition]:
    """The entries of ``overrides`` or ``exclude``.

    Raises:
        UsageError: an entry names a task, method, size or seed that the grid does not have, and
            would do nothing.
    """
    readers: Mapping[str, tuple[Callable[[Any, str], list[Any]], Iterable[Any]]] = {
        "task": (names, grid.tasks),
        "method": (names, grid.methods),
        "train_size": (train_sizes, grid.train_sizes),
        "seed": (lambda v, where: seeds(v if isinstance(v, list) else [v], where), grid.seeds),
    }
    allowed = (*AXES, "options") if key == "overrides" else AXES
    found = values.get(key) or []
    if not isinstance(found, list):
        raise UsageError(f"{place}, {key}: must be a list, got {found!r}")
    result = []
    for number, entry in enumerate(found, start=1):
        where = f"{place}, {key} {number}"
        if not isinstance(entry, Mapping):
            raise UsageError(f"{where}: must be a mapping with some of {', '.join(allowed)}")
        check_keys(entry, allowed, where)
        meant = {}
        for axis, (read, known) in readers.items():
            if axis in entry:
                meant[axis] = frozenset(read(entry[axis], f"{where}, {axis}"))
                for value in meant[axis] - set(known):
                    remedy = near(str(value), map(str, known))
                    raise UsageError(f"{where}: the grid has no {axis} {value!r}: {remedy}")
        if not meant:
            raise UsageError(f"{where}: must name at least one of {', '.join(AXES)}")
        result.append(Condition(meant, checked(entry.get("options"), where)))
    return result


def names(value: Any, place: str) -> list[str]:
    """One name or several."""
    del place
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def narrowed(
    grid: Grid,
    *,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    sizes: Sequence[str] | None = None,
    seed_words: Sequence[str] | None = None,
) -> Grid:
    """The grid with what the command line says instead.

    Tasks and methods choose among the grid's, or name plain ones where it has none; train sizes and
    seeds (a count, or several numbers) replace the grid's.
    """
    changes: dict[str, Any] = {
        "tasks": chosen(grid.tasks, tasks, "--tasks"),
        "methods": chosen(grid.methods, methods, "--methods"),
    }
    if sizes is not None:
        changes["train_sizes"] = train_sizes(list(sizes), "argument --train_sizes")
    if seed_words is not None:
        one = seed_words[0] if len(seed_words) == 1 else list(seed_words)
        changes["seeds"] = seeds(one, "argument --seeds")
    return replace(grid, **changes)


def chosen(
    known: Mapping[str, Mapping[str, Any]], wanted: Sequence[str] | None, place: str
) -> Mapping[str, Mapping[str, Any]]:
    """The wanted ones among the known, in the order of the wanted; plain names where none is."""
    if wanted is None:
        return known
    if not known:
        return {name: {} for name in unrepeated(list(wanted), f"argument {place}")}
    for name in wanted:
        if name not in known:
            raise UsageError(f"argument {place}: unknown name {name!r}: {near(name, known)}")
    return {name: known[name] for name in unrepeated(list(wanted), f"argument {place}")}


def planned(grid: Grid, flags: Mapping[str, Any] | None = None) -> list[Run]:
    """The runs of the grid, each checked by the application's own parser.

    Seeds come outermost, so that a grid cut short is balanced over the methods.

    Args:
        grid: axes and options.
        flags: options of the command line, which outrank those of the grid.

    Raises:
        UsageError: no tasks or methods, labels that cannot be told apart as folders, or options
            that the application refuses.
    """
    for key, found in (("tasks", grid.tasks), ("methods", grid.methods)):
        if not found:
            raise UsageError(f"no {key}: give --{key}, or a grid file with {key}")
        folders: dict[str, str] = {}
        for label in found:
            if not label.strip():
                raise UsageError(f"{key}: a name is empty, got {label!r}; give it one")
            other = folders.setdefault(folder_name(label).casefold(), label)
            if other != label or label.startswith("."):
                raise UsageError(f"{key}: {label!r} cannot be a folder beside {other!r}; rename it")
    if grid.reference is not None and grid.reference not in grid.methods:
        remedy = near(str(grid.reference), grid.methods)
        raise UsageError(f"reference {grid.reference!r} is not among the methods: {remedy}")
    runs = [
        one_run(grid, task, size, variant, seed, flags or {})
        for seed in grid.seeds
        for task in grid.tasks
        for size in grid.train_sizes
        for variant in grid.methods
        if not excluded(grid, task, size, variant, seed)
    ]
    if not runs:
        raise UsageError("no runs are left: exclude leaves all of them out")
    return with_resolved(runs)


def excluded(grid: Grid, task: str, size: int | None, variant: str, seed: int) -> bool:
    """Whether the grid leaves this run out."""
    place = {"task": task, "method": variant, "train_size": size, "seed": seed}
    return any(condition.holds(place) for condition in grid.exclude)


def one_run(
    grid: Grid, task: str, size: int | None, variant: str, seed: int, flags: Mapping[str, Any]
) -> Run:
    """The run at a place of the grid, its options merged by rank."""
    place = {"task": task, "method": variant, "train_size": size, "seed": seed}
    overrides = [one.options for one in grid.overrides if one.holds(place)]
    layers = [
        grid.common,
        {"task_name": task, **grid.tasks[task]},
        {"method": variant, **grid.methods[variant]},
        *overrides,
        flags,
        {"max_train_samples": size, "seed": seed, "disable_tqdm": True},
        {"split_seed": seed} if grid.resplit else {},
    ]
    options: dict[str, Any] = {}
    for layer in layers:
        options |= layer
    options = equal_scale(options) | options
    options = {name: value for name, value in options.items() if value is not None}
    return Run(
        task,
        size,
        variant,
        seed,
        grid.task_commands.get(task, grid.command or command_of(task)),
        options,
    )


def equal_scale(options: Mapping[str, Any]) -> dict[str, Any]:
    """The option that starts softmax values at LoRA's scale, for methods that have such values."""
    row = METHODS.get(str(options["method"]))
    has = row is not None and "scale_by_rank" in row.takes.values()
    softmax = options.get("singular_values") in (None, "softmax")
    return {"scale_by_rank": True} if has and softmax else {}


def with_resolved(runs: Sequence[Run]) -> list[Run]:
    """The runs with all their options; those that differ in seeds alone are parsed once."""
    parsed: dict[str, dict[str, Any]] = {}
    result = []
    for run in runs:
        seeded = {name: run.options[name] for name in ("seed", "split_seed") if name in run.options}
        rest = {name: value for name, value in run.options.items() if name not in seeded}
        key = json.dumps([run.command, rest], sort_keys=True)
        if key not in parsed:
            parsed[key] = resolved(run.command, rest, f"run {run.name}")
        result.append(replace(run, resolved={**parsed[key], **seeded}))
    return result


def shard(runs: Sequence[Run], number: int, of: int) -> list[Run]:
    """The runs of shard ``number`` (from 1) ``of`` several.

    Runs that are compared with one another (one task, size and seed) stay on one machine, so that
    differences between methods are not differences between machines. More methods or, at the
    end, more seeds leave the assignment as it was.
    """
    cells = list(dict.fromkeys(run.cell for run in runs))
    mine = set(cells[number - 1 :: of])
    return [run for run in runs if run.cell in mine]
