"""Several votes on each example, without their sources' qualities being known."""

from collections.abc import Sequence

import torch
from torch import Tensor

Votes = Sequence[Sequence[tuple[int, int]]]
"""For each example its votes: source and class."""


def majority(votes: Votes, classes: int) -> Tensor:
    """The share of each class among the votes ``(examples, classes)``; all alike without any."""
    counts = torch.zeros(len(votes), classes, dtype=torch.float64)
    for row, given in enumerate(votes):
        for _, vote in given:
            counts[row, vote] += 1
    counts[counts.sum(1) == 0] = 1.0
    return counts / counts.sum(1, keepdim=True)


def dawid_skene(
    votes: Votes,
    classes: int,
    sources: int,
    *,
    rounds: int = 50,
    smoothing: float = 0.1,
    abstentions: bool = True,
) -> Tensor:
    """The probability of each class ``(examples, classes)`` under a confusion matrix a source.

    Expectation maximisation from the majority: ``p(y_i = k) ~ prior_k prod_j conf_j[k, v_ij]``,
    then prior and confusion matrices anew from these probabilities, each count raised by
    ``smoothing``.

    Args:
        votes: of each example.
        classes: how many there are.
        sources: how many vote.
        rounds: of expectation maximisation.
        smoothing: added to every count.
        abstentions: whether no vote is an answer like others. Where a source only ever votes for
            one class, it says nothing otherwise.

    Reference: Dawid and Skene (1979), Maximum likelihood estimation of observer error-rates using
    the EM algorithm, Journal of the Royal Statistical Society C 28(1).
    """
    said = torch.zeros(len(votes), sources, classes + 1, dtype=torch.float64)
    if abstentions:
        said[:, :, classes] = 1
    for row, given in enumerate(votes):
        for source, vote in given:
            said[row, source] = 0
            said[row, source, vote] = 1
    belief = majority(votes, classes)
    for _ in range(rounds):
        prior = (belief.mean(0) + 1e-12).log()
        counts = torch.einsum("ik,ijv->jkv", belief, said) + smoothing
        confusion = (counts / counts.sum(2, keepdim=True)).log()
        belief = (prior + torch.einsum("ijv,jkv->ik", said, confusion)).softmax(1)
    return belief
