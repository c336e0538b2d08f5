"""Files and folders that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file or folder beside ``path`` that then takes its name and place.

    Of several processes of a run, the first one alone writes.
    """
    from applications import processes  # brings torch, which --help goes without

    if not processes.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as place:
        draft = Path(place) / path.name
        write(draft)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(draft, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))
