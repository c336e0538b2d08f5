"""Cross-validation over the target: folds, the number of upper steps, finishing, intervals."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from applications.weighting.heads import Examples, fit, mean_loss

RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
"""What a head may be pulled to its centre with; the largest leaves the centre as it is."""

Parts = list[tuple[Tensor, Tensor]]


def folds(target: Examples, count: int, *, seed: int) -> Parts:
    """``count`` pairs of positions, kept and held out; every example is held out once.

    Classes are dealt out in turn, so that every fold has its share of each. With fewer examples
    than folds there are as many folds as examples.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(target), generator=generator)
    if target.answers.shape[1] > 1:
        order = order[target.answers[order].argmax(-1).argsort(stable=True)]
    number = min(count, len(target))
    fold = torch.empty(len(target), dtype=torch.long)
    fold[order] = torch.arange(len(target)) % number
    return [
        ((fold != k).nonzero().flatten(), (fold == k).nonzero().flatten()) for k in range(number)
    ]


def cross_validated(target: Examples, parts: Parts, fitted: Callable[[Examples], Tensor]) -> float:
    """The mean loss of held-out examples under heads fitted without them."""
    total = 0.0
    for kept, out in parts:
        held_out = target.select(out)
        total += mean_loss(fitted(target.select(kept)), held_out) * len(held_out)
    return total / len(target)


def finished(
    target: Examples,
    parts: Parts,
    *,
    centre: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
) -> Tensor:
    """The head fitted to the target and pulled to ``centre`` (0 unless given), by the ridge with
    the best cross-validated loss.
    """

    def at(ridge: float) -> Callable[[Examples], Tensor]:
        return lambda kept: fit(kept, kept.ones, ridge=ridge, centre=centre, start=centre)

    scores = [cross_validated(target, parts, at(ridge)) for ridge in ridges]
    return at(ridges[scores.index(min(scores))])(target)
