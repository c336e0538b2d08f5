"""The pull on a source: what more of it would take off the loss on the target."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from applications.weighting.folds import Parts, jackknife
from applications.weighting.heads import Examples, losses, objective
from applications.weighting.search import Search, Sources
from blo import hypergradient


@dataclass(frozen=True)
class Pulled:
    """The pull on each source ``(sources,)``, its standard error and 95 % interval, and what it
    took.
    """

    value: Tensor
    error: Tensor
    low: Tensor
    high: Tensor
    seconds: float = 0.0

    @property
    def helps(self) -> Tensor:
        """Whether a source is not below zero by more than the standard error ``(sources,)``; true
        of at least one, because the pulls average to zero.
        """
        return self.value + self.error >= 0


@dataclass(frozen=True)
class Sign:
    """What tells a bad source, beside its weight.

    Attributes:
        pull: what more of the source would take off the target's loss (`source_pulls`).
        low: the lower end of its 95 % interval.
        high: the upper end.
        agreement: the share of its labels that a model of the target alone predicts.
    """

    pull: float
    low: float
    high: float
    agreement: float

    @property
    def harms(self) -> bool:
        """Whether more of the source would raise the loss on the target, by the whole interval."""
        return self.high < 0


def signs(names: Sequence[str], pulled: Pulled, agreements: Tensor) -> dict[str, Sign]:
    """The signs of each source by its name."""
    columns = (pulled.value, pulled.low, pulled.high, agreements)
    each = zip(*(column.tolist() for column in columns), strict=True)
    return {name: Sign(*found) for name, found in zip(names, each, strict=True)}


def pulls(
    sources: Sources, target: Examples, weights: Tensor, head: Tensor, settings: Search
) -> Tensor:
    """How much the loss on the target falls with the weight of each example ``(n,)``.

    ``-n dF/d omega_i`` for the row weights ``omega = M w``: the implicit hypergradient with a
    weight for each row above. Of the settings the ridge and the method count.
    """
    count = len(sources.examples)
    rows = sources.rows(weights)
    result = hypergradient(
        lambda x, y: losses(y[0], target).mean(),
        lambda x, y: objective(y[0], sources.examples, x[0], ridge=settings.ridge),
        (rows,),
        (head,),
        method=settings.method,
    )
    return -count * result.grads[0]


def share_pulls(found: Tensor, sources: Sources, weights: Tensor) -> Tensor:
    """How much the loss on the target falls with the share of each source in the mixture, at the
    expense of the mixture as it is ``(sources,)``.

    With shares ``p_s = w_s n_s / n``, ``-dF/dp_s + sum_r p_r dF/dp_r``, where ``-dF/dp_s`` is the
    mean of the `pulls` of the rows of s: the derivative along ``p + t (e_s - p)``.
    """
    of_source = sources.members.T @ found / sources.sizes
    shares = weights * sources.sizes / (weights * sources.sizes).sum()
    return of_source - shares @ of_source


def source_pulls(
    sources: Sources, target: Examples, divisions: Sequence[Parts], settings: Search
) -> Pulled:
    """The pull on each source where every source weighs as much as it is large.

    Below zero where more of the source would raise the loss on the target. The error is that of
    the jackknife over the folds of the target (`jackknife`); the head is the same in all of them.

    Args:
        sources: the examples of unknown quality.
        target: the trusted ones.
        divisions: of the target into folds.
        settings: of the search, of which the ridge and the method count.
    """
    started = time.perf_counter()
    even = torch.ones(len(sources), dtype=torch.float64)
    head = sources.fit(even, ridge=settings.ridge)

    def at(examples: Examples) -> Tensor:
        return share_pulls(pulls(sources, examples, even, head, settings), sources, even)

    left_out = [[at(target.select(rest)) for rest, _ in parts] for parts in divisions]
    error, half = jackknife(torch.stack([torch.stack(found) for found in left_out]))
    value = at(target)
    return Pulled(value, error, value - half, value + half, time.perf_counter() - started)
