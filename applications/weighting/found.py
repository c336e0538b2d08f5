"""The route over frozen features, from what is gathered to weights, signs and controls."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import set_seed

from applications.data.splits import Splits
from applications.families.family import Family
from applications.options.arguments import Options
from applications.options.weighting import HELPFUL, WeightingOptions
from applications.weighting.comparing import compared, named, rows
from applications.weighting.controls import Comparison, agreements
from applications.weighting.embedding import Reader, embedded
from applications.weighting.explanation import explained
from applications.weighting.finetuning import check_readable
from applications.weighting.folds import folds
from applications.weighting.gathering import Gathered, listed
from applications.weighting.pull import Sign, pulls, signs, source_pulls
from applications.weighting.report import Explained
from applications.weighting.route import kept, learn
from applications.weighting.search import Search

Say = Callable[[str], None]
LR = 0.5


@dataclass
class Found:
    """What a route has found.

    Attributes:
        weights: by source.
        low: the lower ends of their intervals, where there are any.
        high: the upper ends.
        about: what weights.json says beside them.
        signs: what else tells a bad source, on frozen features.
        controls: a row a method.
        explained: the examples that pull.
        steps: the cross-validated loss by upper step, and the number chosen.
    """

    weights: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    about: dict[str, Any]
    signs: Mapping[str, Sign] = field(default_factory=dict)
    controls: list[dict[str, Any]] = field(default_factory=list)
    explained: Explained = field(default_factory=dict)
    steps: tuple[Sequence[float], int] | None = None


def by_features(
    options: Options,
    weighting: WeightingOptions,
    family: Family,
    gathered: Gathered,
    splits: Splits,
    say: Say,
) -> tuple[Found, float]:
    """The route over frozen features, its controls, and its head's test metric."""
    set_seed(options.run.seed)
    model, tokenizer = family.load_base(options.model, gathered.task)
    check_readable(options, family, gathered, splits, model, tokenizer)
    started = time.perf_counter()
    read = Reader(family, model, tokenizer, options, gathered.task.num_labels)
    data = embedded(read, gathered, splits, weighting)
    seconds = time.perf_counter() - started
    settings = Search(
        form="softmax" if weighting.form == HELPFUL else weighting.form,  # type: ignore[arg-type]
        floor=weighting.floor,
        ridge=weighting.ridge,
        lr=weighting.weight_learning_rate or LR,
        max_steps=weighting.max_weight_steps,
    )
    count = len(data.sources.examples)
    say(f"features: {count} examples of {len(gathered.names)} sources in {seconds:.1f} s")
    divisions = [
        folds(data.target, weighting.weight_folds, seed=options.run.seed + offset)
        for offset in range(weighting.weight_seeds)
    ]
    pulled = source_pulls(data.sources, data.target, divisions, settings)
    if weighting.form == HELPFUL:
        learned = kept(data.sources, pulled, settings)
    else:
        learned = learn(
            data.sources,
            data.target,
            settings,
            num_folds=weighting.weight_folds,
            num_seeds=weighting.weight_seeds,
            seed=options.run.seed,
        )
    most = " (the most that were tried)" if learned.steps == len(learned.curve) - 1 else ""
    how = f"{learned.steps} upper steps{most}" if len(learned.curve) else "by their pull"
    say(f"weights: {how}, {learned.fits} fits in {learned.seconds:.1f} s")
    given = Comparison(
        data.sources,
        data.target,
        divisions[0],
        settings,
        seed=options.run.seed,
        fits=weighting.most_fits,
        right=data.right,
    )
    names = gathered.names
    told = signs(names, pulled, agreements(given))
    harmful = listed([name for name, sign in told.items() if sign.harms]) or "no source for certain"
    say(f"pull: more of these would raise the loss on the target: {harmful}")
    table = rows(compared(given, learned, weighting.controls or ()), data.test)
    shown: Explained = {}
    if weighting.explain:
        pull = pulls(data.sources, data.target, learned.weights, learned.head, settings)
        shown = explained(pull, data.places, gathered, number=weighting.num_explained)
    about = {
        "route": "features",
        "form": weighting.form,
        "steps": learned.steps,
        "curve": learned.curve.tolist(),
        "fits": learned.fits,
        "search_seconds": learned.seconds,
        "embedding_seconds": seconds,
        "right": None if data.right is None else named(data.right, names),
    }
    found = Found(
        named(learned.weights, names),
        named(learned.low, names),
        named(learned.high, names),
        about,
        told,
        table if weighting.controls else [],
        shown,
        (learned.curve.tolist(), learned.steps) if len(learned.curve) else None,
    )
    return found, table[0]["test_metric"]
