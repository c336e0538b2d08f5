"""What is run with MiniLM and LoRA, in which order, at which rates, and how long it takes."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from applications.methods import METHODS as METHOD_TABLE
from benchmarks.reweight.rows import has

Row = Mapping[str, Any]

ROUTE = "minilm_lora"
LEARNED = "weights"
OURS = "helpful"
METHODS = (
    *("two_stage", LEARNED, OURS, "agreement", "oracle", "online", "union", "greedy"),
    "agreeing_examples",
)
RATES = (1e-3, 2e-3, 4e-3)
LABELS = (60, 24, 200)
SEEDS, TUNING_SEEDS, TUNING_LABELS = tuple(range(10)), (100, 101), (60,)
WRITING = "generation"
WRITERS = ("online", "two_stage", "oracle", "union", "uniform")


@dataclass(frozen=True)
class Run:
    """One training of one method: what its row is of."""

    task: str
    route: str
    labels: int
    seed: int
    method: str
    learning_rate: float

    @property
    def key(self) -> dict[str, Any]:
        """What its row holds."""
        return asdict(self)


def tuning(
    task: str, labels: Sequence[int], seeds: Sequence[int], methods: Sequence[str]
) -> Iterator[Run]:
    """Every rate for every method; seeds outermost, so that whole ones come first."""
    for seed, number, rate, method in product(seeds, labels, RATES, methods):
        yield Run(task, ROUTE, number, seed, method, rate)


def finetuning(
    task: str,
    labels: Sequence[int],
    seeds: Sequence[int],
    methods: Sequence[str],
    rates: Mapping[str, float],
) -> Iterator[Run]:
    """Every method at its rate; for each number of labels seeds outermost."""
    for number, seed, method in product(labels, seeds, methods):
        yield Run(task, ROUTE, number, seed, method, rates[method])


def writing(labels: Sequence[int], seeds: Sequence[int], methods: Sequence[str]) -> Iterator[Run]:
    """Every method for texts to be written, at the rate of LoRA in the table of methods."""
    for seed, number, method in product(seeds, labels, methods):
        yield Run("e2e_poisoned", WRITING, number, seed, method, METHOD_TABLE["lora"].learning_rate)


def best_rates(tuned: Sequence[Row], task: str, methods: Sequence[str]) -> dict[str, float]:
    """The learning rate of each method that has the best mean accuracy on the seeds for tuning.

    Only those seeds count at which each of the methods has been tried at every rate, so that all
    have the same tries.

    Raises:
        SystemExit: there is no such seed.
    """
    scores: dict[tuple[str, float], dict[tuple[int, int], float]] = {}
    for row in tuned:
        if row["task"] == task:
            tries = scores.setdefault((row["method"], row["learning_rate"]), {})
            tries[row["seed"], row["labels"]] = row["test_metric"]
    cells = set.intersection(*(set(scores.get(pair, ())) for pair in product(methods, RATES)))
    if not cells:
        raise SystemExit(
            f"argument --methods: there is no seed on which {', '.join(methods)} have been tried "
            f"at each of {', '.join(map(str, RATES))}; run the part tune first"
        )

    def mean(method: str, rate: float) -> float:
        return statistics.fmean(scores[method, rate][cell] for cell in cells)

    return {method: max(RATES, key=lambda rate: mean(method, rate)) for method in methods}


def missing(runs: Iterator[Run], rows: Sequence[Row]) -> list[Run]:
    """The runs without a row."""
    return [run for run in runs if not has(rows, run.key)]


def expected_seconds(runs: Sequence[Run], rows: Sequence[Row]) -> float | None:
    """CPU seconds that runs take: of each what its method took on average, or else what all did;
    None where nothing has been run.
    """
    routes = {run.route for run in runs}
    known = [row for row in rows if row["route"] in routes]
    if not known:
        return None
    taken: dict[str, list[float]] = {}
    for row in known:
        taken.setdefault(row["method"], []).append(row["cpu_seconds"])
    whole = [row["cpu_seconds"] for row in known]
    return sum(statistics.fmean(taken.get(run.method, whole)) for run in runs)
