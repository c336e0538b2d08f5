"""Where the sources lie: what names them, and the files that they are read from."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from applications.data.local_files import read_file
from applications.data.tasks import COMMANDS, TASKS
from applications.errors import UsageError
from applications.options.arguments import DataOptions
from applications.options.weighting import WeightingOptions
from applications.pages.writing import write_whole
from applications.weighting.mixture import BUILDERS

CROSSED = "/"
JOINED = "+"
ON_THE_HUB = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Place:
    """Rows that belong to the same sources.

    Args:
        name: what they are called.
        path: file, folder, task, or name on the Hub.
        members: the sources: one, or several where a cell lists them.
        argument: the option that says so, for messages.
    """

    name: str
    path: str
    members: tuple[str, ...]
    argument: str = "sources"

    @property
    def readable(self) -> bool:
        """Whether ``datasets.load_dataset`` reads it as it is: files of its builders, folders of
        such, and data sets on the Hub; no tab-separated values, words a line, or tasks known here.
        """
        place = Path(self.path)
        if place.is_dir():
            return any(file.suffix in BUILDERS for file in place.glob("train.*"))
        return place.suffix in BUILDERS if place.is_file() else self.path not in COMMANDS


def located(data: DataOptions, weighting: WeightingOptions, folder: Path) -> list[Place]:
    """Where each group of rows lies; rows of ``--source_column`` go to a file a group first.

    Raises:
        UsageError: no sources, both kinds of them, one name for two, columns that are missing.
    """
    if weighting.sources is not None:
        if data.train_file is not None:
            raise UsageError(
                f"argument --train_file: goes with --source_column, got {data.train_file!r} beside "
                f"--sources; give one of them"
            )
        pairs = [given.partition("=") for given in weighting.sources]
        return [Place(name, path, (name,)) for name, _, path in pairs]
    if data.train_file is None or weighting.source_column is None:
        raise UsageError(
            "argument --sources: no sources; give NAME=PATH,... or --train_file FILE with "
            "--source_column COLUMN, got None"
        )
    return divided(data, weighting.source_column, folder)


def at(data: DataOptions, place: Place) -> DataOptions:
    """The options that read from a file, a folder, or else a task or data set by its name.

    Raises:
        UsageError: it is none of them.
    """
    path = place.path
    if Path(path).is_file():
        return replace(data, train_file=path, data_dir=None)
    if Path(path).is_dir():
        return replace(data, data_dir=path)
    if path in COMMANDS or (ON_THE_HUB.fullmatch(path) and Path(path).suffix not in BUILDERS):
        return replace(data, task_name=path, data_dir=data.data_dir if path in TASKS else None)
    raise UsageError(
        f"argument --{place.argument}: there is no file {path!r}, nor a folder or task of this "
        f"name; check the path"
    )


def divided(data: DataOptions, columns: Sequence[str], folder: Path) -> list[Place]:
    """The rows of a file by the cells of the columns, a jsonl file a group in ``sources/``."""
    file = Path(str(data.train_file))
    rows = read_file(file)
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise UsageError(
            f"argument --source_column: {file} has no column {missing[0]!r}, only "
            f"{rows.column_names}"
        )
    if data.label_column in columns:
        raise UsageError(
            f"argument --source_column: {data.label_column!r} is the column of labels, which "
            f"--label_column names; the source is another"
        )
    positions: dict[tuple[str, ...], list[int]] = {}
    for position, cells in enumerate(zip(*(rows[column] for column in columns), strict=True)):
        positions.setdefault(members_of(cells, file, columns), []).append(position)
    rest = rows.remove_columns(list(columns))
    found: list[Place] = []
    for members, chosen in positions.items():
        name = group_name(members, [each[0] for each in positions if len(each) == 1])
        path = own_file(folder, len(found), name)
        write_rows(rest.select(chosen), path)
        found.append(Place(name, str(path), members, "source_column"))
    return found


def own_file(folder: Path, number: int, name: str) -> Path:
    """Where the rows of a group are written."""
    kept = "".join(c if c.isalnum() or c in "+-_." else "_" for c in name)[:60]
    return folder / "sources" / f"{number:03d}-{kept}.jsonl"


def write_rows(rows: Dataset, path: Path) -> None:
    """Write rows as a jsonl file."""
    write_whole(path, lambda draft: rows.to_json(str(draft), force_ascii=False))


def members_of(cells: Sequence[Any], file: Path, columns: Sequence[str]) -> tuple[str, ...]:
    """The sources of a row: those that its one cell lists, or the cell of several columns."""
    listed = len(cells) == 1 and isinstance(cells[0], list)
    parts = cells[0] if listed else cells
    if not parts or any(part is None or part == "" for part in parts):
        raise UsageError(
            f"argument --source_column: a row of {file} names no source, got {list(cells)} in "
            f"{list(columns)}; remove the row or name one"
        )
    if listed or len(cells) == 1:
        return tuple(dict.fromkeys(str(part) for part in parts))
    return (joined([str(cell) for cell in cells], CROSSED),)


def group_name(members: Sequence[str], singles: Sequence[str]) -> str:
    """The name of a group: its source, or all of them, told from every single source."""
    if len(members) == 1:
        return members[0]
    name = joined(members, JOINED)
    return name if name not in singles else JOINED.join(map(quoted, members))


def joined(parts: Sequence[str], mark: str) -> str:
    """The parts with the mark between them; in quotes where a part holds it, so that other parts
    never make the same name.
    """
    return mark.join(quoted(part) if mark in part or part[:1] == '"' else part for part in parts)


def quoted(part: str) -> str:
    """The part in quotes."""
    return json.dumps(part, ensure_ascii=False)
