"""``python -m benchmarks.defaults tune --data_dir DIR``: what suits each method of the commands.

``tune`` tries every rate for every method on validation splits; ``check`` runs the methods
with no flag on sets that nobody tuned on, and with rates beside the default; ``epsilon`` trains
learned weight decay at two epsilons of the upper level; ``table`` writes the tables of
docs/defaults.md. Every cell without a row in benchmarks/results/defaults/ is run, so the
same command goes on after an interruption.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from applications.options.command_line import words
from benchmarks.defaults.grid import CHECKED_ON, TUNED_ON, VARIANTS, Cell, checking, tuning

RESULTS = Path("benchmarks/results/defaults/results.jsonl")
EPSILONS = RESULTS.with_name("epsilons.jsonl")
PAGE = Path("docs/defaults.md")
PARTS = {"tune": (tuning, TUNED_ON, [100]), "check": (checking, CHECKED_ON, [0])}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.defaults", description=__doc__)
    made.add_argument("part", choices=[*PARTS, "epsilon", "table"])
    made.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of the data sets")
    made.add_argument("--model", default="minilm", help="minilm, smollm2, or a folder")
    made.add_argument("--tasks", nargs="+", help="default: those of the part")
    made.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    made.add_argument("--seeds", type=int, nargs="+", help="default: 100; 0 for check")
    return made


def main() -> None:
    """Run what is asked for."""
    asked = parser().parse_args()
    if asked.part == "table":
        from benchmarks.defaults.tables import write

        write(RESULTS, EPSILONS, PAGE)
        return
    import torch

    from applications.runs.command import quiet
    from benchmarks.defaults.training import data_flags, trained
    from benchmarks.reweight.rows import append, read

    torch.set_num_threads(1)
    quiet()
    for known, cell, more in planned(asked):
        file = EPSILONS if asked.part == "epsilon" else RESULTS
        if any(all(row[key] == value for key, value in known.items()) for row in read(file)):
            continue
        row = known | trained(cell, data_flags(cell.task, asked.data_dir), asked.model, more)
        append(row, file)
        print(json.dumps(row), flush=True)


def planned(asked: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Cell, list[str]]]:
    """What a row is of, the cell, and further flags."""
    if asked.part == "epsilon":
        cell = Cell(asked.model, "trec", "lora_weight_decay", 2e-3, 1e-2, 100, "validation")
        for epsilon in (1e-8, 1e-15):
            more = {"upper_adam_epsilon": epsilon, "max_steps": 40, "lower_steps": 1}
            yield asdict(cell) | more, cell, words(more)
        return
    cells, tasks, seeds = PARTS[asked.part]
    for cell in cells(asked.model, asked.tasks or tasks, asked.variants, asked.seeds or seeds):
        yield asdict(cell), cell, []


if __name__ == "__main__":
    main()
