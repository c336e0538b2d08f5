"""Paired statistics: two methods on the same subsets of the same tasks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from applications.comparison.statistics import LEVEL
from benchmarks.grid.rows import Row

Limits = tuple[float, float] | None


@dataclass(frozen=True)
class Paired:
    """What the differences of two methods say.

    Attributes:
        num_pairs: subsets of tasks that both methods have.
        num_tasks: tasks among them.
        mean: of the differences.
        interval: of the mean over all pairs, 95 %, Student's t.
        p_t: of the paired t-test.
        p_wilcoxon: of Wilcoxon's signed-rank test; None where all differences are zero.
        tasks_interval: of the mean over tasks in general: Student's t over the tasks' means. For as
            many subsets of each task this is the analysis of the mixed model d_ts = m + a_t + e_ts
            with a random effect a_t of the task.
    """

    num_pairs: int
    num_tasks: int
    mean: float
    interval: Limits
    p_t: float | None
    p_wilcoxon: float | None
    tasks_interval: Limits


def differences(
    rows: Sequence[Row], first: str, second: str, outcome: str
) -> dict[str, dict[int, float]]:
    """The first method's outcome less the second's, by task and seed, where both have one."""
    values: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row.get(outcome) is not None:
            values[row["task"], row["seed"]][row["method"]] = row[outcome]
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for (task, seed), methods in sorted(values.items()):
        if first in methods and second in methods:
            found[task][seed] = methods[first] - methods[second]
    return dict(found)


def paired(rows: Sequence[Row], first: str, second: str, outcome: str) -> Paired | None:
    """The comparison of two methods; None without a common subset."""
    by_task = differences(rows, first, second, outcome)
    numbers = [value for task in by_task.values() for value in task.values()]
    if not numbers:
        return None
    means = [float(np.mean(list(task.values()))) for task in by_task.values()]
    p_t = stats.ttest_1samp(numbers, 0.0).pvalue if spread(numbers) else None
    return Paired(
        num_pairs=len(numbers),
        num_tasks=len(means),
        mean=float(np.mean(numbers)),
        interval=interval(numbers),
        p_t=None if p_t is None else float(p_t),
        p_wilcoxon=float(stats.wilcoxon(numbers).pvalue) if any(numbers) else None,
        tasks_interval=interval(means),
    )


def spread(numbers: Sequence[float]) -> bool:
    """Whether there are several numbers that are not all equal."""
    return len(numbers) > 1 and float(np.ptp(numbers)) > 0


def interval(numbers: Sequence[float]) -> Limits:
    """Student's interval of the mean; None without a spread."""
    if not spread(numbers):
        return None
    found = stats.ttest_1samp(numbers, 0.0).confidence_interval(LEVEL)
    return float(found.low), float(found.high)
