"""The tables of docs/defaults.md."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from applications.methods import METHODS
from benchmarks.defaults.grid import CHECKED_ON, TUNED_ON, VARIANTS
from benchmarks.reweight.rows import read

Row = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first two are numbers."""
    align = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, align, *rows))


def tried(rows: Sequence[Row], tasks: Sequence[str], split: str) -> str:
    """A row for each variant and its rates, the default in bold: the mean metric over the seeds on
    each task, in percent, and the largest distance from the best rate of the variant on a task.
    """
    chosen = [row for row in rows if row["split"] == split]
    lines = []
    for name, variant in VARIANTS.items():
        own = [row for row in chosen if row["variant"] == name]
        best = {task: max(means(own, task).values(), default=None) for task in tasks}
        rates_tried = sorted({used(row) for row in own})
        for rate in rates_tried:
            found = {task: means(own, task).get(rate) for task in tasks}
            away = [
                found[t] - best[t] for t in tasks if found[t] is not None and best[t] is not None
            ]
            bold = "**" if rate == variant.default else ""
            lines.append(
                [
                    f"`{name}`",
                    f"{bold}{rate:g}{bold}",
                    *("" if value is None else f"{100 * value:.1f}" for value in found.values()),
                    f"{100 * min(away):.1f}" if away and len(rates_tried) > 1 else "",
                ]
            )
    if not lines:
        return "No run yet."
    return table(["method", "learning rate", *tasks, "furthest from its best"], lines)


def of_model(rows: Sequence[Row], model: str) -> list[Row]:
    """The rows of one model."""
    return [row for row in rows if row["model"] == model]


def used(row: Row) -> float:
    """The learning rate of a row."""
    return float(row["used"][0] if row["learning_rate"] is None else row["learning_rate"])


def means(rows: Sequence[Row], task: str) -> dict[float, float]:
    """The mean metric over the seeds by learning rate."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row["task"] == task:
            found.setdefault(used(row), []).append(row["metric"])
    return {rate: fmean(values) for rate, values in found.items()}


def rates() -> str:
    """The learning rates of the table of methods."""
    lines = [
        [
            f"`{row.name}`",
            "all weights" if row.config is None else "an adapter",
            f"{row.learning_rate:g}"
            + (
                f" ({row.shrunk_learning_rate:g} where softmax values sum to one)"
                if row.shrunk_learning_rate
                else ""
            ),
            "the same" if row.upper_learning_rate is None else f"{row.upper_learning_rate:g}",
        ]
        for row in METHODS.values()
    ]
    return table(["method", "trains", "learning rate", "upper learning rate"], lines)


def sizes(rows: Sequence[Row]) -> str:
    """How large the hypergradient of an upper variable is, and how far the variables went."""
    lines = []
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name and "hypergradient" in row]
        if own:
            ends = [
                min(row["hypergradient"][0] for row in own),
                fmean(row["hypergradient"][1] for row in own),
                max(row["hypergradient"][2] for row in own),
            ]
            moved = fmean(row["moved"] for row in own)
            numbers = [f"{value:.0e}" for value in ends]
            lines.append([f"`{name}`", str(len(own)), *numbers, f"{moved:.3f}"])
    head = ["method", "runs", "5th percentile, least", "median", "95th, largest", "moved"]
    return table(head, lines)


def epsilons(rows: Sequence[Row]) -> str:
    """The same by epsilon, over which the percentiles are given."""
    lines = []
    for row in rows:
        epsilon = row["upper_adam_epsilon"]
        ratios = [f"{size / epsilon:.0e}" for size in row["hypergradient"]]
        lines.append([f"`{row['variant']}`", f"{epsilon:.0e}", *ratios, f"{row['moved']:.3f}"])
    return table(["method", "epsilon", "5th over epsilon", "median", "95th", "moved"], lines)


def write(results: Path, epsilon_results: Path, page: Path) -> None:
    """Write the tables between the page's marks."""
    rows = read(results)
    text = page.read_text(encoding="utf-8")
    parts = {
        "rates": rates(),
        "tuned": tried(of_model(rows, "minilm"), TUNED_ON, "validation"),
        "second model": tried(of_model(rows, "smollm2"), TUNED_ON, "validation"),
        "checked": tried(of_model(rows, "minilm"), CHECKED_ON, "test"),
        "hypergradients": sizes(rows),
        "epsilons": epsilons(read(epsilon_results)),
    }
    for name, made in parts.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(first)
        text = f"{before}{first}\n{made}\n{last}{rest.partition(last)[2]}"
    page.write_text(text, encoding="utf-8")
