"""Paired comparisons of two methods: pure functions of the differences between them.

A difference belongs to a task, train size and seed; differences of one task and train size are a
cell. All p-values are two-sided.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats  # type: ignore[import-untyped]

LEVEL = 0.95
NUM_RESAMPLES = 9999
SEED = 0
MIN_FREEDOM = 5
MIN_BLOCKS = 5
ROUNDING = 1e-6
"""Differences so near each other are equal: metrics are computed in single precision."""
NO_DIFFERENCE = "no difference other than zero"

Floats = NDArray[np.float64]
Key = tuple[Hashable, ...]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (ddof = 1; None for one value) of ``n`` values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class SignedRank:
    """A Wilcoxon signed-rank test.

    ``statistic`` is the sum of the ranks of positive differences, ``num_zeros`` how many
    differences were left out because they are zero. ``p_value`` is None where no outcome of that
    many differences could fall below 1 - level; ``reason`` says so.
    """

    statistic: float
    p_value: float | None
    num_used: int
    num_zeros: int
    reason: str | None = None


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a mean difference; None with a ``reason`` where there is none."""

    low: float | None
    high: float | None
    how: Literal["bootstrap", "student"] | None
    reason: str | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and zero lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def spread(values: Sequence[float]) -> Spread | None:
    """The spread of the values, None where there are none."""
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, len(values))


def differences(first: Mapping[Key, float], second: Mapping[Key, float]) -> dict[Key, float]:
    """First minus second for every key that both have, in the order of the first."""
    return {key: value - second[key] for key, value in first.items() if key in second}


def signed_rank(values: Sequence[float], *, level: float = LEVEL) -> SignedRank:
    """The exact Wilcoxon signed-rank test that the differences are symmetric about zero.

    W = sum of the ranks of |d_i| over d_i > 0. Zeros are left out, as Wilcoxon did; equal |d_i|
    share the mean of their ranks. Given the |d_i|, every choice of signs is equally likely under
    the null hypothesis; the distribution of W over all 2^n choices is counted, ties included, so
    there is no normal approximation at any n.

    The pairs count as independent. Seeds of one task share its data, so a small p-value speaks
    about these tasks, not about tasks in general.

    Reference: Wilcoxon (1945), Individual comparisons by ranking methods, Biometrics Bulletin 1(6).
    """
    used = [value for value in values if value != 0]
    zeros = len(values) - len(used)
    doubled = doubled_ranks([abs(value) for value in used])
    statistic = sum(rank for rank, value in zip(doubled, used, strict=True) if value > 0)
    smallest = 2.0 ** (1 - len(used))
    if not used or smallest > 1 - level:
        reason = f"{len(used)} differences other than zero: p would be at least {smallest:.2g}"
        return SignedRank(statistic / 2, None, len(used), zeros, reason if used else NO_DIFFERENCE)
    counts = [1] + [0] * sum(doubled)
    for rank in doubled:
        counts = [a + b for a, b in zip(counts, [0] * rank + counts[:-rank], strict=True)]
    below, above = sum(counts[: statistic + 1]), sum(counts[statistic:])
    p_value = min(1.0, 2 * min(below, above) / 2 ** len(used))
    return SignedRank(statistic / 2, p_value, len(used), zeros)


def doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice the rank of each value, from 1; equal values share the mean of their ranks."""
    return [round(2 * rank) for rank in stats.rankdata(values)]


def rank_biserial(values: Sequence[float]) -> float | None:
    """The matched-pairs rank-biserial correlation, an effect size between -1 and 1.

    r = (W+ - W-) / (W+ + W-), with the sums of ranks of positive and negative differences: 1 where
    all differences are positive. None where all are zero.

    Reference: Kerby (2014), The simple difference formula, Comprehensive Psychology 3, 11.IT.3.1.
    """
    used = [value for value in values if value != 0]
    ranks = doubled_ranks([abs(value) for value in used])
    signed = sum(math.copysign(rank, value) for rank, value in zip(ranks, used, strict=True))
    return signed / sum(ranks) if used else None


def mean_interval(
    cells: Sequence[Sequence[float]],
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """A confidence interval of the mean over all differences, the cells being fixed.

    Differences vary within cells and are drawn again within them: the interval is about these
    tasks and train sizes. With n_c differences in cell c and f = sum_c (n_c - 1) degrees of
    freedom:

    - f >= 5: a bootstrap that draws n_c - 1 of the n_c differences in each cell, with replacement
      (Rao and Wu: the variance of the drawn mean is then the unbiased one, where drawing n_c
      makes it (n_c - 1) / n_c too small), and takes the percentiles at Phi(-+t) instead of
      Phi(-+z), with Student's t for f (Hesterberg). Of normal samples, three cells of three, the
      plain percentile bootstrap's 95 % interval covers the mean in 84 %, this one in 93 %.
    - less: Student's interval with the pooled variance of the cells.

    None with the reason where a cell holds a single difference, which has no spread, and where no
    cell has any.

    References: Rao and Wu (1988), Resampling inference with complex survey data, JASA 83(401);
    Hesterberg (2015), What teachers should know about the bootstrap, The American Statistician
    69(4).
    """
    arrays = [np.asarray(cell, dtype=np.float64) for cell in cells if len(cell) > 0]
    if not arrays or min(len(cell) for cell in arrays) < 2:
        return Interval(None, None, None, "a cell with fewer than two differences has no spread")
    if all(float(np.ptp(cell)) <= ROUNDING for cell in arrays):
        return Interval(None, None, None, "the differences of a cell are all equal: no spread")
    number = sum(len(cell) for cell in arrays)
    freedom = number - len(arrays)
    t = float(special.stdtrit(freedom, (1 + level) / 2))
    if freedom < MIN_FREEDOM:
        mean = sum(float(cell.sum()) for cell in arrays) / number
        squares = sum(float(((cell - cell.mean()) ** 2).sum()) for cell in arrays)
        half = t * math.sqrt(squares / freedom / number)
        return Interval(mean - half, mean + half, "student")
    means = resampled_means(arrays, num_resamples=num_resamples, seed=seed)
    tail = float(special.ndtr(-t))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high), "bootstrap")


def resampled_means(cells: Sequence[Floats], *, num_resamples: int, seed: int) -> Floats:
    """``(num_resamples,)`` means over all differences, n_c - 1 of them drawn in each cell."""
    generator = np.random.default_rng(seed)
    total = np.zeros(num_resamples)
    for cell in cells:
        size = len(cell)
        drawn = generator.integers(size, size=(num_resamples, size - 1))
        total += size * cell[drawn].mean(axis=1)
    means: Floats = total / sum(len(cell) for cell in cells)
    return means


def block_interval(blocks: Sequence[Sequence[float]], *, level: float = LEVEL) -> Interval:
    """A confidence interval of the mean over tasks in general, of which the blocks are a sample.

    The tasks' mean differences are what is drawn; the seeds of a task only make its mean. None with
    fewer than five tasks.
    """
    if len(blocks) < MIN_BLOCKS:
        reason = f"{len(blocks)} tasks say little about tasks in general; {MIN_BLOCKS} are needed"
        return Interval(None, None, None, reason)
    return mean_interval([[float(np.mean(block)) for block in blocks]], level=level)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values; None stays None and does not count in the family.

    For sorted p_(1) <= ... <= p_(m): max over j <= i of min(1, (m - j + 1) p_(j)).

    Reference: Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian
    Journal of Statistics 6(2).
    """
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = largest
    return adjusted
