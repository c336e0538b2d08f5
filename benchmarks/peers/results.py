"""The file of what was measured: a JSON line for each library, method, problem and setting."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]
GROUP = ("kind", "problem", "setting", "method")


def read(path: Path) -> list[Line]:
    """Return the lines of a file; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def group(line: Line) -> tuple[object, ...]:
    """Return what lines have in common that were measured in turns."""
    return tuple(line.get(field) for field in GROUP)


class Results:
    """Lines in a file, which is written anew after every change.

    What was measured in turns is put together, and takes the place of the lines of the same
    libraries, method, problem and setting; other libraries' lines stay, without their ratios to the
    libraries that were measured again, since those were of other blocks.

    Args:
        path: of the file.
        anew: whether it begins empty.
    """

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        self.path = path
        self.lines = [] if anew else read(path)
        path.parent.mkdir(parents=True, exist_ok=True)

    def put(self, found: Sequence[Line]) -> None:
        """Write the lines of one group, in the place where the group stood, or at the end."""
        mine = group(found[0])
        names = {line["library"] for line in found}
        ratios = {ratio_to(name) for name in names}
        old = [line for line in self.lines if group(line) == mine]
        kept = [
            {k: v for k, v in line.items() if k not in ratios}
            for line in old
            if line["library"] not in names
        ]
        place = next((i for i, x in enumerate(self.lines) if group(x) == mine), len(self.lines))
        self.lines = [line for line in self.lines if group(line) != mine]
        self.lines[place:place] = [*found, *kept]
        self.write()

    def write(self) -> None:
        """Write the file: as a whole, or not at all."""
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text("".join(json.dumps(x) + "\n" for x in self.lines), encoding="utf-8")
        os.replace(part, self.path)

    def has(self, found: Sequence[Line]) -> bool:
        """Return whether every one of these lines is there, measured with the code of now."""
        known = {(group(x), x["library"], x.get("commit")) for x in self.lines}
        return all((group(x), x["library"], x["commit"]) in known for x in found)


def ratio_to(library: str) -> str:
    """Return the field for the ratio of a time to that of a library."""
    return f"to_{library.lower().replace(' ', '_').replace('.', '_')}"
