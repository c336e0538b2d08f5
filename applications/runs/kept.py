"""What an earlier run of the same options has left: its summary, or where to go on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from applications.options.arguments import FREE_ON_RESUME, Options
from applications.runs.mark import read_mark

Summary = dict[str, Any]


def once(options: Options, run: Callable[[Options], Summary]) -> Summary:
    """The summary of a run, which is trained where it is not finished yet.

    A finished run of the same options is left alone, an interrupted one goes on from its last
    checkpoint, and one of other options is replaced.

    Args:
        options: completed ones.
        run: trains with the options that it is given.
    """
    place = Path(str(options.run.output_dir))
    mark = read_mark(place)
    same = mark is not None and same_options(options, place / "config.json")
    if mark is not None and mark.finished is not None and same:
        found: Summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
        return found
    return run(replace(options, run=replace(options.run, resume=same)))


def same_options(options: Options, file: Path) -> bool:
    """Whether a file holds the same options, but for those that change no number."""
    if not file.is_file():
        return False
    then = json.loads(file.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(options.as_dict()))
    return all(now[name] == then.get(name) for name in now if name not in FREE_ON_RESUME)
