"""The sources and the target of a run, read and brought to one form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from applications.data.examples import TaskData
from applications.data.local_files import read_file
from applications.errors import UsageError
from applications.families.family import Family
from applications.options.arguments import DataOptions
from applications.options.weighting import WeightingOptions
from applications.pages.writing import write_whole

CROSSED = "/"
JOINED = "+"


@dataclass(frozen=True)
class Group:
    """Examples that belong to the same sources: one, or several where a cell lists them.

    ``truth`` holds the same examples with their true answers, where those are known.
    """

    name: str
    path: str
    members: tuple[str, ...]
    examples: Dataset
    truth: Dataset | None = None


@dataclass(frozen=True)
class Gathered:
    """The target as a task, and the groups of examples of the sources, in the same form."""

    task: TaskData
    groups: tuple[Group, ...]

    @property
    def names(self) -> list[str]:
        """The sources, in the order in which they first occur."""
        return list(dict.fromkeys(name for group in self.groups for name in group.members))

    @property
    def union(self) -> Dataset:
        """All examples of the sources, group after group."""
        return concatenate_datasets([group.examples for group in self.groups])


def gather(
    data: DataOptions, weighting: WeightingOptions, family: Family, folder: Path
) -> Gathered:
    """Read what the options ask for; rows of ``--source_column`` go to a file a group first.

    Labels are one numbering over target and sources, by name.

    Raises:
        UsageError: no sources or target, one source alone, columns that are missing, a source
            that shares no label with the target.
    """
    if weighting.target_file is None:
        raise UsageError(
            "argument --target_file: give the small trusted set that says what is good, got None"
        )
    places = located(data, weighting, folder)
    check_apart(data, weighting)
    bare = replace(data, task_name=None, train_file=None, validation_file=None, test_file=None)
    target_data = at(replace(bare, test_file=data.test_file), weighting.target_file)
    target = family.load_task(replace(target_data, max_train_samples=None))
    loaded = {name: family.load_task(at(bare, path)) for name, path, _ in places}
    truths: dict[str, TaskData] = {}
    if weighting.truth_column is not None:
        true_data = replace(bare, label_column=weighting.truth_column)
        truths = {name: family.load_task(at(true_data, path)) for name, path, _ in places}
    check_kinds(target, loaded)
    everything = [target, *loaded.values(), *truths.values()]
    names = list(dict.fromkeys(name for task in everything for name in task.label_names))
    groups = tuple(
        Group(
            name,
            path,
            members,
            renumbered(loaded[name], "train", names),
            renumbered(truths[name], "train", names) if name in truths else None,
        )
        for name, path, members in places
    )
    for group in groups:
        if group.truth is not None and len(group.truth) != len(group.examples):
            raise UsageError(
                f"argument --truth_column: source {group.name!r} has {len(group.examples)} "
                f"examples but {len(group.truth)} with a true label, got "
                f"{weighting.truth_column!r}"
            )
    splits = {split: renumbered(target, split, names) for split in target.splits}
    task = replace(target, label_names=tuple(names), splits=splits)
    gathered = Gathered(task, groups)
    if len(gathered.names) < 2:
        raise UsageError(
            f"argument --sources: at least two sources are weighed, got {gathered.names}"
        )
    return gathered


def check_apart(data: DataOptions, weighting: WeightingOptions) -> None:
    """Raise a UsageError where one file is the target, the test set or a source twice."""
    given = [("--target_file", weighting.target_file), ("--test_file", data.test_file)]
    pairs = [each.partition("=") for each in weighting.sources or ()]
    given += [(f"source {name!r}", path) for name, _, path in pairs]
    seen: dict[Path, str] = {}
    for name, path in given:
        if path is None or not Path(path).exists():
            continue
        other = seen.setdefault(Path(path).resolve(), name)
        if other != name:
            what = name if name.startswith("--") else "--sources"
            raise UsageError(
                f"argument {what}: {path!r} is {name} and {other}, and one file cannot be both; "
                f"give another"
            )


def at(data: DataOptions, path: str) -> DataOptions:
    """The options that read from a file, a folder, or else a task or data set by its name."""
    if Path(path).is_file():
        return replace(data, train_file=path, data_dir=None)
    if Path(path).is_dir():
        return replace(data, data_dir=path, test_file=None)
    if Path(path).suffix and "/" not in path.removeprefix("/"):
        raise UsageError(f"argument --sources: there is no file {path!r}; check the path")
    return replace(data, task_name=path)


def located(
    data: DataOptions, weighting: WeightingOptions, folder: Path
) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, path and sources of each group."""
    if weighting.sources is not None:
        if data.train_file is not None:
            raise UsageError(
                f"argument --train_file: goes with --source_column, got {data.train_file!r} beside "
                f"--sources; give one of them"
            )
        pairs = [given.partition("=") for given in weighting.sources]
        return [(name, path, (name,)) for name, _, path in pairs]
    if data.train_file is None or weighting.source_column is None:
        raise UsageError(
            "argument --sources: no sources; give NAME=PATH,... or --train_file FILE with "
            "--source_column COLUMN, got None"
        )
    return divided(Path(data.train_file), weighting.source_column, folder)


def divided(
    file: Path, columns: Sequence[str], folder: Path
) -> list[tuple[str, str, tuple[str, ...]]]:
    """The rows of a file by the cells of the columns, a jsonl file a group in ``sources/``."""
    rows = read_file(file)
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise UsageError(
            f"argument --source_column: {file} has no column {missing[0]!r}, only "
            f"{rows.column_names}"
        )
    positions: dict[tuple[str, ...], list[int]] = {}
    for position, cells in enumerate(zip(*(rows[column] for column in columns), strict=True)):
        positions.setdefault(members_of(cells, file, columns), []).append(position)
    rest = rows.remove_columns(list(columns))
    found = []
    for number, (members, chosen) in enumerate(positions.items()):
        path = folder / "sources" / f"{number:03d}-{file_name(members)}.jsonl"
        part = rest.select(chosen)
        write_rows(part, path)
        found.append((JOINED.join(members), str(path), members))
    return found


def write_rows(rows: Dataset, path: Path) -> None:
    """Write rows as a jsonl file."""
    write_whole(path, lambda draft: rows.to_json(str(draft)))


def members_of(cells: Sequence[Any], file: Path, columns: Sequence[str]) -> tuple[str, ...]:
    """The sources of a row: those that its one cell lists, or the cell of several columns."""
    if len(cells) == 1 and isinstance(cells[0], list):
        members = tuple(dict.fromkeys(str(member) for member in cells[0]))
    else:
        members = (CROSSED.join(str(cell) for cell in cells),)
    if not members or any(cell is None or cell == "" for cell in cells):
        raise UsageError(
            f"argument --source_column: a row of {file} names no source, got {list(cells)} in "
            f"{list(columns)}; remove the row or name one"
        )
    return members


def file_name(members: Sequence[str]) -> str:
    """The sources as part of a file's name."""
    text = JOINED.join(members)
    return "".join(c if c.isalnum() or c in "+-_." else "_" for c in text)[:60]


def check_kinds(target: TaskData, loaded: Mapping[str, TaskData]) -> None:
    """Refuse sources of another kind than the target, or with no label in common with it."""
    for name, task in loaded.items():
        if task.kind != target.kind:
            raise UsageError(
                f"argument --sources: source {name!r} is for {task.kind}, the target for "
                f"{target.kind}; give both the same kind of labels"
            )
        shared = set(task.label_names) & set(target.label_names)
        if target.label_names and not shared:
            raise UsageError(
                f"argument --sources: source {name!r} has the labels {list(task.label_names)}, "
                f"the target {list(target.label_names)}: none in common; spell them alike"
            )


def renumbered(task: TaskData, split: str, names: Sequence[str]) -> Dataset:
    """The examples of a split with their answers numbered as in ``names``."""
    rows = task.splits[split]
    if not task.label_names:
        return rows
    answer = rows.column_names[-1]
    number = {old: names.index(name) for old, name in enumerate(task.label_names)}

    def translated(value: Any) -> Any:
        return [number[v] for v in value] if isinstance(value, list) else number[value]

    values = [translated(value) for value in rows[answer]]
    columns = {name: list(rows[name]) for name in rows.column_names[:-1]}
    return Dataset.from_dict({**columns, answer: values})
