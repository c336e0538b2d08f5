"""How well scores of the sources tell those of wrong labels from the others."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from applications.weighting.controls import Comparison, agreements
from applications.weighting.pull import pulls, share_pulls, source_pulls
from applications.weighting.route import Learned, learn
from benchmarks.reweight import labelling_functions
from benchmarks.reweight.on_features import area, cell
from benchmarks.reweight.pairs import PAIRS

CELLS = {"sst2_cr": (24, 60, 200), "trec_shards": (60,), "trec_weak": (50, 100)}


def weights(given: Comparison, learned: Learned) -> Mapping[str, Tensor]:
    """The learned weights."""
    return {"weights": learned.weights}


def pull(given: Comparison, learned: Learned) -> Mapping[str, Tensor]:
    """The pull on each source where all weigh alike, and the ends of its interval."""
    found = source_pulls(given.sources, given.target, [given.parts], given.settings)
    return {"pull": found.value, "low": found.low, "high": found.high}


def pull_at_the_end(given: Comparison, learned: Learned) -> Mapping[str, Tensor]:
    """The pull on each source under the learned weights."""
    settings = given.settings
    found = pulls(
        given.sources,
        given.target,
        learned.weights,
        learned.head,
        ridge=settings.ridge,
        method=settings.method,
    )
    return {"pull_at_the_end": share_pulls(found, given.sources, learned.weights)}


def agreement(given: Comparison, learned: Learned) -> Mapping[str, Tensor]:
    """The share of each source's labels that a model of the target alone predicts."""
    return {"agreement": agreements(given)}


SCORES: Mapping[str, Callable[[Comparison, Learned], Mapping[str, Tensor]]] = {
    each.__name__: each for each in (weights, pull, pull_at_the_end, agreement)
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
    learned = learn(given.sources, given.target, given.settings)
    for name, score in SCORES.items():
        found = score(given, learned)
        row = {"task": task, "labels": labels, "seed": seed, "score": name}
        row["area"] = area(found[name], wrong)
        if name == "pull":
            for what, values in (("value", found["pull"]), ("interval", found["high"])):
                below = (values < 0).double()
                row[f"wrong_{what}"] = round(float(below[wrong].mean()), 4)
                row[f"right_{what}"] = round(float(below[~wrong].mean()), 4)
        yield row
