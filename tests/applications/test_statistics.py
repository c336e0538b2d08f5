"""Paired statistics against enumerations, hand-computed cases and the normal distribution."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from applications.comparison.statistics import (
    block_interval,
    differences,
    holm,
    mean_interval,
    rank_biserial,
    resampled_means,
    signed_rank,
    spread,
)


def mean_ranks(values: Sequence[float]) -> list[float]:
    """Ranks by counting: one plus the smaller ones plus half of the other equal ones."""
    return [1 + sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]


def enumerated_p(values: Sequence[float]) -> float:
    """The two-sided p-value of the signed-rank test, over all choices of signs."""
    used = [value for value in values if value != 0]
    ranks = mean_ranks([abs(value) for value in used])
    found = sum(rank for rank, value in zip(ranks, used, strict=True) if value > 0)
    sums = [
        sum(itertools.compress(ranks, signs))
        for signs in itertools.product((0, 1), repeat=len(used))
    ]
    tails = (sum(w <= found for w in sums), sum(w >= found for w in sums))
    return min(1.0, 2 * min(tails) / len(sums))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-4, 4).map(lambda k: k / 4), min_size=6, max_size=8))
def test_the_signed_rank_test_counts_all_choices_of_signs(values: list[float]) -> None:
    # A level at which even one difference is enough, so that p is always given.
    found = signed_rank(values, level=0.0)
    if any(values):
        assert found.p_value == pytest.approx(enumerated_p(values), abs=1e-12)
    assert found.num_used + found.num_zeros == len(values)


@pytest.mark.parametrize("number", [6, 10, 25, 60])
def test_the_signed_rank_test_is_scipys_where_there_are_no_ties(number: int) -> None:
    values = np.random.default_rng(number).normal(0.3, 1, number)
    found = signed_rank(values.tolist())
    theirs = scipy.stats.wilcoxon(values, method="exact")
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-10)
    assert min(found.statistic, number * (number + 1) / 2 - found.statistic) == theirs.statistic


def test_six_differences_of_one_sign_have_the_smallest_p_of_six() -> None:
    found = signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert (found.statistic, found.p_value) == (21, 2 / 2**6)


def test_too_few_differences_have_no_p_and_say_why() -> None:
    found = signed_rank([0.1, 0.2, 0.0, 0.3, 0.4, 0.5])
    assert found.p_value is None
    assert found.num_zeros == 1
    assert found.reason == "5 differences other than zero: p would be at least 0.062"
    assert signed_rank([0.0] * 9).reason == "no difference other than zero"
    assert signed_rank([0.1] * 5, level=0.9).p_value == pytest.approx(2 / 2**5)


def test_differences_pair_by_key_and_leave_lone_keys_out() -> None:
    first = {("a", "300", 0): 3.0, ("a", "300", 1): 5.0, ("b", "300", 0): 1.0}
    second = {("a", "300", 1): 4.0, ("a", "300", 0): 1.0, ("a", "1000", 0): 9.0}
    assert differences(first, second) == {("a", "300", 0): 2.0, ("a", "300", 1): 1.0}


def test_the_spread_has_the_standard_deviation_of_a_sample() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert found is not None
    assert found.mean == pytest.approx(7 / 3)
    assert found.std == pytest.approx(math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2))
    assert found.n == 3
    one = spread([2.0])
    assert one is not None
    assert one.std is None
    assert spread([]) is None


def test_the_rank_biserial_correlation_by_hand() -> None:
    # Ranks 1 to 4; the second is negative: (1 + 3 + 4 - 2) / 10.
    assert rank_biserial([0.1, -0.2, 0.3, 0.4, 0.0]) == pytest.approx(0.6)
    assert rank_biserial([-1.0, -2.0]) == -1
    assert rank_biserial([0.0]) is None


def test_holm_by_hand() -> None:
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06 (kept from below), 0.04 x 1 raised to 0.06.
    found = holm([0.03, 0.01, None, 0.04, 0.02])
    assert found[2] is None
    assert [p for p in found if p is not None] == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_drawn_means_have_the_unbiased_variance_of_the_mean() -> None:
    cells = [np.array([0.0, 1.0, 5.0]), np.array([2.0, 4.0])]
    means = resampled_means(cells, num_resamples=200_000, seed=0)
    # Sum over the cells of n_c^2 (s_c^2 / n_c), over N^2.
    expected = sum(len(cell) * cell.var(ddof=1) for cell in cells) / 25
    assert means.mean() == pytest.approx(12 / 5, abs=0.01)
    assert means.var() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    "cells, size, how", [(3, 3, "bootstrap"), (2, 5, "bootstrap"), (1, 3, "student")]
)
def test_the_interval_covers_the_mean_of_normal_samples(cells: int, size: int, how: str) -> None:
    generator = np.random.default_rng(0)
    number, covered = 600, 0
    # Cells differ in their means: that is not noise, the cells are fixed.
    means = np.arange(cells) - (cells - 1) / 2
    for _ in range(number):
        drawn = generator.normal(means[:, None], 0.2, (cells, size))
        found = mean_interval(drawn.tolist(), num_resamples=999)
        assert found.how == how
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    # Three standard errors of 600 trials at 95 %, and the 2 % that few differences cost.
    assert 0.90 <= covered / number <= 0.98


def test_few_differences_have_students_interval() -> None:
    values = [0.1, 0.2, 0.4, 0.3]
    found = mean_interval([values])
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


def test_cells_share_one_variance_with_a_freedom_less_for_each_of_them() -> None:
    """Means .2 and 1.2, squares .02 and .08 about them: a variance of .1 / 2 for two freedoms."""
    found = mean_interval([[0.1, 0.3], [1.0, 1.4]])
    half = scipy.stats.t.ppf(0.975, 2) * math.sqrt(0.05 / 4)
    assert (found.low, found.high) == (pytest.approx(0.7 - half), pytest.approx(0.7 + half))


def test_many_differences_have_the_interval_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(1, 2, 400)
    found = mean_interval([values.tolist()])
    half = 1.96 * values.std(ddof=1) / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_the_interval_is_the_same_every_time() -> None:
    cells = [[0.1, 0.4, 0.2, -0.1], [0.3, 0.0, 0.2]]
    assert mean_interval(cells) == mean_interval(cells)


def test_there_is_no_interval_without_spread() -> None:
    lone = mean_interval([[0.1, 0.2], [0.3]])
    assert (lone.low, lone.how) == (None, None)
    assert "fewer than two" in str(lone.reason)
    # Two equal seeds, exactly and up to the rounding of single precision; seven of them.
    for same in ([0.1] * 3, [0.0, 0.0], [0.1, 0.1 + 6e-8], [0.0] * 7):
        equal = mean_interval([same])
        assert equal.low is None
        assert not equal.excludes_zero
        assert "all equal" in str(equal.reason)
    assert mean_interval([[0.1, 0.1], [0.0, 0.01]]).low is not None
    assert mean_interval([]).low is None


def test_an_interval_excludes_zero_on_either_side() -> None:
    up, down = [0.9, 1.0, 1.1], [-0.9, -1.0, -1.1]
    assert mean_interval([up]).excludes_zero
    assert mean_interval([down]).excludes_zero
    assert not mean_interval([[-1.0, 1.0, 0.1]]).excludes_zero


def test_tasks_in_general_are_judged_by_the_means_of_the_tasks() -> None:
    blocks = [[1.0, 3.0], [2.0], [3.0, 1.0, 2.0], [4.0], [0.0]]
    assert block_interval(blocks) == mean_interval([[2.0, 2.0, 2.0, 4.0, 0.0]])
    few = block_interval(blocks[:4])
    assert few.low is None
    assert "4 tasks say little" in str(few.reason)
