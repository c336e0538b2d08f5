"""The numbers of a comparison: means with their spread, and paired comparisons of the variants."""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from applications.comparison import statistics
from applications.comparison.results import Gathered, Result, address, size_order
from applications.comparison.statistics import Interval
from applications.runs.selection import SMALLER_IS_BETTER

Step = Literal["final", "selected"]
STEPS: tuple[Step, ...] = ("final", "selected")
OUTCOMES: Mapping[str, int] = {
    "test_metric": 1,
    "test_loss": -1,
    "ece": -1,
    "brier": -1,
    "calibrated_loss": -1,
    "calibrated_ece": -1,
    "calibrated_brier": -1,
    "generalisation_gap": -1,
}
"""What is compared, and whether more of it is better (1) or worse (-1)."""

EXTRA = ("train_metric", "train_loss", "validation_metric", "temperature")
COSTS = (
    *("num_gradients", "num_hvps", "wall_seconds", "peak_memory_mb", "num_lower_steps"),
    *("trainable_params", "upper_params"),
)
Pair = tuple[str, str]
Cell = tuple[str, str]


def value(result: Result, name: str, step: Step) -> float | None:
    """A result's number at the final step, or at the selected one; None where there is none."""
    if step == "final":
        found = result.get(name)
    else:
        selected = result.get("selected") or {}
        found = selected.get(name)
        if name == "generalisation_gap":
            train, test = selected.get("train_metric"), selected.get("test_metric")
            found = None if train is None or test is None else train - test
    return None if found is None else float(found)


def direction(outcome: str, results: Sequence[Result]) -> int | None:
    """1 where more of the outcome is better, -1 where less is, None where the metrics disagree."""
    if outcome not in ("test_metric", "generalisation_gap"):
        return OUTCOMES[outcome]
    signs = {-1 if result["metric_name"] in SMALLER_IS_BETTER else 1 for result in results}
    return OUTCOMES[outcome] * signs.pop() if len(signs) == 1 else None


def cell_of(result: Result) -> Cell:
    """Task and train size of a result."""
    return str(result["task_label"]), str(result["train_size_label"])


def cells_of(results: Sequence[Result]) -> list[Cell]:
    """The tasks and train sizes there are, in order."""
    return sorted({cell_of(result) for result in results}, key=lambda c: (c[0], size_order(c[1])))


def compared(
    results: Sequence[Result], pair: Pair, outcome: str, *, step: Step = "final"
) -> dict[str, Any] | None:
    """One paired comparison; None where no task, size and seed has both variants' numbers.

    ``difference`` is the first variant's outcome minus the second's, ``better`` the variant that
    the interval favours, None where it includes zero; ``interval_tasks`` is about tasks in general.
    """
    sign = direction(outcome, results)
    found: tuple[dict[Any, float], dict[Any, float]] = ({}, {})
    for result in results:
        task, size, variant, seed = address(result)
        number = value(result, outcome, step)
        for values, wanted in zip(found, pair, strict=True):
            if variant == wanted and number is not None:
                values[task, size, seed] = number
    paired = statistics.differences(*found)
    if not paired or sign is None:
        return None
    by_cell, by_task = defaultdict[Any, list[float]](list), defaultdict[Any, list[float]](list)
    for key, difference in paired.items():
        by_cell[key[:2]].append(difference)
        by_task[key[0]].append(difference)
    numbers = list(paired.values())
    mean = sum(numbers) / len(numbers)
    interval = statistics.mean_interval(list(by_cell.values()))
    in_general = statistics.block_interval(list(by_task.values()))
    test = statistics.signed_rank(numbers)
    wins = sum(sign * number > 0 for number in numbers)
    ties = sum(number == 0 for number in numbers)
    favoured = pair[0] if sign * mean > 0 else pair[1]
    return {
        "outcome": outcome,
        "step": step,
        "first": pair[0],
        "second": pair[1],
        "more_is_better": sign > 0,
        "num_pairs": len(numbers),
        "num_tasks": len(by_task),
        "difference": mean,
        "interval": limits(interval),
        "interval_how": interval.how,
        "interval_reason": interval.reason,
        "interval_tasks": limits(in_general),
        "interval_tasks_reason": in_general.reason,
        "better": favoured if interval.excludes_zero else None,
        "wilcoxon_statistic": test.statistic,
        "p_value": test.p_value,
        "p_reason": test.reason,
        "num_zeros": test.num_zeros,
        "rank_biserial": statistics.rank_biserial(numbers),
        "first_better": wins,
        "ties": ties,
        "second_better": len(numbers) - wins - ties,
    }


def limits(interval: Interval) -> list[float] | None:
    """The limits of an interval, None where there is none."""
    return None if interval.low is None or interval.high is None else [interval.low, interval.high]


def pairs(variants: Sequence[str], reference: str | None) -> list[Pair]:
    """The pairs to compare: all of them, or every other variant with the reference."""
    if reference is None:
        return list(itertools.combinations(variants, 2))
    return [(variant, reference) for variant in variants if variant != reference]


def family(
    results: Sequence[Result],
    shown: Sequence[Pair],
    outcome: str,
    *,
    step: Step = "final",
    cell: Cell | None = None,
) -> list[dict[str, Any]]:
    """The comparisons of all pairs in one outcome, Holm's correction over them included."""
    chosen = [result for result in results if cell is None or cell_of(result) == cell]
    rows = [row for pair in shown if (row := compared(chosen, pair, outcome, step=step))]
    adjusted = statistics.holm([row["p_value"] for row in rows])
    place = {"task": cell and cell[0], "train_size": cell and cell[1]}
    return [{**place, **row, "p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def spreads(results: Sequence[Result], names: Sequence[str], step: Step) -> dict[str, Any]:
    """Mean, standard deviation and number of the values of each name."""
    found = {}
    for name in names:
        numbers = [number for r in results if (number := value(r, name, step)) is not None]
        one = statistics.spread(numbers)
        found[name] = one and {"mean": one.mean, "std": one.std, "n": one.n}
    return found


def cell_summary(results: Sequence[Result], cell: Cell, variant: str) -> dict[str, Any]:
    """The spreads of a variant in a cell, over its seeds."""
    chosen = [r for r in results if cell_of(r) == cell and r["variant"] == variant]
    names = [*OUTCOMES, *EXTRA]
    selected = spreads(chosen, names, "selected")
    return {
        "task": cell[0],
        "train_size": cell[1],
        "variant": variant,
        "metric_name": chosen[0]["metric_name"],
        "seeds": sorted(int(result["seed"]) for result in chosen),
        "final": spreads(chosen, names, "final"),
        "selected": selected if any(selected.values()) else None,
        "costs": spreads(chosen, COSTS, "final"),
    }


def summarised(found: Gathered, *, reference: str | None = None) -> dict[str, Any]:
    """The content of OUT/summary.json.

    Args:
        found: the results.
        reference: compare every other variant with this one only, which leaves more power to each
            test; None compares all pairs.
    """
    results, variants = found.results, found.variants
    cells = cells_of(results)
    there = {(cell_of(result), str(result["variant"])) for result in results}
    shown = pairs(variants, reference)
    return {
        "level": statistics.LEVEL,
        "num_runs": len(results),
        "variants": variants,
        "reference": reference,
        "cells": [
            cell_summary(results, cell, variant)
            for cell in cells
            for variant in variants
            if (cell, variant) in there
        ],
        "comparisons": [
            row
            for step in STEPS
            for outcome in OUTCOMES
            for row in family(results, shown, outcome, step=step)
        ],
        "cell_comparisons": [
            row
            for cell in cells
            for step in STEPS
            for outcome in OUTCOMES
            for row in family(results, shown, outcome, step=step, cell=cell)
        ],
        "failures": [dict(failure) for failure in found.failures],
        "unfinished": list(found.unfinished),
        "devices": by_value(results, "device"),
        "versions": by_value(results, "versions"),
        "notes": notes(found),
    }


def by_value(results: Sequence[Result], name: str) -> list[dict[str, Any]]:
    """The distinct values of a name, and how many results have each."""
    found: list[dict[str, Any]] = []
    for result in results:
        for entry in found:
            if entry["value"] == result.get(name):
                entry["num_runs"] += 1
                break
        else:
            found.append({"value": result.get(name), "num_runs": 1})
    return found


def notes(found: Gathered) -> list[str]:
    """What a reader of the numbers must know: what is mixed, missing or of different size."""
    results, remarks = found.results, []
    for name, words in {"device": "devices", "versions": "versions of packages"}.items():
        kinds = by_value(results, name)
        if len(kinds) > 1:
            counts = ", ".join(str(kind["num_runs"]) for kind in kinds)
            remarks.append(
                f"The runs are from {len(kinds)} {words} ({counts} runs): a difference between "
                f"variants may be one between {words}, and seconds are not comparable."
            )
    for cell in cells_of(results):
        seeds = defaultdict[str, set[int]](set)
        for result in results:
            if cell_of(result) == cell:
                seeds[str(result["variant"])].add(address(result)[3])
        if len({frozenset(one) for one in seeds.values()}) > 1 or len(seeds) < len(found.variants):
            counts = ", ".join(f"{name} {len(seeds.get(name, ()))}" for name in found.variants)
            remarks.append(
                f"{cell[0]}, {cell[1]} training examples: the variants have different seeds "
                f"({counts} runs); means are over different runs, paired numbers over common seeds."
            )
        remarks += fewer(results, cell)
    metrics = sorted({str(result["metric_name"]) for result in results})
    if len(metrics) > 1:
        remarks.append(
            f"The tasks have different metrics ({', '.join(metrics)}): a mean difference over all "
            f"tasks mixes them; read the tasks one by one."
        )
    if found.failures or found.unfinished:
        remarks.append(
            f"{len(found.failures)} runs failed and {len(found.unfinished)} are not finished: they "
            f"are in no number here, which favours a variant whose bad runs fail."
        )
    return remarks


def fewer(results: Sequence[Result], cell: Cell) -> list[str]:
    """What is to be said of a train size that the data of its task do not have."""
    asked = size_order(cell[1])
    counts = {int(result["train_size"]) for result in results if cell_of(result) == cell}
    if math.isinf(asked) or min(counts) >= asked:
        return []
    return [f"{cell[0]}, {cell[1]} training examples: there are only {min(counts):,}."]
