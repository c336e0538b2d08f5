"""Cross-validation over the target: folds, the number of upper steps, finishing, intervals."""

from collections.abc import Callable, Sequence

import torch
from scipy import special  # type: ignore[import-untyped]
from torch import Tensor

from applications.weighting.heads import Examples, fit, mean_loss

RIDGES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 10.0)
"""What a head may be pulled to its centre with; the largest leaves the centre as it is."""

SCALES = (1.0, 2.0, 4.0, 8.0)
"""By what the centre may be multiplied: a head of doubtful labels is less sure than it is right,
and without this the target would be fitted to make it surer."""

Parts = list[tuple[Tensor, Tensor]]
LEVEL = 0.95
"""Of the intervals."""


def folds(target: Examples, count: int, *, seed: int) -> Parts:
    """``count`` pairs of positions, kept and held out; every example is held out once.

    Classes are dealt out in turn, so that every fold has its share of each. Words of one sentence
    are held out together, sentences at random. With fewer examples (or sentences) than folds there
    are as many folds as those.
    """
    units = target.units
    size = int(units.max()) + 1
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    if target.together is None and target.answers.shape[1] > 1:
        order = order[target.answers[order].argmax(-1).argsort(stable=True)]
    number = min(count, size)
    dealt = torch.empty(size, dtype=torch.long)
    dealt[order] = torch.arange(size) % number
    fold = dealt[units]
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


def jackknife(left_out: Tensor) -> tuple[Tensor, Tensor]:
    """The standard error of what was found, from what is found without one fold, and half of the
    95 % interval, which is Student's t for K - 1 times the error.

    ``sqrt((K - 1) / K sum_k (v_k - mean v)^2)``; the variance is the mean over the divisions.

    Args:
        left_out: ``(divisions, K, ...)``.

    Reference: Efron and Stein (1981), The jackknife estimate of variance, Annals of Statistics 9.
    """
    count = left_out.shape[1]
    variance = (left_out - left_out.mean(1, keepdim=True)).square().sum(1) * (count - 1) / count
    error = variance.mean(0).sqrt()
    return error, float(special.stdtrit(count - 1, (1 + LEVEL) / 2)) * error


def finished(
    target: Examples,
    parts: Parts,
    *,
    centre: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
) -> Tensor:
    """The head fitted to the target and pulled to ``centre`` (0 unless given), by the ridge with
    the best cross-validated loss; of classes, ``centre`` times the best of `SCALES`.
    """
    centres = [centre]
    if centre is not None and target.answers.shape[1] > 1:
        centres = [scale * centre for scale in SCALES]

    def at(ridge: float, pull: Tensor | None) -> Callable[[Examples], Tensor]:
        return lambda kept: fit(kept, kept.ones, ridge=ridge, centre=pull, start=pull)

    tries = [at(ridge, pull) for pull in centres for ridge in ridges]
    scores = [cross_validated(target, parts, each) for each in tries]
    return tries[scores.index(min(scores))](target)
