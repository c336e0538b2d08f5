"""The route over frozen features: weights with intervals, upper steps by cross-validation."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from applications.weighting.folds import folds, jackknife
from applications.weighting.heads import Examples
from applications.weighting.pull import Pulled
from applications.weighting.search import Search, Sources, search
from applications.weighting.weights import Weights


@dataclass(frozen=True)
class Learned:
    """What the search has found.

    Attributes:
        weights: one a source ``(sources,)``.
        low: the lower end of each weight's 95 % interval.
        high: the upper end.
        steps: upper steps, chosen by cross-validation; 0 leaves every weight at one.
        curve: the cross-validated loss after 0, 1, ... upper steps ``(max_steps + 1,)``; empty
            where nothing was searched.
        head: the head on the sources under the weights.
        fits: heads that were fitted.
        seconds: what it took.
    """

    weights: Tensor
    low: Tensor
    high: Tensor
    steps: int
    curve: Tensor
    head: Tensor
    fits: int
    seconds: float


def learn(
    sources: Sources,
    target: Examples,
    settings: Search,
    *,
    num_folds: int = 5,
    num_seeds: int = 1,
    seed: int = 0,
) -> Learned:
    """The weights of the sources under which a head fitted to them is best on the target.

    For every fold of the target the weights are searched on the rest, and the held-out loss is
    followed over the upper steps. The number of steps is where its mean, over the folds of all
    seeds, is smallest; the result is the search on the whole target, stopped there. The interval of
    a weight is that of the jackknife that leaves out one fold, at the same number of steps
    (`jackknife`), cut off where the form of the weights ends.

    Args:
        sources: the examples to weigh.
        target: the trusted ones.
        settings: of the search.
        num_folds: parts that the target is divided into.
        num_seeds: how often it is divided.
        seed: of the first division.

    Raises:
        ValueError: fewer than two target examples, folds, or no seed.
    """
    for name, value, least in (
        ("target", len(target), 2),
        ("num_folds", num_folds, 2),
        ("num_seeds", num_seeds, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    started = time.perf_counter()
    traces, curves, sizes = [], [], []
    for offset in range(num_seeds):
        parts = folds(target, num_folds, seed=seed + offset)
        for kept, out in parts:
            trace = search(sources, target.select(kept), settings, held_out=target.select(out))
            traces.append(trace.weights)
            curves.append(trace.held_out)
            sizes.append(len(out))
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    curve = (shares[:, None] * torch.stack(curves).double()).sum(0)
    steps = int(curve.argmin())
    final = search(sources, target, settings, steps=steps)
    weights = final.weights[-1]
    left_out = torch.stack(traces)[:, steps].view(num_seeds, -1, len(sources))
    _, half = jackknife(left_out)
    form = Weights(sources.sizes, settings.form, settings.floor)
    return Learned(
        weights=weights,
        low=(weights - half).clamp(min=form.least),
        high=torch.minimum(weights + half, form.most),
        steps=steps,
        curve=curve,
        head=final.head,
        fits=len(traces) * (settings.max_steps + 1) + steps + 1,
        seconds=time.perf_counter() - started,
    )


def kept(sources: Sources, pulled: Pulled, settings: Search) -> Learned:
    """All sources alike but those of which more would raise the loss on the target: one implicit
    hypergradient where all weigh alike, and no search.

    A source is dropped where its pull lies below zero by more than its standard error; the others
    weigh alike, 1 on average over all examples. The interval of a weight reaches to 0 where that of
    the pull reaches below, and to the weight of the others where it reaches above.
    """
    started = time.perf_counter()
    weights = sources.normalised(pulled.helps.double())
    others = weights.max()
    return Learned(
        weights=weights,
        low=others * (pulled.low >= 0),
        high=others * (pulled.high >= 0),
        steps=0,
        curve=torch.empty(0),
        head=sources.fit(weights, ridge=settings.ridge),
        fits=2,
        seconds=pulled.seconds + time.perf_counter() - started,
    )
