"""One cell of the grid on frozen features: a task, a number of trusted labels, a seed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from applications.weighting.controls import CONTROLS, Comparison, Outcome, weighted
from applications.weighting.features import Projection, answers
from applications.weighting.folds import folds
from applications.weighting.heads import Examples, accuracy
from applications.weighting.route import learn
from applications.weighting.search import Search, Sources
from benchmarks.reweight.embeddings import features
from benchmarks.reweight.pairs import Shards
from benchmarks.reweight.plan import LEARNED
from benchmarks.reweight.shards import Drawn, draw, labelled

NUM_FOLDS = 5
AXES = 128
LONG = ("greedy", "random_search")
SHORT = (LEARNED, *(name for name in CONTROLS if name not in LONG))


def cell(
    task: Shards, folder: Path, *, labels: int, seed: int
) -> tuple[Comparison, Examples, Drawn]:
    """What every method is given, the test examples, and what was drawn."""
    texts, classes, num_train = labelled(task.sources, folder, tested=task.sources == task.target)
    others, known, _ = labelled(task.target, folder, tested=True)
    drawn = draw(task, classes, known, num_train=num_train, labels=labels, seed=seed)
    below, above = features(task.sources, texts), features(task.target, others)
    projection = Projection.of(torch.cat([below[drawn.sources], above[drawn.target]]), kept=AXES)
    number = max(classes) + 1
    sources = Sources(
        Examples(projection(below[drawn.sources]), answers(drawn.said.tolist(), number)),
        torch.nn.functional.one_hot(drawn.shard, len(task.rates)).double(),
    )
    target, test = (
        Examples(projection(above[at]), answers(what.tolist(), number))
        for at, what in ((drawn.target, drawn.target_labels), (drawn.test, drawn.test_labels))
    )
    parts = folds(target, NUM_FOLDS, seed=0)
    right = 1 - torch.tensor(task.rates, dtype=torch.float64)
    given = Comparison(sources, target, parts, Search(), seed=seed, right=right)
    return given, test, drawn


def rows(
    task: Shards,
    folder: Path,
    *,
    labels: int,
    seed: int,
    done: set[str],
    methods: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """A row for each of the methods that is not done."""
    if done.issuperset(methods):
        return
    given, test, _ = cell(task, folder, labels=labels, seed=seed)
    rates = torch.tensor(task.rates)
    fits = (NUM_FOLDS + 1) * (given.settings.max_steps + 1)
    for method in methods:
        if method in done:
            continue
        started = time.process_time()
        run = learned if method == LEARNED else CONTROLS[method]
        outcome = run(replace(given, fits=fits))
        yield {
            "task": task.name,
            "route": "features",
            "labels": labels,
            "seed": seed,
            "method": method,
            "test_metric": accuracy(outcome.head, test),
            "cpu_seconds": round(time.process_time() - started, 2),
            **about(outcome.weights, rates),
        }


def learned(given: Comparison) -> Outcome:
    """The weights of the features route, finished on the target."""
    return weighted(given, learn(given.sources, given.target, given.settings).weights)


def about(weights: Tensor | None, rates: Tensor) -> dict[str, Any]:
    """The mean weight of the sources of each rate of wrong labels, and how well weights tell those
    with any from those without: the probability that one without has the larger weight.
    """
    if weights is None:
        return {}
    means = {
        str(round(float(r), 3)): round(float(weights[rates == r].mean()), 3) for r in rates.unique()
    }
    return {"weights": means, "auc": area(weights, rates > 0)}


def area(scores: Tensor, wrong: Tensor) -> float:
    """The probability that a source of right labels has a larger score than one of wrong labels,
    the area under the ROC curve; a tie counts a half.
    """
    right, others = scores[~wrong], scores[wrong]
    larger = (right[:, None] > others).double() + 0.5 * (right[:, None] == others).double()
    return round(float(larger.mean()), 4)
