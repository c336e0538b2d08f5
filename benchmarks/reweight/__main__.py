"""``python -m benchmarks.reweight features``: learned weights beside every control.

Every cell that has no row yet in benchmarks/results/reweight/results.jsonl is run, so the same
command goes on after an interruption. ``--data_dir`` holds sst2, cr and trec.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.reweight import on_features
from benchmarks.reweight.rows import append, done, read
from benchmarks.reweight.shards import PAIRS


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reweight", description=__doc__)
    parser.add_argument("part", choices=["features"])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--task", choices=sorted(PAIRS), default="sst2_cr")
    parser.add_argument("--labels", type=int, nargs="+", default=[24, 60, 200])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--out", type=Path, default=None, help="another file of rows")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    file = {} if asked.out is None else {"file": asked.out}
    for seed in asked.seeds:
        for labels in asked.labels:
            task = PAIRS[asked.task]
            of = {"task": task.name, "route": "features", "labels": labels, "seed": seed}
            found = done(read(**file), **of)
            for row in on_features.rows(task, asked.data_dir, labels=labels, seed=seed, done=found):
                append(row, **file)
                print(row, flush=True)


if __name__ == "__main__":
    main()
