"""Rows: what is run and written one after the other, each on disk as soon as it is known."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda.page import write_page

Values = dict[str, Any]


class Absent(Exception):  # noqa: N818
    """What the row needs is not here."""


class Disagreement(Exception):  # noqa: N818
    """A number is not what it has to be; `values` are those found."""

    def __init__(self, claim: str, **values: Any) -> None:
        super().__init__(claim)
        self.values = values


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: the device under test, which is the CPU itself in a dry run.
        dry: everything in small.
        smallest: of a dry run, a row or two of each part.
        data: the folder with the packed model and text.
    """

    device: torch.device
    dry: bool = False
    smallest: bool = False
    data: Path | None = None


@dataclass(frozen=True)
class Row:
    """Something to run that returns values, under a name that is unique in its part."""

    name: str
    run: Callable[[], Values]


def run_rows(rows: Iterable[Row], file: Path, part: int, *, until: float) -> None:
    """Run the rows in their order and append a JSON line each; the plan is the first line.

    A row that raises is a line with the error. Rows that would begin after `until` (a time of
    ``time.monotonic``) are left to `not_run`. The page beside the file follows every line.
    """
    rows = list(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"part": part, "plan": [row.name for row in rows]}) + "\n")
    for row in rows:
        if time.monotonic() >= until:
            break
        append(file, {"part": part, "row": row.name, **outcome(row)})
        write_page(file.parent)


def outcome(row: Row) -> Values:
    """Return the status, the seconds and the values of one row; nothing is raised."""
    start = time.perf_counter()
    found: Values
    try:
        found = {"status": "ok", **row.run()}
    except Absent as error:
        found = {"status": "absent", "error": str(error)}
    except Disagreement as error:
        found = {"status": "failed", "error": str(error), **error.values}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        lines = str(error).splitlines() or [""]
        found = {"status": "error", "error": f"{type(error).__name__} ({place}): {lines[0][:300]}"}
    return {**found, "row_seconds": round(time.perf_counter() - start, 3)}


def not_run(file: Path, part: int, reason: str) -> None:
    """Append a line for each planned row that has none, and one for a part without a plan."""
    lines = read(file)
    if not lines:
        append(file, {"part": part, "row": "start", "status": "error", "error": reason})
        return
    done = {line.get("row") for line in lines}
    left = [name for name in lines[0]["plan"] if name not in done]
    for name in left:
        append(file, {"part": part, "row": name, "status": "not run", "error": reason}, say=False)
    if left:
        print(f"  {len(left)} rows not run, from {left[0]!r} on: {reason}", flush=True)


def append(file: Path, line: Mapping[str, Any], *, say: bool = True) -> None:
    """Write one line and let go of it, so that a stop loses only what was running; print what is
    not well.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # A process that was stopped while it wrote has left a line without an end.
    whole = not file.is_file() or file.read_text().endswith("\n")
    with file.open("a") as stream:
        stream.write(("" if whole else "\n") + json.dumps(finite(line)) + "\n")
    if say and line.get("status") != "ok":
        print(f"  {line.get('row')}: {line.get('status')}: {line.get('error', '')}", flush=True)


def finite(line: Mapping[str, Any]) -> Values:
    """Return the line with texts for numbers that JSON cannot say."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }


def read(file: Path) -> list[Values]:
    """Return the lines of a file that are whole; none where there is no file."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # the process was stopped while it wrote
            continue
    return found
