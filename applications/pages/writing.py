"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

BEFORE = "before"
DRAFT = re.compile(r"\.(.+)-[a-z0-9_]{8}")
"""What tempfile makes of the prefix in `write_whole`."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file or folder beside ``path`` that then takes its name and place.

    A file takes the place of a file alone, a folder that of a folder. It is on the disk before it
    does. What a process that is killed leaves, `remove_drafts` mends.
    Of several processes of a run, the first one alone writes.
    """
    from applications import processes  # brings torch, which --help goes without

    if not processes.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as place:
        draft = Path(place) / path.name
        write(draft)
        for file in [draft, *draft.rglob("*")] if draft.is_dir() else [draft]:
            synchronise(file)
        if path.exists() and not (path.is_dir() if draft.is_dir() else path.is_file()):
            raise IsADirectoryError(errno.EISDIR, "something of another kind is there", str(path))
        if path.is_dir():
            os.replace(path, Path(place) / BEFORE)
        os.replace(draft, path)
        synchronise(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Write a line at the end of a file, in place of one that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mend(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def mend(path: Path) -> None:
    """Take away a last line without an end."""
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")


def synchronise(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_drafts(folder: Path) -> None:
    """Remove what `write_whole` left in a folder where its process was killed.

    A folder that was just being replaced is put back. What holds anything else than a draft is
    somebody's own, and stays. Call it where nobody else is writing.
    """
    for draft in folder.glob(".*-*"):
        found = DRAFT.fullmatch(draft.name)
        if found is None or not draft.is_dir():
            continue
        name = found[1]
        if not {file.name for file in draft.iterdir()} <= {name, BEFORE}:
            continue
        if (draft / BEFORE).exists() and not (folder / name).exists():
            os.replace(draft / BEFORE, folder / name)
        shutil.rmtree(draft)
