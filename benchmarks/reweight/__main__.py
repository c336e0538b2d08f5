"""``python -m benchmarks.reweight features --data_dir DIR``: learned weights beside every control.

``features`` is the grid on frozen features, ``tune`` tries learning rates of MiniLM with LoRA on
seeds of their own, ``finetune`` is the grid with MiniLM and LoRA at the best of them, ``trec_weak``
weighs labelling functions, ``telling`` asks which scores tell sources of wrong labels,
``generation`` weighs sources of texts that SmolLM2 is to write, ``costs`` counts what weighing
takes, ``table`` prints what there is and writes docs/reweight.md's tables.
Every cell without a row in benchmarks/results/reweight/ is run, so the same command goes on after
an interruption.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reweight.pairs import PAIRS
from benchmarks.reweight.plan import (
    LABELS,
    METHODS,
    SEEDS,
    TUNING_LABELS,
    TUNING_SEEDS,
    WRITERS,
    Run,
    best_rates,
    finetuning,
    tuning,
    writing,
)
from benchmarks.reweight.rows import RESULTS, append, done, has, read

Row = Mapping[str, Any]
TUNED = RESULTS.with_name("tuning.jsonl")
WRITTEN = RESULTS.with_name("generation.jsonl")
COSTS = RESULTS.with_name("costs.jsonl")
TOLD = RESULTS.with_name("telling.jsonl")
COUNTED = 10
"""Updates that are counted to know what a training takes."""
PAGE = Path("docs/reweight.md")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.reweight", description=__doc__)
    made.add_argument("part", choices=[*PARTS, "table"])
    made.add_argument("--data_dir", type=Path, help="folder of sst2, cr, trec, trec_weak, e2e")
    made.add_argument("--task", choices=sorted(PAIRS), default="sst2_cr")
    made.add_argument("--labels", type=int, nargs="+", help="default: those of the part")
    made.add_argument("--seeds", type=int, nargs="+", help="default: those of the part")
    made.add_argument("--methods", nargs="+", choices=sorted({*METHODS, *WRITERS}))
    made.add_argument("--minutes", type=float, help="of tune, finetune, generation: when to stop")
    return made


def features(asked: argparse.Namespace) -> None:
    """The grid on frozen features."""
    from benchmarks.reweight import on_features

    task = PAIRS[asked.task]
    for methods in (on_features.SHORT, on_features.LONG):
        for seed in asked.seeds or SEEDS:
            for labels in asked.labels or sorted(LABELS):
                of = {"task": task.name, "route": "features", "labels": labels, "seed": seed}
                cell = {"labels": labels, "seed": seed, "done": done(read(), **of)}
                for row in on_features.rows(task, asked.data_dir, methods=methods, **cell):
                    append(row)
                    print(row, flush=True)


def finetune(asked: argparse.Namespace) -> None:
    """The grid with MiniLM and LoRA."""
    from benchmarks.reweight.finetuned import row

    methods, tuned = asked.methods or METHODS, read(TUNED)
    rates = best_rates(tuned, asked.task, methods)
    labels, seeds = asked.labels or LABELS, asked.seeds or SEEDS
    run_missing(asked, finetuning(asked.task, labels, seeds, methods, rates), RESULTS, row, tuned)


def tune(asked: argparse.Namespace) -> None:
    """Every rate for every method, on the seeds for tuning."""
    from benchmarks.reweight.finetuned import row

    labels, seeds = asked.labels or TUNING_LABELS, asked.seeds or TUNING_SEEDS
    runs = tuning(asked.task, labels, seeds, asked.methods or METHODS)
    run_missing(asked, runs, TUNED, row, read())


def generation(asked: argparse.Namespace) -> None:
    """Texts to be written."""
    from benchmarks.reweight.generation import row

    runs = writing(asked.labels or TUNING_LABELS, asked.seeds or (0,), asked.methods or WRITERS)
    run_missing(asked, runs, WRITTEN, row)


def run_missing(
    asked: argparse.Namespace,
    runs: Iterable[Run],
    file: Path,
    train: Callable[[Run, Path], Row],
    known: Sequence[Row] = (),
) -> None:
    """The runs that have no row in the file."""
    from benchmarks.reweight.running import run_all

    say = partial(print, flush=True)

    def train_one(run: Run) -> Row:
        return train(run, asked.data_dir)

    run_all(runs, file, train_one, known=known, minutes=asked.minutes, say=say)


def trec_weak(asked: argparse.Namespace) -> None:
    """Labelling functions as sources."""
    from benchmarks.reweight import labelling_functions

    for seed in asked.seeds or SEEDS:
        for labels in asked.labels or (50, 100):
            of = {"task": "trec_weak", "labels": labels, "seed": seed}
            cell = {"labels": labels, "seed": seed, "done": done(read(), **of)}
            for row in labelling_functions.rows(asked.data_dir, **cell):
                append(row)
                print(row, flush=True)


def telling(asked: argparse.Namespace) -> None:
    """Which scores tell sources of wrong labels from the others."""
    from benchmarks.reweight.telling import CELLS, rows

    for seed in asked.seeds or SEEDS:
        for task, numbers in CELLS.items():
            for labels in numbers:
                cell = {"task": task, "labels": labels, "seed": seed}
                if not has(read(TOLD), cell):
                    for row in list(rows(task, asked.data_dir, labels=labels, seed=seed)):
                        append(row, TOLD)
                        print(row, flush=True)


def costs(asked: argparse.Namespace) -> None:
    """What weighing costs beside one plain training; the rows of before are replaced."""
    from benchmarks.reweight.costs import measured

    (seed,) = asked.seeds or (0,)
    rows = measured(asked.data_dir, steps=COUNTED, seed=seed)
    COSTS.unlink(missing_ok=True)
    for row in rows:
        append(row, COSTS)
        print(row, flush=True)


def write_tables() -> None:
    """Print the rows as tables, and write those of the page."""
    from benchmarks.reweight import page, tables

    print(tables.markdown(read()))
    parts = {
        "features": page.on_features(read(), page.ON_FEATURES),
        "telling": page.told(read(TOLD)),
        "functions": page.on_features(read(), page.WEAK),
        "minilm_lora": page.finetuned(read(), read(TUNED)),
        "generation": page.generated(read(WRITTEN)),
        "costs": page.costs(read(COSTS)),
    }
    page.write(PAGE, parts)


PARTS = {
    each.__name__: each
    for each in (features, tune, finetune, trec_weak, telling, generation, costs)
}


def main() -> None:
    """Run what is asked for."""
    asked = parser().parse_args()
    if asked.part == "table":
        write_tables()
        return
    if asked.data_dir is None:
        raise SystemExit(
            "argument --data_dir: where sst2, cr, trec, trec_weak and e2e lie, got None"
        )
    import torch

    from applications.runs.command import quiet

    torch.set_num_threads(1)
    quiet()
    PARTS[asked.part](asked)


if __name__ == "__main__":
    main()
