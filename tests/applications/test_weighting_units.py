"""Examples that stand for others, and words that belong to sentences."""

import math

import pytest
import torch
from scipy import stats

from applications.weighting import route
from applications.weighting.comparing import by_unit
from applications.weighting.controls import Comparison, pooled
from applications.weighting.folds import folds
from applications.weighting.heads import Examples
from applications.weighting.route import learn
from applications.weighting.search import Search, Sources, search
from applications.weighting.weights import FORMS, membership

SPREAD = 5  # a target whose folds disagree


def drawn(number, *, seed=0, together=None):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(number, 4, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 3, (number,), generator=generator)
    return Examples(features, torch.nn.functional.one_hot(classes, 3).double(), together)


@pytest.mark.parametrize("form", FORMS)
def test_an_example_that_stands_for_three_weighs_as_three(form):
    """A source of 30 of which ten were drawn, each three times in the oracle, beside one of 8."""
    examples, target = drawn(18), drawn(12, seed=1)
    source = [[0]] * 10 + [[1]] * 8
    sampled = Sources(examples, membership(source, 2, times=[3.0] * 10 + [1.0] * 8))
    repeated = torch.tensor([*range(10)] * 3 + [*range(10, 18)])
    whole = Sources(examples.select(repeated), membership([[0]] * 30 + [[1]] * 8, 2))
    settings = Search(form=form, ridge=0.05, max_steps=3)
    found, expected = (search(each, target, settings) for each in (sampled, whole))
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=1e-4)
    parts = folds(target, 3, seed=0)
    heads = [
        pooled(Comparison(each, target, parts, settings), target, times=2.0)
        for each in (sampled, whole)
    ]
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=1e-4)


def test_words_of_a_sentence_are_held_out_together():
    sentence = torch.tensor([0, 0, 0, 4, 4, 7, 9, 9, 9, 9])
    target = drawn(10, together=sentence)
    parts = folds(target, 3, seed=0)
    assert sorted(p for _, out in parts for p in out.tolist()) == list(range(10))
    for kept, out in parts:
        assert not set(sentence[kept].tolist()) & set(sentence[out].tolist())
    assert len(folds(target, 9, seed=0)) == 4


def test_an_interval_over_words_is_that_of_their_sentences():
    """The ratio estimator of survey sampling, Cochran (1977), 6.4: the variance of a mean over
    words is that of the sums of residuals over sentences.
    """
    sentence = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    values = torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 1, 1, 0], dtype=torch.float64)
    found = by_unit(values, drawn(10, together=sentence))
    assert found.mean() == pytest.approx(0.6)
    totals, sizes = torch.tensor([2.0, 0, 1, 3]), torch.tensor([3.0, 2, 1, 4])
    residual = totals - 0.6 * sizes
    variance = (residual.square().sum() / 3) / (4 * sizes.mean() ** 2)
    assert found.std() / 2 == pytest.approx(math.sqrt(variance))
    alone = by_unit(values, drawn(10))
    assert stats.sem(alone) == pytest.approx(stats.sem(values))


@pytest.mark.parametrize(
    "form,least,most", [("softmax", 0, 2), ("floor", 0.1, 1.9), ("non_negative", 0, math.inf)]
)
def test_an_interval_ends_where_weights_of_its_form_end(monkeypatch, form, least, most):
    """Errors of nine, so that every interval would go on beyond both ends."""
    wide = torch.full((2,), 9.0, dtype=torch.float64)
    monkeypatch.setattr(route, "jackknife", lambda left_out: (wide, wide))
    sources = Sources(drawn(24), membership([[row % 2] for row in range(24)], 2))
    found = learn(sources, drawn(9, seed=1), Search(form=form, max_steps=1), num_folds=2)
    assert found.low.tolist() == [least] * 2
    ends = [min(most, weight + 9) for weight in found.weights.tolist()]
    assert found.high.tolist() == pytest.approx(ends)


@pytest.mark.parametrize("form", FORMS)
def test_a_trace_keeps_the_weights_of_every_step(form):
    """They start at one, and each differs from the one before it, whatever Adam does in place."""
    sources = Sources(drawn(24), membership([[row % 2] for row in range(24)], 2))
    trace = search(sources, drawn(9, seed=SPREAD), Search(form=form, lr=0.4), steps=2).weights
    assert trace[0].tolist() == pytest.approx([1, 1])
    assert not torch.equal(trace[1], trace[0])
    assert not torch.equal(trace[2], trace[1])
