"""``python -m benchmarks.grid [GRID.yaml] --data_dir DIR``: run the slices of a grid file.

Every run without a row in ``--rows`` is run, seeds outermost, in this one process; the same command
goes on after an interruption. ``python -m benchmarks.grid.page`` writes the tables.
"""

import argparse
import time
from pathlib import Path

from applications.errors import UsageError

GRID = Path(__file__).with_name("small_data.yaml")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.grid", description=__doc__)
    made.add_argument("grid", type=Path, nargs="?", default=GRID)
    made.add_argument("--data_dir", type=Path, required=True, help="folder of the tasks' folders")
    made.add_argument("--rows", type=Path, help="default: results.jsonl or tuning.jsonl")
    made.add_argument("--slices", nargs="+", help="default: all, one after the other")
    made.add_argument("--seeds", type=int, nargs="+", help="default: those of the slice")
    made.add_argument("--tasks", nargs="+", help="default: those of the slice")
    made.add_argument("--methods", nargs="+", help="default: those of the slice")
    made.add_argument("--device", default="cpu")
    made.add_argument("--minutes", type=float, help="begin no run after this time")
    made.add_argument("--dry_run", action="store_true", help="list the runs that are left")
    return made


def main() -> None:
    """Run what is asked for."""
    asked = parser().parse_args()
    from benchmarks.grid.rows import RESULTS, append, left, read
    from benchmarks.grid.slices import read_slices

    started = time.monotonic()
    tuning = asked.grid.stem == "tune"
    rows = asked.rows or (RESULTS.with_name("tuning.jsonl") if tuning else RESULTS)
    slices = read_slices(asked.grid)
    unknown = set(asked.slices or ()) - set(slices)
    if unknown:
        raise UsageError(f"argument --slices: must be among {', '.join(slices)}, got {unknown}")
    done, chosen = read(rows), (asked.tasks, asked.methods)
    flags = {"data_dir": str(asked.data_dir), "device": asked.device}
    todo = [
        (part, run)
        for name, part in slices.items()
        if asked.slices is None or name in asked.slices
        for run in left(name, part.runs(flags, asked.seeds, *chosen), done)
    ]
    if asked.dry_run:
        print("\n".join(f"{part.name}: {run.name}" for part, run in todo))
        return
    from benchmarks.grid.running import summary_of  # brings torch

    for number, (part, run) in enumerate(todo, start=1):
        if asked.minutes is not None and time.monotonic() - started > 60 * asked.minutes:
            break
        begun = time.monotonic()
        found = summary_of(part, run)
        append(found, rows)
        print(
            f"[{number}/{len(todo)}] {part.name}: {run.name}: {found['test_metric']:.3f}, loss "
            f"{found['test_loss']:.3f}, {time.monotonic() - begun:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on with this run") from None
