"""The pull on rows and on sources, against heads that are fitted anew."""

import pytest
import torch

from applications.weighting.folds import folds
from applications.weighting.heads import Examples, fit, mean_loss
from applications.weighting.pull import Pulled, Sign, pulls, share_pulls, signs, source_pulls
from applications.weighting.route import kept
from applications.weighting.search import Search, Sources
from blo import cg

SIZES = (40, 20, 30)
RIDGE = 0.05
EVEN = torch.ones(3, dtype=torch.float64)


@pytest.fixture
def sources():
    """Two sources that are right, of 40 and 20 rows, and one of 30 that is not."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(90, 3, generator=generator, dtype=torch.float64)
    source = torch.tensor([k for k, n in enumerate(SIZES) for _ in range(n)])
    positive = (features[:, 0] > 0) != (source == 2)
    answers = torch.nn.functional.one_hot(positive.long(), 2).double()
    return Sources(Examples(features, answers), torch.nn.functional.one_hot(source, 3).double())


@pytest.fixture
def target():
    features = torch.randn(24, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    answers = torch.nn.functional.one_hot((features[:, 0] > 0).long(), 2).double()
    return Examples(features, answers)


def test_the_pull_of_a_row_is_the_fall_of_the_target_loss_with_its_weight(sources, target):
    weights = torch.tensor([1.2, 0.7, 0.9], dtype=torch.float64)
    head = sources.fit(weights, ridge=RIDGE)
    found = pulls(sources, target, weights, head, Search(ridge=RIDGE, method=cg(50)))
    rows = sources.members @ weights
    for row in (0, 45, 80):

        def value(step, row=row):
            moved = rows.clone()
            moved[row] += step
            return mean_loss(fit(sources.examples, moved, ridge=RIDGE, start=head), target)

        expected = -90 * (value(0.05) - value(-0.05)) / 0.1
        assert float(found[row]) == pytest.approx(expected, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("weights", [EVEN, EVEN * torch.tensor([1.2, 0.7, 0.9])])
def test_the_pull_on_a_source_is_the_fall_along_a_larger_share(sources, target, weights):
    """Central differences of the loss of heads fitted under the shares p + t (e_s - p)."""
    head = sources.fit(weights, ridge=RIDGE)
    rows = pulls(sources, target, weights, head, Search(ridge=RIDGE, method=cg(50)))
    found = share_pulls(rows, sources, weights)
    whole = (weights * sources.sizes).sum() / 90  # the mean weight of an example
    shares = weights * sources.sizes / (weights * sources.sizes).sum()

    def value(source, step):
        moved = shares + step * (torch.eye(3, dtype=torch.float64)[source] - shares)
        return mean_loss(
            sources.fit(whole * moved * 90 / sources.sizes, ridge=RIDGE, start=head), target
        )

    expected = [-(value(s, 0.01) - value(s, -0.01)) / 0.02 for s in range(3)]
    assert (whole * found).tolist() == pytest.approx(expected, rel=5e-3, abs=1e-4)
    assert float(shares @ found) == pytest.approx(0, abs=1e-12)


def test_the_source_that_lies_is_pulled_down_by_its_whole_interval(sources, target):
    """And the interval is the jackknife's, the head the same in every fold."""
    parts, settings = folds(target, 3, seed=0), Search(ridge=RIDGE, method=cg(50))
    found = source_pulls(sources, target, [parts], settings)
    assert (found.high < 0).tolist() == [False, False, True]
    assert float(found.low[0]) > 0
    head = sources.fit(EVEN, ridge=RIDGE)
    left_out = torch.stack(
        [
            share_pulls(
                pulls(sources, target.select(kept), EVEN, head, settings),
                sources,
                EVEN,
            )
            for kept, _ in parts
        ]
    )
    # Folds of equal size: the pull is a mean over target examples, so that of the folds is its own.
    torch.testing.assert_close(left_out.mean(0), found.value, rtol=1e-5, atol=1e-8)
    half = 4.302652729911275 * (2 * left_out.var(0, correction=0)).sqrt()  # Student's t for 2
    torch.testing.assert_close(found.high - found.value, half)
    torch.testing.assert_close(found.value - found.low, half)


def test_signs_go_to_their_sources(sources, target):
    parts = folds(target, 3, seed=0)
    pulled = source_pulls(sources, target, [parts], Search(ridge=RIDGE))
    told = signs(["a", "b", "c"], pulled, torch.tensor([0.9, 0.8, 0.1]))
    assert [sign.harms for sign in told.values()] == [False, False, True]
    low, high = float(pulled.low[2]), float(pulled.high[2])
    agreement = pytest.approx(0.1)
    assert told["c"] == Sign(float(pulled.value[2]), low, high, agreement)


def test_sources_that_harm_are_dropped_and_the_others_weigh_alike(sources, target):
    divisions, settings = [folds(target, 3, seed=s) for s in (0, 1)], Search(ridge=RIDGE)
    pulled = source_pulls(sources, target, divisions, settings)
    found = kept(sources, pulled, settings)
    assert found.weights.tolist() == pytest.approx([1.5, 1.5, 0])  # 90 rows over the 60 kept
    torch.testing.assert_close(found.head, sources.fit(found.weights, ridge=RIDGE))
    for end, limit in (("low", pulled.low), ("high", pulled.high)):
        expected = [1.5 if value >= 0 else 0.0 for value in limit.tolist()]
        assert getattr(found, end).tolist() == pytest.approx(expected)
    assert found.high[2] == 0


def test_a_source_is_kept_within_one_standard_error():
    value, error = torch.tensor([-0.1, -0.1, 0.2]), torch.tensor([0.2, 0.05, 0.1])
    assert Pulled(value, error, value, value).helps.tolist() == [True, False, True]
