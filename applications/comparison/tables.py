"""The tables of a comparison's page: finished cells, with what may be said of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from applications.comparison import statistics
from applications.comparison.figures import named
from applications.comparison.results import Gathered, address
from applications.comparison.summary import Cell, Step, cell_of, family, pairs
from applications.pages.table import DASH, Entry, Mark, Table, entries, shown

MINUS = "\u2212"
Spreads = Mapping[str, Mapping[str, float] | None]
OUTCOME_NAMES = {
    "test_metric": "test metric",
    "test_loss": "test loss",
    "ece": "ECE",
    "brier": "Brier score",
    "calibrated_loss": "test loss after temperature scaling",
    "calibrated_ece": "ECE after temperature scaling",
    "calibrated_brier": "Brier score after temperature scaling",
    "generalisation_gap": "generalisation gap",
}

SCALED = {
    "temperature": "temperature",
    "calibrated_loss": "test loss with it",
    "calibrated_ece": "ECE with it",
    "calibrated_brier": "Brier with it",
}
"""The columns of a table of a task whose runs have held-out data."""


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number with fixed decimals, fewer above a hundred; a dash for None."""
    if value is None:
        return DASH
    digits = digits if abs(value) < 100 else 1
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def spread(one: Mapping[str, float] | None, runs: int) -> str:
    """Mean and standard deviation (not of one value); the number of values if not all runs."""
    if one is None:
        return DASH
    few = "" if one["n"] == runs else f" (n={one['n']})"
    if one["std"] is None:
        return f"{number(one['mean'])}{few}"
    return f"{number(one['mean'])} \u00b1 {number(one['std'])}{few}"


def cost(one: Mapping[str, float] | None) -> str:
    """The mean of a cost, rounded to a whole number."""
    return DASH if one is None else f"{one['mean']:,.0f}"


def interval(row: Mapping[str, Any], name: str = "interval") -> str:
    """An interval, or a dash."""
    found = row[name]
    if found is None:
        return DASH
    low, high = (number(limit, 4, sign=True) for limit in found)
    return f"[{low}, {high}]"


def mark(row: Mapping[str, Any]) -> Mark:
    """What a comparison says of its first variant."""
    if row["better"] is None:
        return ""
    return "better" if row["better"] == row["first"] else "worse"


def beside(mean: str, row: Mapping[str, Any] | None) -> Entry:
    """A mean, and below it a mean difference with its number of pairs and its interval."""
    if row is None:
        return Entry(mean)
    apart = number(row["difference"], 4, sign=True)
    return Entry(f"{mean}\n{apart} (n={row['num_pairs']})\n{interval(row)}", mark(row))


def headline(found: Gathered, summary: Mapping[str, Any], baseline: str) -> Table:
    """A row a variant: means over the tasks, and paired differences to the baseline."""
    results, variants = found.results, found.variants
    outcomes = [
        name
        for name in OUTCOME_NAMES
        if name not in SCALED and any(result.get(name) is not None for result in results)
    ]
    by_pair = {
        (name, row["first"]): row
        for name in outcomes
        for row in family(results, pairs(variants, baseline), name)
    }
    one_metric = len({str(result["metric_name"]) for result in results}) == 1
    rows = []
    for variant in variants:
        mine = [cell for cell in summary["cells"] if cell["variant"] == variant]
        row = entries(variant, str(sum(len(cell["seeds"]) for cell in mine)))
        for name in outcomes:
            means = [one["mean"] for cell in mine if (one := cell["final"][name]) is not None]
            mixed = not means or (name == "test_metric" and not one_metric)
            mean = DASH if mixed else number(sum(means) / len(means))
            row.append(beside(mean, by_pair.get((name, variant))))
        rows.append(row)
    head = ["variant", "runs", *(OUTCOME_NAMES[name] for name in outcomes)]
    return Table(
        f"All tasks, final step, against {baseline}",
        head,
        rows,
        f"Means are over the means of the tasks and train sizes; below each, its difference to "
        f"{baseline}, paired by task, train size and seed, with the number of pairs and a 95 % "
        f"interval. Where the interval leaves zero out, \u25b2 means better and \u25bc worse. "
        f"Intervals are about these tasks and are not corrected for the number of variants; Holm's "
        f"p-values below are.",
    )


def cell_table(found: Gathered, summary: Mapping[str, Any], cell: Cell, step: Step) -> Table | None:
    """A row a variant of one task and train size; None without numbers at that step."""
    mine = [c for c in summary["cells"] if (c["task"], c["train_size"]) == cell and c[step]]
    if not mine:
        return None
    metric = mine[0]["metric_name"]
    ahead = clearly_ahead(found, cell, step)
    scaled = SCALED if any(one[step]["temperature"] for one in mine) else {}
    rows = []
    for one in mine:
        values: Spreads = one[step]
        runs = len(one["seeds"])
        rest = ("train_metric", "generalisation_gap", "validation_metric", "test_loss", "ece")
        row = [
            *entries(one["variant"], str(runs)),
            Entry(spread(values["test_metric"], runs), "better" if one["variant"] == ahead else ""),
            *entries(*(spread(values[name], runs) for name in (*rest, "brier", *scaled))),
            *entries(*(cost(one["costs"][name]) for name in ("num_gradients", "wall_seconds"))),
        ]
        rows.append(row)
    head = [
        *("variant", "runs", f"test {metric}", f"train {metric}", "gap", f"validation {metric}"),
        *("test loss", "ECE", "Brier", *scaled.values(), "gradient units", "seconds"),
    ]
    return Table(f"{named(cell)}, {step} step", head, rows, verdict(mine, ahead, metric, step))


def class_table(found: Gathered, cell: Cell) -> Table | None:
    """F1 of each class and variant in one task and train size; None where no run tells of it."""
    scores: dict[str, dict[str, list[float]]] = {}
    for result in found.results:
        if cell_of(result) == cell:
            for name, one in (result.get("per_class") or {}).items():
                values = scores.setdefault(name, {}).setdefault(str(result["variant"]), [])
                values += [] if one["f1"] is None else [one["f1"]]
    if not scores:
        return None
    rows = [
        entries(name, *(mean_and_deviation(own.get(v, [])) for v in found.variants))
        for name, own in scores.items()
    ]
    text = "Mean \u00b1 standard deviation over the seeds, on the test split, at the final step."
    title = f"{named(cell)}, F1 of each class"
    return Table(title, ["class", *found.variants], rows, text, folded=True)


def mean_and_deviation(values: Sequence[float]) -> str:
    """The two of some values, or a dash."""
    one = statistics.spread(values)
    return DASH if one is None else spread(asdict(one), one.n)


def clearly_ahead(found: Gathered, cell: Cell, step: Step) -> str | None:
    """The variant whose paired differences in the test metric to all others leave zero out."""
    there = {str(result["variant"]) for result in found.results if cell_of(result) == cell}
    rows = family(found.results, pairs(sorted(there), None), "test_metric", step=step, cell=cell)
    wins = Counter(row["better"] for row in rows)
    clear = [name for name in there if wins[name] == len(there) - 1]
    return clear[0] if clear and len(there) > 1 else None


def verdict(mine: Sequence[Mapping[str, Any]], ahead: str | None, metric: str, step: str) -> str:
    """What the table allows to say."""
    text = "Mean \u00b1 standard deviation over the seeds. "
    if step == "selected":
        text += (
            "Numbers at the step with the best score on held-out data; costs are of the whole run. "
        )
    if ahead is not None:
        return (
            f"{text}{ahead} is ahead of every other in test {metric}, each interval without zero."
        )
    text += f"No variant is ahead of every other in test {metric} with intervals that leave zero "
    return text + "out."


def comparison_table(rows: Sequence[Mapping[str, Any]], title: str, *, folded: bool) -> Table:
    """A row a pair in one outcome."""
    head = [
        *("pair", "pairs", "difference", "95 % interval", "over tasks in general"),
        *("better : equal : worse", "rank-biserial r", "p (Wilcoxon)", "p (Holm)"),
    ]
    body = []
    for row in rows:
        wins = f"{row['first_better']} : {row['ties']} : {row['second_better']}"
        body.append(
            [
                Entry(f"{row['first']} less {row['second']}"),
                Entry(str(row["num_pairs"])),
                Entry(number(row["difference"], 4, sign=True), mark(row)),
                Entry(interval(row)),
                Entry(interval(row, "interval_tasks")),
                Entry(wins),
                Entry(number(row["rank_biserial"], 2, sign=True)),
                *(Entry(p_text(row[name])) for name in ("p_value", "p_holm")),
            ]
        )
    kept = ("interval_reason", "interval_tasks_reason", "p_reason")
    reasons = dict.fromkeys(row[name] for row in rows for name in kept if row[name])
    better = "more is better" if rows[0]["more_is_better"] else "less is better"
    text = f"{better.capitalize()}." + "".join(f" {DASH}: {reason}." for reason in reasons)
    return Table(title, head, body, text, folded)


def p_text(p: float | None) -> str:
    """A p-value with three digits."""
    return DASH if p is None else f"{p:.3g}"


def options_table(found: Gathered) -> Table | None:
    """The options in which the variants differ; None where the options are not known."""
    if not found.options:
        return None
    first: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for place, options in sorted(found.options.items(), key=lambda item: item[0][3]):
        first.setdefault(place[:3], options)
    rows = []
    ignored = {"output_dir", "seed", "split_seed", "task_name", "data_dir", "max_train_samples"}
    names = sorted({name for options in first.values() for name in options} - ignored)
    for name in names:
        values = {
            variant: list(
                dict.fromkeys(
                    shown(one.get(name)) for (_, _, other), one in first.items() if other == variant
                )
            )
            for variant in found.variants
        }
        if len({tuple(texts) for texts in values.values()}) > 1 or any(
            len(texts) > 1 for texts in values.values()
        ):
            rows.append(entries(name, *(" / ".join(texts) for texts in values.values())))
    text = "Options that are not the same for all; several values: they differ between tasks."
    head = ["option", *found.variants]
    return Table("What differs between the variants", head, rows, text, prose=True)


def failure_table(found: Gathered) -> Table | None:
    """The runs that failed or were not finished."""
    rows = [
        entries(str(failure["folder"]), str(failure["reason"]), "\n".join(failure["log"][-4:]))
        for failure in found.failures
    ]
    rows += [entries(folder, "not finished", "") for folder in found.unfinished]
    head = ["run", "what happened", "last lines of its log"]
    return Table("Runs without results", head, rows, prose=True) if rows else None


def devices_table(summary: Mapping[str, Any]) -> Table:
    """Devices and versions, with the number of runs of each."""
    rows = [entries(str(one["value"]), str(one["num_runs"])) for one in summary["devices"]]
    for one in summary["versions"]:
        text = ", ".join(f"{name} {version}" for name, version in (one["value"] or {}).items())
        rows.append(entries(text, str(one["num_runs"])))
    return Table("Devices and versions", ["what", "runs"], rows, prose=True)


def seeds_of(found: Gathered) -> list[int]:
    """All seeds, in order."""
    return sorted({address(result)[3] for result in found.results})
