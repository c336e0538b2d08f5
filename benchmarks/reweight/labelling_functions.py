"""trec_weak: 68 labelling functions as sources, true labels as target."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from applications.weighting.controls import CONTROLS, Comparison, Outcome
from applications.weighting.features import Projection, answers
from applications.weighting.folds import folds
from applications.weighting.heads import Examples, accuracy, fit
from applications.weighting.search import Search, Sources
from applications.weighting.votes import dawid_skene, majority
from applications.weighting.weights import membership
from benchmarks.reweight.embeddings import features
from benchmarks.reweight.on_features import AXES, NUM_FOLDS, learned
from benchmarks.reweight.plan import LEARNED

CLASSES, FUNCTIONS = 6, 68
# Greedy search would fit 68 heads of six classes in its first round alone.
LEFT_OUT = ("greedy",)


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    """The lines of a split."""
    text = (folder / "trec_weak" / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@dataclass(frozen=True)
class Weak:
    """What every method is given, the votes on each text, the texts under their majority, and the
    test examples.
    """

    given: Comparison
    votes: list[list[tuple[int, int]]]
    texts: Examples
    test: Examples


def drawn(folder: Path, *, labels: int, seed: int) -> Weak:
    """The cell of a seed: true labels of some texts, and votes on the others."""
    train, valid = read(folder, "train"), read(folder, "valid")
    known = features("trec_weak_train", [row["text"] for row in train])
    tested = features("trec_weak_valid", [row["text"] for row in valid])
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train), generator=generator)[:labels]
    trusted = set(chosen.tolist())
    rest = [n for n in range(len(train)) if n not in trusted and train[n]["votes"]]
    votes = [[(function, vote) for function, vote in train[n]["votes"]] for n in rest]
    projection = Projection.of(known, kept=AXES)
    owner = torch.tensor([n for n, given in zip(rest, votes, strict=True) for _ in given])
    flat = [pair for given in votes for pair in given]
    sources = Sources(
        Examples(projection(known[owner]), answers([vote for _, vote in flat], CLASSES)),
        membership([[function] for function, _ in flat], FUNCTIONS),
    )
    truth = [row["label"] for row in train]
    target = Examples(projection(known[chosen]), answers([truth[n] for n in chosen], CLASSES))
    test = Examples(projection(tested), answers([row["label"] for row in valid], CLASSES))
    correct = torch.tensor([vote == truth[n] for (_, vote), n in zip(flat, owner, strict=True)])
    right = sources.members.T @ correct.double() / sources.sizes
    settings = Search()
    given = Comparison(
        sources,
        target,
        folds(target, NUM_FOLDS, seed=0),
        settings,
        seed=seed,
        fits=(NUM_FOLDS + 1) * (settings.max_steps + 1),
        right=right,
    )
    texts = Examples(projection(known[torch.tensor(rest)]), majority(votes, CLASSES))
    return Weak(given, votes, texts, test)


def rows(folder: Path, *, labels: int, seed: int, done: set[str]) -> Iterator[dict[str, Any]]:
    """A row a method that is not done."""
    weak = drawn(folder, labels=labels, seed=seed)
    given, votes, texts, right = weak.given, weak.votes, weak.texts, weak.given.right
    assert right is not None
    methods: Mapping[str, Callable[[Comparison], Outcome]] = {
        LEARNED: learned,
        "majority_vote": partial(soft, texts=texts),
        "dawid_skene": lambda given: soft(
            given, Examples(texts.features, dawid_skene(votes, CLASSES, FUNCTIONS))
        ),
        **{name: run for name, run in CONTROLS.items() if name not in LEFT_OUT},
    }
    for method, run in methods.items():
        if method in done:
            continue
        started = time.process_time()
        outcome = run(given)
        seconds = time.process_time() - started
        found = (
            {} if outcome.weights is None else {"correlation": correlation(outcome.weights, right)}
        )
        yield {
            "task": "trec_weak",
            "route": "features",
            "labels": labels,
            "seed": seed,
            "method": method,
            "test_metric": accuracy(outcome.head, weak.test),
            "cpu_seconds": round(seconds, 2),
            **found,
        }


def soft(given: Comparison, texts: Examples) -> Outcome:
    """A head on one soft label a text, finished on the target."""
    return Outcome(given.finish(fit(texts, texts.ones, ridge=given.settings.ridge)))


def correlation(weights: Tensor, right: Tensor) -> float | None:
    """Between the weights of functions and the share of their votes that are right."""
    if float(weights.std()) == 0:
        return None
    return round(float(torch.corrcoef(torch.stack([weights, right]))[0, 1]), 3)
