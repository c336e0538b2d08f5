"""The rows of results.jsonl: appended as runs end, found again by what they are of."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from applications.comparison.grid import Run
from applications.errors import UsageError
from applications.pages.writing import append_line

Row = Mapping[str, Any]
RESULTS = Path("benchmarks/results/grid/results.jsonl")
UNSAID = ("data_dir", "disable_tqdm", "seed", "split_seed", "max_train_samples", "device")
"""Options that are in no row: they change no number, or have a place of their own there."""
KEPT = (
    *("metric_name", "test_metric", "test_loss", "ece", "brier"),
    *("temperature", "calibrated_loss", "calibrated_ece", "calibrated_brier"),
    *("train_metric", "train_loss", "validation_metric"),
    *("upper_params", "num_lower_steps", "num_upper_steps", "num_gradients", "num_hvps"),
    *("wall_seconds", "device"),
)
Key = tuple[str, str, str, int]


def settings(run: Run) -> dict[str, Any]:
    """The options that the grid gives a run."""
    return {name: value for name, value in sorted(run.options.items()) if name not in UNSAID}


def row(part: str, run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run's summary; ``search`` are the test numbers before the retraining."""
    phases = summary["phases"]
    searched = phases[0]["metrics"].get("test") if len(phases) > 1 else None
    name, held_out = summary["metric_name"], summary["metrics"].get("validation")
    return {
        "slice": part,
        "task": run.task,
        "train_size": summary["train_size"],
        "seed": run.seed,
        "method": run.variant,
        **{key: summary[key] for key in KEPT},
        "validation_loss": None if held_out is None else held_out["loss"],
        "search": None if not searched else {"test_metric": searched[name], **searched},
        "settings": settings(run),
        "versions": summary["versions"],
    }


def key(found: Row) -> Key:
    """What a row is of."""
    return found["slice"], found["task"], found["method"], found["seed"]


def read(file: Path) -> list[dict[str, Any]]:
    """All rows; a last line that was cut off is left out."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def append(found: Row, file: Path) -> None:
    """One row at the end of the file, on a line of its own."""
    append_line(file, json.dumps(found, allow_nan=False))


def left(part: str, runs: Sequence[Run], rows: Sequence[Row]) -> list[Run]:
    """The runs without a row.

    Raises:
        UsageError: a row of the same run was found with other settings.
    """
    done = {key(found): found["settings"] for found in rows}
    result = []
    for run in runs:
        then = done.get((part, run.task, run.variant, run.seed))
        if then is None:
            result.append(run)
        elif then != settings(run):
            raise UsageError(
                f"slice {part!r}, run {run.name}: its row was found with the settings {then}, now "
                f"they are {settings(run)}; give another --rows, or remove the row"
            )
    return result
