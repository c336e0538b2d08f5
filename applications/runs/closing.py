"""The last lines of a run on the screen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from applications.families.family import Family
from applications.options.arguments import Options
from applications.options.completion import completed
from applications.pages.table import as_lines
from applications.runs.conclusion import conclusion, quality
from applications.runs.costs import updates
from applications.runs.usage import left_model, loading_lines, prediction_command


def closing(summary: Mapping[str, Any], options: Options, family: Family) -> list[str]:
    """The numbers and what they say, what was left where, how to load it and to predict with it.

    Where nothing was trained, the first alone.
    """
    run = Path(str(completed(options, family).run.output_dir))
    if not summary["metrics"]:
        return [conclusion(summary)]
    model = left_model(run)
    name, revision = family.auto_model.__name__, options.model.revision
    lines = loading_lines(model, name, revision)
    return [
        "",
        *as_lines(quality(summary)),
        conclusion(summary),
        "",
        f"folder: {run} (summary.json, report.html)",
        f"{model.name}: {model}, of the last step",
        *selected_lines(summary, run),
        "load it:",
        *(f"    {line}" for line in lines),
        "predict with it:",
        f"    {prediction_command(run)}",
    ]


def selected_lines(summary: Mapping[str, Any], run: Path) -> list[str]:
    """Which step was selected, and where its model is; nothing where none was."""
    chosen = summary["selected"]
    if not chosen:
        return []
    whole = next(updates(p) for p in summary["phases"] if p["name"] == chosen["phase"])
    where = f"{chosen['phase']}, after {chosen['lower_steps']:,} of {whole:,} updates"
    return [f"selected: {run / 'selected'}, of {where}"]
