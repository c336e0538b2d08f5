"""``python -m benchmarks.defaults tune --data_dir DIR``: what suits each method of the commands.

``tune`` tries every rate for every method, measured on validation splits. Every cell without a row
in benchmarks/results/defaults/ is run, so the same command goes on after an interruption.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.defaults.grid import TUNED_ON, VARIANTS, cells

RESULTS = Path("benchmarks/results/defaults/results.jsonl")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=__doc__)
    made.add_argument("part", choices=["tune"])
    made.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of the data sets")
    made.add_argument("--model", default="minilm")
    made.add_argument("--tasks", nargs="+", default=TUNED_ON)
    made.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    made.add_argument("--seeds", type=int, nargs="+", default=[100])
    return made


def main() -> None:
    """Run what is asked for."""
    asked = parser().parse_args()
    import torch

    from applications.runs.command import quiet
    from benchmarks.defaults.training import data_flags, trained
    from benchmarks.reweight.rows import append, read

    torch.set_num_threads(1)
    quiet()
    for cell in cells(asked.model, asked.tasks, asked.variants, asked.seeds, "validation"):
        known = asdict(cell)
        if any(all(row[key] == value for key, value in known.items()) for row in read(RESULTS)):
            continue
        row = known | trained(cell, data_flags(cell.task, asked.data_dir), asked.model)
        append(row, RESULTS)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
