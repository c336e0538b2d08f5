"""What the learned weights are compared with, on frozen features; all see the same target data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from applications.weighting.folds import Parts, cross_validated, finished
from applications.weighting.heads import Examples, fit, mean_loss
from applications.weighting.pull import source_pulls
from applications.weighting.route import kept
from applications.weighting.search import Search, Sources

TARGET_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""What a target example may count in a union, against an example of a source."""


@dataclass(frozen=True)
class Comparison:
    """What every control is given.

    Args:
        sources: examples of unknown quality.
        target: the trusted ones.
        parts: folds of the target.
        settings: of the search; controls use its ridge.
        seed: of what is drawn at random.
        fits: how many heads random search may fit: as many as the search did.
        right: for each source the share of its labels that are right, where that is known.
    """

    sources: Sources
    target: Examples
    parts: Parts
    settings: Search
    seed: int = 0
    fits: int = 100
    right: Tensor | None = None

    @property
    def even(self) -> Tensor:
        """A weight of one a source."""
        return torch.ones(len(self.sources), dtype=torch.float64)

    def head(self, weights: Tensor) -> Tensor:
        """The head on the sources under these weights."""
        return self.sources.fit(weights, ridge=self.settings.ridge)

    def finish(self, head: Tensor) -> Tensor:
        """The same, finished on the target."""
        return finished(self.target, self.parts, centre=head)


@dataclass(frozen=True)
class Outcome:
    """A finished head, and the weights behind it where there are any."""

    head: Tensor
    weights: Tensor | None = None


def weighted(given: Comparison, weights: Tensor) -> Outcome:
    """The head under these weights, finished on the target."""
    return Outcome(given.finish(given.head(weights)), weights)


def union(given: Comparison) -> Outcome:
    """All examples together, those of the target among them, each counting the same."""
    return Outcome(pooled(given, given.target, times=1.0), given.even)


def target_only(given: Comparison) -> Outcome:
    """The target alone, its ridge by cross-validation."""
    return Outcome(finished(given.target, given.parts))


def weighted_union(given: Comparison) -> Outcome:
    """All examples together; what a target example counts is chosen by cross-validation."""
    scores = [
        cross_validated(given.target, given.parts, partial(pooled, given, times=times))
        for times in TARGET_WEIGHTS
    ]
    best = TARGET_WEIGHTS[scores.index(min(scores))]
    return Outcome(pooled(given, given.target, times=best))


def pooled(given: Comparison, target: Examples, *, times: float) -> Tensor:
    """The head on sources and target, of which an example counts ``times`` as much."""
    sources = given.sources.examples
    both = sources.joined(target)
    weights = torch.cat([given.sources.members.sum(1), times * target.ones])
    return fit(both, weights * len(both) / weights.sum(), ridge=given.settings.ridge)


def two_stage(given: Comparison) -> Outcome:
    """All sources alike, then the target."""
    return weighted(given, given.even)


def uniform(given: Comparison) -> Outcome:
    """Every source the same share of the mixture, whatever its size, then the target."""
    sizes = given.sources.sizes
    return weighted(given, sizes.sum() / len(sizes) / sizes)


def agreements(given: Comparison) -> Tensor:
    """For each source the share of its labels that a model of the target alone predicts.

    For regression the correlation, 0 where it is negative.
    """
    head = finished(given.target, given.parts)
    examples, members = given.sources.examples, given.sources.members
    outputs = examples.features @ head
    if examples.answers.shape[1] == 1:
        truth = examples.answers[:, 0]
        rows = [members[:, source] > 0 for source in range(len(given.sources))]
        found = [torch.corrcoef(torch.stack([outputs[r, 0], truth[r]]))[0, 1] for r in rows]
        return torch.stack(found).nan_to_num().clamp(min=0)
    same = (outputs.argmax(-1) == examples.answers.argmax(-1)).double()
    return members.T @ same / given.sources.sizes


def best_first(given: Comparison, scores: Tensor) -> Outcome:
    """The sources with the best scores, as many as have the smallest loss on the target."""
    order = scores.argsort(descending=True, stable=True)
    best: tuple[float, Tensor] | None = None
    for count in range(1, len(order) + 1):
        weights = torch.zeros_like(given.even)
        weights[order[:count]] = 1.0
        weights = given.sources.normalised(weights)
        loss = mean_loss(given.head(weights), given.target)
        if best is None or loss < best[0]:
            best = loss, weights
    assert best is not None
    return weighted(given, best[1])


def agreement(given: Comparison) -> Outcome:
    """The sources whose labels a model of the target alone predicts best; how many of them, by the
    loss on the target.
    """
    return best_first(given, agreements(given))


def helpful(given: Comparison) -> Outcome:
    """The sources that help by their pull (`applications.weighting.route.kept`)."""
    pulled = source_pulls(given.sources, given.target, [given.parts], given.settings)
    return weighted(given, kept(given.sources, pulled, given.settings).weights)


def agreeing_examples(given: Comparison) -> Outcome:
    """The examples whose label a model of the target alone predicts, then the target.

    For regression the half with the smaller error.
    """
    head = finished(given.target, given.parts)
    examples = given.sources.examples
    outputs = examples.features @ head
    if examples.answers.shape[1] == 1:
        error = (outputs - examples.answers).abs()[:, 0]
        same = (error <= error.median()).double()
    else:
        same = (outputs.argmax(-1) == examples.answers.argmax(-1)).double()
    if not same.any():
        return two_stage(given)
    same = same * given.sources.members.sum(1)
    head = fit(examples, same * len(same) / same.sum(), ridge=given.settings.ridge)
    return Outcome(given.finish(head))


def greedy(given: Comparison) -> Outcome:
    """Sources added one at a time, whichever lowers the loss on the target most, while one does."""
    chosen = torch.zeros_like(given.even)
    best = float("inf")
    while True:
        trials = []
        for source in (chosen == 0).nonzero().flatten().tolist():
            trial = chosen.clone()
            trial[source] = 1.0
            head = given.head(given.sources.normalised(trial))
            trials.append((mean_loss(head, given.target), trial))
        if not trials or min(loss for loss, _ in trials) >= best:
            return weighted(given, given.sources.normalised(chosen))
        best, chosen = min(trials, key=lambda found: found[0])


def random_search(given: Comparison) -> Outcome:
    """The best of as many random mixtures as the search fitted heads, by the loss on the target.

    Shares are drawn from a Dirichlet distribution of ones; the first trial is one weight for all.
    """
    generator = torch.Generator().manual_seed(given.seed)
    best = given.even
    least = mean_loss(given.head(best), given.target)
    for _ in range(given.fits - 1):
        drawn = -torch.rand(len(given.even), generator=generator, dtype=torch.float64).log()
        weights = given.sources.normalised(drawn / given.sources.sizes)
        loss = mean_loss(given.head(weights), given.target)
        if loss < least:
            least, best = loss, weights
    return weighted(given, best)


def oracle(given: Comparison) -> Outcome:
    """The sources whose labels are right, by the true ones: a bound, not a rival.

    A source is kept where its share of right labels is nearer to the best source's than to chance;
    for regression the correlation of its labels with the true ones, nearer than to 0.
    """
    if given.right is None:
        raise ValueError("oracle needs the share of right labels of each source")
    classes = given.target.answers.shape[1]
    chance = 0.0 if classes == 1 else 1 / classes
    chosen = (given.right >= (chance + given.right.max()) / 2).double()
    return weighted(given, given.sources.normalised(chosen))


CONTROLS: Mapping[str, Callable[[Comparison], Outcome]] = {
    each.__name__: each
    for each in (
        union,
        target_only,
        weighted_union,
        two_stage,
        agreement,
        helpful,
        agreeing_examples,
        greedy,
        random_search,
        uniform,
        oracle,
    )
}
