"""The rows of results.jsonl: appended as they come, found again by what they are of."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from applications.pages.writing import append_line

RESULTS = Path("benchmarks/results/reweight/results.jsonl")


def read(file: Path = RESULTS) -> list[dict[str, Any]]:
    """All rows; a last line that was cut off is left out."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def append(row: Mapping[str, Any], file: Path = RESULTS) -> None:
    """One row at the end of the file, on a line of its own."""
    append_line(file, json.dumps(row))


def has(rows: Sequence[Mapping[str, Any]], cell: Mapping[str, Any]) -> bool:
    """Whether there is a row of a cell."""
    return any(of(row, cell) for row in rows)


def done(rows: Sequence[Mapping[str, Any]], **cell: Any) -> set[str]:
    """The methods of a cell that have a row."""
    return {row["method"] for row in rows if of(row, cell)}


def of(row: Mapping[str, Any], cell: Mapping[str, Any]) -> bool:
    """Whether a row is one of a cell."""
    return all(row.get(key) == value for key, value in cell.items())
