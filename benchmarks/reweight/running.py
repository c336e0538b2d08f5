"""Runs one after the other: a row as each ends, a line of progress, an end after some minutes."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.reweight.plan import Run, expected_seconds, missing
from benchmarks.reweight.rows import append, read

Row = Mapping[str, Any]


def run_all(
    runs: Iterable[Run],
    file: Path,
    train: Callable[[Run], Row],
    *,
    known: Sequence[Row] = (),
    minutes: float | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Train every run without a row in ``file``, appending its row as it ends.

    Args:
        runs: all of them, in their order.
        file: of the rows.
        train: from a run to its row.
        known: further rows to estimate the time from.
        minutes: no run is begun that would end later than this; None for no limit.
        say: takes what has been done, a line a run.
    """
    planned, started = list(runs), time.perf_counter()
    left = missing(planned, read(file))
    needed = in_minutes(expected_seconds(left, [*known, *read(file)]))
    say(f"{len(left)} of {len(planned)} runs are left; CPU time: {needed}")
    for number, run in enumerate(left):
        rows = [*known, *read(file)]
        needed = expected_seconds([run], rows) or 0.0
        gone = time.perf_counter() - started
        if minutes is not None and gone + needed > 60 * minutes:
            say(f"stopped before the limit of {minutes:g} minutes; the same command goes on")
            return
        row = train(run)
        append(row, file)
        rest = expected_seconds(left[number + 1 :], [*rows, row])
        say(f"{number + 1}/{len(left)} {told(row)}; left: {in_minutes(rest)}")


def in_minutes(seconds: float | None) -> str:
    """Seconds as minutes, where they are known."""
    return "unknown" if seconds is None else f"about {seconds / 60:.0f} min"


def told(row: Row) -> str:
    """A row as a line: what it is of, its metric, its time."""
    of = [str(row["task"]), f"{row['labels']} labels", f"seed {row['seed']}", str(row["method"])]
    of += [f"rate {row['learning_rate']:g}"] if "learning_rate" in row else []
    metric = row["test_metric"] if "test_metric" in row else row["test_loss"]
    return f"{', '.join(of)}: {metric:.4f} in {row['cpu_seconds']:.0f} s"
