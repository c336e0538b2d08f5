"""The last lines of a run on the screen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from applications.families.family import Family
from applications.options.arguments import Options
from applications.options.completion import completed
from applications.pages.table import shown
from applications.runs.usage import left_model, loading_lines, prediction_command


def closing(summary: Mapping[str, Any], options: Options, family: Family) -> list[str]:
    """The metric, the folder, how to load what is in it, and how to predict with it."""
    run = Path(str(completed(options, family).run.output_dir))
    train, test = shown(summary["train_metric"]), shown(summary["test_metric"])
    name, revision = family.auto_model.__name__, options.model.revision
    lines = loading_lines(left_model(run), name, revision)
    return [
        f"{summary['metric_name']}: train {train}, test {test}",
        f"folder: {run} (summary.json, report.html, {left_model(run).name}/)",
        "load it:",
        *(f"    {line}" for line in lines),
        "predict with it:",
        f"    {prediction_command(run)}",
    ]
