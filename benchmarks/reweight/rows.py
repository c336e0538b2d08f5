"""The rows of results.jsonl: appended as they come, found again by what they are of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results/reweight/results.jsonl")


def read(file: Path = RESULTS) -> list[dict[str, Any]]:
    """All rows; a last line that was cut off is left out."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def append(row: Mapping[str, Any], file: Path = RESULTS) -> None:
    """One row at the end of the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def done(rows: list[dict[str, Any]], **cell: Any) -> set[str]:
    """The methods of a cell that have a row."""
    return {
        row["method"] for row in rows if all(row.get(key) == value for key, value in cell.items())
    }
