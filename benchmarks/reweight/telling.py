"""How well scores of the sources tell those of wrong labels from the others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from applications.weighting.controls import Comparison, agreements
from applications.weighting.pull import Pulled, pulls, share_pulls, source_pulls
from applications.weighting.route import learn
from benchmarks.reweight import labelling_functions
from benchmarks.reweight.on_features import area, cell
from benchmarks.reweight.pairs import PAIRS

CELLS = {"sst2_cr": (24, 60, 200), "trec_shards": (60,), "trec_weak": (50, 100)}


def scores(given: Comparison) -> dict[str, Tensor | Pulled]:
    """The scores of the sources: the learned weights, the pulls where all weigh alike and under
    those weights, and the share of labels that a model of the target alone predicts.
    """
    sources, target, settings = given.sources, given.target, given.settings
    learned = learn(sources, target, settings)
    rows_ = pulls(sources, target, learned.weights, learned.head, settings)
    return {
        "weights": learned.weights,
        "pull": source_pulls(sources, target, [given.parts], settings),
        "pull_at_the_end": share_pulls(rows_, sources, learned.weights),
        "agreement": agreements(given),
    }


def rows(task: str, folder: Path, *, labels: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row a score: its area; of the pull also how many of the wrong and of the right sources lie
    below zero, with their value and with their whole interval.
    """
    if task in PAIRS:
        given, _, _ = cell(PAIRS[task], folder, labels=labels, seed=seed)
        wrong = torch.tensor(PAIRS[task].rates) > 0
    else:
        given = labelling_functions.drawn(folder, labels=labels, seed=seed).given
        assert given.right is not None
        wrong = given.right < 0.5
    for name, score in scores(given).items():
        row = {"task": task, "labels": labels, "seed": seed, "score": name}
        row["area"] = area(score if isinstance(score, Tensor) else score.value, wrong)
        if isinstance(score, Pulled):
            for what, values in (("value", score.value), ("interval", score.high)):
                below = (values < 0).double()
                row[f"wrong_{what}"] = round(float(below[wrong].mean()), 4)
                row[f"right_{what}"] = round(float(below[~wrong].mean()), 4)
        yield row
