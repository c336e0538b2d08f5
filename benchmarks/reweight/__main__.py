"""``python -m benchmarks.reweight features --data_dir DIR``: learned weights beside every control.

``features`` is the grid on frozen features, ``tune`` tries learning rates of MiniLM with LoRA on
seeds of their own, ``finetune`` is the grid with MiniLM and LoRA at the best of them, ``trec_weak``
weighs labelling functions, ``table`` prints what there is. Every cell without a row in
benchmarks/results/reweight/ is run, so the same command goes on after an interruption.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from applications.runs.command import quiet
from benchmarks.reweight import finetuned, labelling_functions, on_features, tables
from benchmarks.reweight.rows import RESULTS, append, done, read
from benchmarks.reweight.shards import PAIRS

TUNED = RESULTS.with_name("tuning.jsonl")
TUNING_SEEDS, TUNING_LABELS = (100, 101), (60,)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.reweight", description=__doc__)
    parts = ["features", "tune", "finetune", "trec_weak", "table"]
    made.add_argument("part", choices=parts)
    made.add_argument("--data_dir", type=Path, help="folder of sst2, cr, trec, trec_weak")
    made.add_argument("--task", choices=sorted(PAIRS), default="sst2_cr")
    made.add_argument("--labels", type=int, nargs="+", help="default: 24 60 200; 50 100")
    made.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    made.add_argument("--methods", nargs="+", choices=finetuned.METHODS, default=finetuned.METHODS)
    return made


def features(asked: argparse.Namespace) -> None:
    """The grid on frozen features."""
    task = PAIRS[asked.task]
    for methods in (on_features.SHORT, on_features.LONG):
        for seed in asked.seeds:
            for labels in asked.labels or (24, 60, 200):
                of = {"task": task.name, "route": "features", "labels": labels, "seed": seed}
                cell = {"labels": labels, "seed": seed, "done": done(read(), **of)}
                told(on_features.rows(task, asked.data_dir, methods=methods, **cell))


def finetune(asked: argparse.Namespace) -> None:
    """The grid with MiniLM and LoRA."""
    task, tuned = PAIRS[asked.task], read(TUNED)
    for seed in asked.seeds:
        for labels in asked.labels or (24, 60, 200):
            of = {"task": task.name, "route": "minilm_lora", "labels": labels, "seed": seed}
            told(
                finetuned.rows(
                    task,
                    asked.data_dir,
                    labels=labels,
                    seed=seed,
                    done=done(read(), **of),
                    methods=asked.methods,
                    tuned=tuned,
                )
            )


def tune(asked: argparse.Namespace) -> None:
    """Every rate for every method, on the seeds for tuning."""
    task = PAIRS[asked.task]
    for seed in TUNING_SEEDS:
        for labels in asked.labels or TUNING_LABELS:
            for rate in finetuned.RATES:
                of = {"labels": labels, "seed": seed, "learning_rate": rate}
                told(
                    finetuned.rows(
                        task,
                        asked.data_dir,
                        labels=labels,
                        seed=seed,
                        done=done(read(TUNED), **of),
                        methods=asked.methods,
                        rate=rate,
                    ),
                    TUNED,
                )


def trec_weak(asked: argparse.Namespace) -> None:
    """Labelling functions as sources."""
    for seed in asked.seeds:
        for labels in asked.labels or (50, 100):
            of = {"task": "trec_weak", "labels": labels, "seed": seed}
            found = done(read(), **of)
            told(labelling_functions.rows(asked.data_dir, labels=labels, seed=seed, done=found))


def told(rows: Iterable[Any], file: Path = RESULTS) -> None:
    """Append the rows as they come."""
    for row in rows:
        append(row, file)
        print(row, flush=True)


def main() -> None:
    """Run what is asked for."""
    asked = parser().parse_args()
    torch.set_num_threads(1)
    quiet()
    if asked.part == "table":
        print(tables.markdown(read()))
        return
    if asked.data_dir is None:
        raise SystemExit("argument --data_dir: where sst2, cr, trec and trec_weak lie, got None")
    {"features": features, "tune": tune, "finetune": finetune, "trec_weak": trec_weak}[asked.part](
        asked
    )


if __name__ == "__main__":
    main()
