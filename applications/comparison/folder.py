"""The folder of a grid, and those of its runs: what is there, whose it is, what may be written.

In ``OUT/runs/TASK/SIZE/VARIANT/seedN`` stand, beside what the application writes: ``run.json`` (the
run's place in the grid and its options, written before it starts), ``lock`` (held, by flock, while
some process works on the run; its number is inside), ``log.txt`` (what the application printed) and
``failure.json`` (how the last attempt failed).
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from applications.comparison.grid import Run
from applications.comparison.settings import PRESET
from applications.errors import UsageError
from applications.options.arguments import FREE_ON_RESUME
from applications.pages.locking import held
from applications.pages.writing import remove_drafts, write_json
from applications.runs.naming import MARK, NEXT

RESULTS = ("checkpoints", "adapter", "adapter_training", "model", "lora", "selected", NEXT)
WHOLE_SUMMARY = ("method", "seed", "test_metric", "test_loss", "num_gradients")


@dataclass(frozen=True)
class RunPlace:
    """The folder of one run of a grid."""

    path: Path

    def record(self) -> dict[str, Any] | None:
        """What run.json says; None where it is missing or cut off."""
        return read_mapping(self.path / "run.json")

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None where it is missing or cut off."""
        found = read_mapping(self.path / "summary.json")
        whole = found is not None and all(name in found for name in WHOLE_SUMMARY)
        return found if whole else None

    def failure(self) -> dict[str, Any] | None:
        """How the last attempt failed, None where it did not."""
        return read_mapping(self.path / "failure.json")

    def changes(self, run: Run) -> list[str]:
        """The options in which the folder's run differs from the wanted one, with both values, and
        whether its data do.

        Options that change no number (where and how often to save, the device) are free. An option
        that the folder's record does not have yet counts as today's default.
        """
        record = self.record()
        if record is None:
            return ["no run.json says which run they belong to"] if self.holds_results() else []
        then: Mapping[str, Any] = record["resolved"]
        changed = [
            f"{name}={then.get(name)!r}, now {run.resolved.get(name)!r}"
            for name in sorted({*then, *run.resolved})
            if name not in FREE_ON_RESUME
            and (name in then or name in run.options)
            and then.get(name) != run.resolved.get(name)
        ]
        if record["command"] != run.command:
            changed.append(f"command={record['command']!r}, now {run.command!r}")
        if None not in (run.data, record.get("data")) and record["data"] != run.data:
            changed.append("the files of the data were others")
        return changed

    def holds_results(self) -> bool:
        """Whether a run has left something here."""
        return any((self.path / name).exists() for name in ("summary.json", *RESULTS))

    def finished(self, run: Run) -> bool:
        """Whether the wanted run has been finished here."""
        return self.summary() is not None and self.record() is not None and not self.changes(run)

    def prepare(self, run: Run) -> Path:
        """Write what the run is started from; returns its configuration file.

        Call it with the lock held: what an attempt cut off in a write left behind is removed.
        """
        remove_drafts(self.path)
        (self.path / "failure.json").unlink(missing_ok=True)
        write_json(self.path / "run.json", record(run))
        config = self.path / "config.json"
        options = {name: value for name, value in run.options.items() if name != PRESET}
        write_json(config, {**options, "output_dir": str(self.path)})
        return config

    def clear(self) -> None:
        """Remove an earlier run. The summary goes first: a folder half cleared is not finished."""
        for name in ("summary.json", "failure.json", "metrics.jsonl", "report.html", "log.txt"):
            (self.path / name).unlink(missing_ok=True)
        for name in RESULTS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("config.json", MARK, "run.json"):
            (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[int | None]:
        """The descriptor of the held lock, None where another process holds it.

        The operating system releases it when every process that inherited the descriptor has
        ended, however that came about. The run's own process inherits it: a run whose starter was
        killed stays locked for as long as it goes on.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path / "lock", wait=False) as descriptor:
            yield descriptor


def record(run: Run) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "variant": run.variant,
        "task_label": run.task,
        "train_size_label": run.size_label,
        "seed": run.seed,
        "command": run.command,
        "options": dict(run.options),
        "resolved": dict(run.resolved),
        "data": run.data,
    }


def read_mapping(path: Path) -> dict[str, Any] | None:
    """The JSON mapping in a file; None where it is missing, cut off or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def place_of(out: Path, run: Run) -> RunPlace:
    """The folder of a run."""
    return RunPlace(out / "runs" / run.name)


def run_places(out: Path) -> list[RunPlace]:
    """The folders of all runs below ``out``, in the order of their names."""
    return [RunPlace(path.parent) for path in sorted((out / "runs").glob("*/*/*/*/run.json"))]


def refuse_changed(out: Path, runs: list[Run]) -> None:
    """Raise a UsageError if a folder holds the results of a run with other options or data."""
    changed = [(run, found) for run in runs if (found := place_of(out, run).changes(run))]
    if changed:
        run, differences = changed[0]
        raise UsageError(
            f"{place_of(out, run).path} holds results of other options or data "
            f"({'; '.join(differences[:3])}), and so do {len(changed) - 1} more folders: choose "
            f"another --out, or --overwrite to remove them"
        )
