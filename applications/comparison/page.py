"""The report of a grid: summary.json and one self-contained HTML page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from applications.comparison import figures, tables
from applications.comparison.results import Gathered, gathered
from applications.comparison.settings import near
from applications.comparison.statistics import LEVEL
from applications.comparison.summary import OUTCOMES, STEPS, Cell, cells_of, summarised
from applications.comparison.tables import OUTCOME_NAMES
from applications.errors import UsageError
from applications.pages import page as pages
from applications.pages.drawing import Drawing
from applications.pages.locking import held
from applications.pages.page import Section
from applications.pages.table import Table
from applications.pages.writing import write_json, write_whole

STATISTICS = (
    "Differences are paired by task, train size and seed, the first variant's outcome less the "
    "second's. The 95 % interval of the mean difference takes the tasks and train sizes as they "
    "are and lets the seeds vary: a bootstrap within each task and train size, adjusted for small "
    "samples, and Student's interval below five degrees of freedom. Where there are five tasks, a "
    "second interval speaks about tasks in general. p-values are of the exact two-sided Wilcoxon "
    "signed-rank test, differences of zero left out, and of Holm's correction over the pairs of "
    "one table. Seeds of one task share its test data, so that no p-value here speaks about new "
    "tasks. The rank-biserial correlation is 1 where all differences are positive."
)


def write_report(out: Path, *, page: Path | None = None, reference: str | None = None) -> Path:
    """Write OUT/summary.json and the page; returns where the page is.

    Args:
        out: the folder of a grid.
        page: where the page goes; default: OUT/report.html.
        reference: compare every variant with this one only; default: what the last invocation of
            the grid said.

    Raises:
        UsageError: there are no results, or none of the reference.
    """
    path = page or out / "report.html"
    with held(out / "results.lock", wait=True):
        found = gathered(out)
        if not found.results:
            raise UsageError(f"there are no finished runs below {out}")
        if reference is not None and reference not in found.variants:
            remedy = near(reference, found.variants)
            raise UsageError(f"argument --reference: no results of {reference!r}: {remedy}")
        summary = summarised(found, reference=reference or found.reference)
        write_json(out / "summary.json", summary)
        text = rendered(found, summary)
        write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))
    return path


def rendered(found: Gathered, summary: Mapping[str, Any]) -> str:
    """The HTML text of the page."""
    cells = cells_of(found.results)
    models = sorted({str(result["model"]) for result in found.results})
    return pages.page(
        title=f"Comparison of {', '.join(found.variants)}",
        lead=f"{len(found.results)} runs of {', '.join(models)} on "
        f"{'; '.join(figures.named(cell) for cell in cells)}; seeds "
        f"{', '.join(map(str, tables.seeds_of(found)))}. Intervals are at {LEVEL:.0%}.",
        notes=summary["notes"],
        sections=sections(found, summary, cells),
    )


def sections(found: Gathered, summary: Mapping[str, Any], cells: Sequence[Cell]) -> list[Section]:
    """The parts of the page."""
    baseline = summary["reference"] or default_baseline(found.variants)
    parts = [
        Section(
            "Overview",
            tables=[tables.headline(found, summary, baseline)],
            drawings=[d for d in [overview_drawing(summary)] if d],
        ),
        Section("By task", tables=by_task(found, summary, cells)),
        Section(
            "Quality against cost",
            "A gradient unit is one forward and one backward pass of the batches of an update. "
            "Variants are comparable at equal cost where they stand above one another.",
            drawings=each(figures.costs, found, cells),
        ),
        Section("Learning curves", drawings=each(figures.curves, found, cells)),
        Section("Reliability", drawings=each(figures.reliability, found, cells)),
        Section("Paired comparisons", STATISTICS, tables=comparison_tables(summary)),
    ]
    failures, options = tables.failure_table(found), tables.options_table(found)
    if failures is not None:
        parts.append(Section("Failures", tables=[failures]))
    commands = "\n".join(str(line["command"]) for line in found.invocations)
    parts.append(
        Section(
            "How it was run",
            tables=[*([options] if options else []), tables.devices_table(summary)],
            blocks=[commands] if commands else [],
        )
    )
    return parts


def default_baseline(variants: Sequence[str]) -> str:
    """Plain LoRA if it is there, else the first variant."""
    return "lora" if "lora" in variants else variants[0]


def each(
    draw: Callable[[Gathered, Cell], Drawing | None], found: Gathered, cells: Sequence[Cell]
) -> list[Drawing]:
    """The drawings of all tasks and train sizes that have one."""
    return [drawing for cell in cells if (drawing := draw(found, cell)) is not None]


def by_task(found: Gathered, summary: Mapping[str, Any], cells: Sequence[Cell]) -> list[Table]:
    """The tables of every task and train size: at the final and the selected step, by class."""
    made: list[Table | None] = []
    for cell in cells:
        made += [tables.cell_table(found, summary, cell, step) for step in STEPS]
        made.append(tables.class_table(found, cell))
    return [table for table in made if table is not None]


def overview_drawing(summary: Mapping[str, Any]) -> Drawing | None:
    """The paired differences in the test metric over all tasks, drawn."""
    chosen = [
        row
        for row in summary["comparisons"]
        if row["outcome"] == "test_metric" and row["step"] == "final"
    ]
    return figures.forest(chosen, "Paired differences in the test metric, all tasks")


def comparison_tables(summary: Mapping[str, Any]) -> list[Table]:
    """A table for every outcome and step; those after the first are folded."""
    made: list[Table] = []
    for step in STEPS:
        for outcome in OUTCOMES:
            rows = [
                row
                for row in summary["comparisons"]
                if (row["step"], row["outcome"]) == (step, outcome)
            ]
            if rows:
                title = f"{OUTCOME_NAMES[outcome].capitalize()}, {step} step, all tasks"
                made.append(tables.comparison_table(rows, title, folded=bool(made)))
    return made
