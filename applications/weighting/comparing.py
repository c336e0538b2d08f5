"""The learned weights beside the controls, on frozen features."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from applications.comparison.statistics import mean_interval
from applications.weighting.controls import CONTROLS, Comparison, Outcome, weighted
from applications.weighting.heads import Examples, accuracy, losses
from applications.weighting.route import Learned

LEARNED = "weights"


@dataclass(frozen=True)
class Compared:
    """One method: its outcome and the seconds it took."""

    method: str
    outcome: Outcome
    seconds: float


def compared(given: Comparison, learned: Learned, controls: Sequence[str]) -> list[Compared]:
    """The learned weights, finished on the target, and each control."""
    started = time.perf_counter()
    ours = weighted(given, learned.weights)
    found = [Compared(LEARNED, ours, learned.seconds + time.perf_counter() - started)]
    for name in controls:
        started = time.perf_counter()
        outcome = CONTROLS[name](given)
        found.append(Compared(name, outcome, time.perf_counter() - started))
    return found


def rows(found: Sequence[Compared], test: Examples) -> list[dict[str, Any]]:
    """For every method its metric on the test examples, and the first method minus it: the mean
    over the examples of right minus right (for regression, of the fall of the squared error), with
    its 95 % interval, over sentences where the examples are their words.
    """
    scores = {each.method: score(each.outcome.head, test) for each in found}
    ours = scores[found[0].method]
    result: list[dict[str, Any]] = []
    for each in found:
        away = ours - scores[each.method]
        first = each is found[0]
        ends = None if first else mean_interval([by_unit(away, test).tolist()])
        result.append(
            {
                "method": each.method,
                "test_metric": accuracy(each.outcome.head, test),
                "difference": None if first else float(away.mean()),
                "low": None if ends is None else ends.low,
                "high": None if ends is None else ends.high,
                "seconds": each.seconds,
                "weights": weights_of(each.outcome),
            }
        )
    return result


def by_unit(values: Tensor, test: Examples) -> Tensor:
    """A value for each unit, with the mean ``r`` of all ``n`` values and the spread of the units:
    ``r + S/n sum_i (v_i - r)`` over the examples of each of ``S`` units; single examples' own.
    """
    if test.together is None:
        return values
    units, mean = test.units, values.mean()
    count = int(units.max()) + 1
    sums = torch.zeros(count, dtype=values.dtype).index_add(0, units, values - mean)
    return mean + sums * count / len(values)


def score(head: Tensor, test: Examples) -> Tensor:
    """What each example adds to the metric ``(n,)``."""
    if test.answers.shape[1] == 1:
        return -2 * losses(head, test)
    outputs = test.features @ head
    return (outputs.argmax(-1) == test.answers.argmax(-1)).double()


def weights_of(outcome: Outcome) -> list[float] | None:
    """The weights as numbers."""
    return None if outcome.weights is None else outcome.weights.tolist()


def named(weights: Tensor, names: Sequence[str]) -> Mapping[str, float]:
    """The weights by source."""
    return dict(zip(names, torch.as_tensor(weights).tolist(), strict=True))
