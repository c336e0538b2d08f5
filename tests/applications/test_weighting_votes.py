"""Votes of several sources, against a posterior by hand and planted qualities."""

import pytest
import torch

from applications.weighting.votes import dawid_skene, majority


def test_the_majority_is_the_share_of_the_votes():
    found = majority([[(0, 1), (1, 1), (2, 0)], []], 2)
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 2 / 3], [0.5, 0.5]]).double())


def test_one_round_is_bayes_rule_with_the_confusion_of_the_majority():
    """Two examples, two sources that always vote, no smoothing; by hand from the majority."""
    votes = [[(0, 0), (1, 0)], [(0, 1), (1, 0)]]
    found = dawid_skene(votes, 2, 2, rounds=1, smoothing=1e-9, abstentions=False)
    # belief (1, 0), (1/2, 1/2): prior 3/4, 1/4; source 0 says 0 with 2/3 of class 0 and 0 of
    # class 1; source 1 always says 0.
    second = torch.tensor([3 / 4 * 1 / 3, 1 / 4 * 1.0])
    expected = torch.stack([torch.tensor([1.0, 0.0]), second / second.sum()]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("abstentions", [False, True])
def test_good_sources_outvote_a_bad_majority(abstentions):
    """Two sources are right in 95 %, three are right in 45 %: the majority errs more."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (400,), generator=generator)
    rates = torch.tensor([0.95, 0.95, 0.45, 0.45, 0.45])
    right = torch.rand(400, 5, generator=generator) < rates
    said = torch.where(right, truth[:, None], 1 - truth[:, None])
    votes = [list(enumerate(row)) for row in said.tolist()]
    found = dawid_skene(votes, 2, 5, abstentions=abstentions).argmax(1)
    by_majority = majority(votes, 2).argmax(1)
    assert (found == truth).double().mean() > 0.93
    assert (by_majority == truth).double().mean() < 0.9


def test_sources_of_one_class_speak_by_their_silence():
    """Two sources that vote in 90 % of class 1 and else never, and one that is a coin."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 2, (400,), generator=generator)
    coin = torch.rand(400, 3, generator=generator)
    votes = [
        [(s, 1) for s in (0, 1) if y == 1 and c[s] < 0.9] + ([(2, 0)] if c[2] < 0.5 else [])
        for y, c in zip(truth.tolist(), coin.tolist(), strict=True)
    ]
    found = dawid_skene(votes, 2, 3).argmax(1)
    assert (found == truth).double().mean() > 0.95
