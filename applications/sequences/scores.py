"""How well a sequence of tasks was learned, and how much of it is left at the end."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """The numbers of one sequence.

    Attributes:
        accuracies: ``accuracies[t][j]`` on task j's test examples after task t, among the classes
            of all tasks up to t; j at most t.
        seen: after each task, on the test examples of all tasks so far.
    """

    accuracies: Sequence[Sequence[float]]
    seen: Sequence[float]

    @property
    def last(self) -> float:
        """On all test examples, after the last task."""
        return self.seen[-1]

    @property
    def average(self) -> float:
        """The mean over the tasks of the accuracy on all classes seen when they were over."""
        return sum(self.seen) / len(self.seen)

    @property
    def forgetting(self) -> float:
        """``1/(T-1) sum_{j<T} (max_{t<T} a_tj - a_Tj)``: what tasks have lost since their best.

        Reference: Chaudhry et al. (2018), arXiv:1801.10112.
        """
        *before, end = self.accuracies
        losses = [
            max(row[j] for row in before[j:]) - end[j] for j in range(len(self.accuracies) - 1)
        ]
        return sum(losses) / len(losses)


def accuracies(predicted: Tensor, labels: Tensor, ends: Sequence[int]) -> tuple[list[float], float]:
    """The accuracy on every task that has come, and on all of their examples.

    Args:
        predicted: classes, shape ``(examples,)``.
        labels: the true ones.
        ends: how many classes had come when each task was over.
    """
    right = (predicted == labels).double()
    task = torch.bucketize(labels, torch.tensor(list(ends)), right=True)
    return [float(right[task == j].mean()) for j in range(len(ends))], float(right.mean())
