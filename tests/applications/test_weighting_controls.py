"""The controls, each against what it is to find on sources that are known."""

import pytest
import torch

from applications.options.weighting import CONTROLS as NAMES
from applications.weighting.comparing import compared, rows
from applications.weighting.controls import (
    CONTROLS,
    TARGET_WEIGHTS,
    Comparison,
    agreements,
    cross_validated,
    greedy,
    oracle,
    pooled,
    random_search,
    two_stage,
    uniform,
    union,
    weighted_union,
)
from applications.weighting.folds import folds
from applications.weighting.heads import Examples, accuracy, fit, mean_loss, objective
from applications.weighting.route import learn
from applications.weighting.search import Search, Sources

SIZES = (40, 20, 30)


def labelled(features, wrong=False):
    positive = (features[:, 0] > 0) != wrong
    return Examples(features, torch.nn.functional.one_hot(positive.long(), 2).double())


@pytest.fixture
def given():
    """Two sources that are right, of 40 and 20 rows, one of 30 that is not; a target of 24."""
    generator = torch.Generator().manual_seed(0)

    def drawn(number):
        return torch.randn(number, 3, generator=generator, dtype=torch.float64)

    parts = [labelled(drawn(n), wrong=k == 2) for k, n in enumerate(SIZES)]
    everything = parts[0].joined(parts[1]).joined(parts[2])
    source = torch.tensor([k for k, n in enumerate(SIZES) for _ in range(n)])
    sources = Sources(everything, torch.nn.functional.one_hot(source, 3).double())
    target = labelled(drawn(24))
    settings = Search(ridge=0.05, max_steps=4)
    right = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    return Comparison(sources, target, folds(target, 3, seed=0), settings, fits=12, right=right)


def test_the_options_name_every_control():
    assert set(NAMES) == set(CONTROLS)


def test_the_union_fits_all_examples_alike(given):
    both = given.sources.examples.joined(given.target)
    torch.testing.assert_close(union(given).head, fit(both, both.ones, ridge=0.05))


def test_the_weight_in_a_union_is_the_best_by_cross_validation(given):
    losses = [
        cross_validated(
            given.target, given.parts, lambda kept, at=at: pooled(given, kept, times=at)
        )
        for at in TARGET_WEIGHTS
    ]
    best = TARGET_WEIGHTS[losses.index(min(losses))]
    assert best > 1
    expected = pooled(given, given.target, times=best)
    torch.testing.assert_close(weighted_union(given).head, expected)


def test_target_examples_count_as_often_as_they_are_repeated(given):
    repeated = given.sources.examples
    for _ in range(3):
        repeated = repeated.joined(given.target)
    found = pooled(given, given.target, times=3.0)
    # The mean is over rows, repeated or not, so the ridge is the same.
    expected = fit(repeated, repeated.ones, ridge=0.05)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_uniform_gives_every_source_the_same_share(given):
    shares = uniform(given).weights * given.sources.sizes
    torch.testing.assert_close(shares, torch.full((3,), 30.0, dtype=torch.float64))


def test_agreement_is_the_share_of_labels_that_a_target_model_predicts(given):
    found = agreements(given)
    assert found[:2].min() > 0.8
    assert found[2] < 0.2


@pytest.mark.parametrize("name", ["agreement", "greedy", "helpful", "oracle"])
def test_choices_of_sources_leave_out_the_one_that_lies(given, name):
    weights = CONTROLS[name](given).weights
    assert weights[2] == 0
    assert weights.sum() > 0
    assert float((weights * given.sources.sizes).sum()) == pytest.approx(90)


def test_greedy_stops_where_nothing_lowers_the_loss(given):
    chosen = greedy(given).weights > 0
    best = mean_loss(given.head(greedy(given).weights), given.target)
    for source in (~chosen).nonzero().flatten().tolist():
        more = chosen.double()
        more[source] = 1
        more = more * 90 / (more * given.sources.sizes).sum()
        assert mean_loss(given.head(more), given.target) >= best


def test_random_search_is_no_worse_than_even_weights(given):
    found = random_search(given).weights
    even = mean_loss(given.head(given.even), given.target)
    assert mean_loss(given.head(found), given.target) <= even
    again = random_search(given).weights
    torch.testing.assert_close(found, again, rtol=0, atol=0)


def test_the_oracle_needs_the_truth(given):
    from dataclasses import replace

    with pytest.raises(ValueError, match="oracle needs the share of right labels"):
        oracle(replace(given, right=None))


def test_every_control_of_the_table_beats_chance_and_reports_its_difference(given):
    learned = learn(given.sources, given.target, given.settings, num_folds=2)
    found = compared(given, learned, NAMES)
    table = rows(found, given.target)
    assert [row["method"] for row in table] == ["weights", *NAMES]
    assert table[0]["difference"] is None
    for row, each in zip(table, found, strict=True):
        assert row["test_metric"] == accuracy(each.outcome.head, given.target)
        assert row["test_metric"] > 0.6


def test_two_stage_starts_from_even_weights_and_ends_at_the_target(given):
    head = two_stage(given).head
    assert mean_loss(head, given.target) < mean_loss(given.head(given.even), given.target)


def test_the_objective_pulls_to_its_centre(given):
    centre = torch.ones(3, 2, dtype=torch.float64)
    at_centre = objective(centre, given.target, given.target.ones, ridge=7.0, centre=centre)
    assert float(at_centre) == pytest.approx(mean_loss(centre, given.target))
