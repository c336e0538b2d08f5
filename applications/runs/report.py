"""The page of a run."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from applications.families.metrics import Evaluation
from applications.pages.drawing import Drawing, drawn
from applications.pages.page import Section, page
from applications.pages.table import Table, entries, shown
from applications.pages.writing import write_whole
from applications.runs.outputs import RunFolder


def curves(lines: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """The logged losses of every phase, by level, and those on held-out data, over the rounds."""
    names = list(dict.fromkeys(line["phase"] for line in lines))
    return [
        curve(f"Losses: {name}", [line for line in lines if line["phase"] == name])
        for name in names
    ]


def curve(title: str, lines: Sequence[Mapping[str, Any]]) -> Drawing:
    """The losses of one phase, drawn."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    logged = [line for line in lines if "losses" in line]
    for name in logged[0]["losses"] if logged else ():
        axes.plot(
            [line["round"] for line in logged],
            [line["losses"][name] for line in logged],
            marker=".",
            label=f"{name} level, one batch",
        )
    validated = [line for line in lines if "validation" in line]
    if validated:
        axes.plot(
            [line["round"] for line in validated],
            [line["validation"]["loss"] for line in validated],
            marker="o",
            label="held-out data",
        )
    axes.set(xlabel="round", ylabel="loss")
    axes.legend(frameon=False, loc="upper right")
    text = "The loss of a batch of each level, and of the held-out data, over the rounds."
    return drawn(figure, title, text)


def ends(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """How often the solve behind a response ended in each way, over the logged rounds.

    Methods that solve nothing, such as one-step ones, have no residual and are not counted.
    """
    responses = (info for line in lines for info in line.get("responses", {}).values())
    return Counter(info["status"] for info in responses if info["residual"] is not None)


def run_report(
    folder: RunFolder,
    *,
    summary: Mapping[str, Any],
    evaluations: Mapping[str, Evaluation],
    sizes: Mapping[str, int],
    notes: Sequence[str],
) -> None:
    """Write report.html into the folder of a run."""
    lines = folder.metrics()
    names = list(evaluations["test"].metrics)
    quality = [
        [split, shown(sizes[split]), shown(found.loss), *(shown(found.metrics[n]) for n in names)]
        for split, found in evaluations.items()
    ]
    cost_names = [
        *("trainable_params", "upper_params", "num_lower_steps", "num_upper_steps"),
        *("num_gradients", "num_hvps", "wall_seconds", "peak_memory_mb", "device"),
    ]
    costs = [[name.replace("_", " "), shown(summary[name])] for name in cost_names]
    phase_names = [
        *("name", "lower_steps", "upper_steps", "num_gradients", "num_hvps", "seconds"),
    ]
    phase_rows = [[shown(phase[name]) for name in phase_names] for phase in summary["phases"]]
    selected = summary["selected"] or {"step": "none was asked for"}
    chosen = [[name.replace("_", " "), shown(value)] for name, value in selected.items()]
    hypergradient = summary["hypergradient"] or {"method": "none: one level"}
    how = [[name, shown(value)] for name, value in hypergradient.items()]
    how += [["logged rounds that ended " + name, shown(n)] for name, n in ends(lines).items()]
    text = page(
        title=f"{summary['method']} on {summary['task']}, seed {summary['seed']}",
        lead=f"{summary['model']}: {summary['metric_name']} {shown(summary['train_metric'])} on "
        f"the training split, {shown(summary['test_metric'])} on the test split.",
        notes=notes,
        notes_title="Data",
        sections=[
            Section(
                "Results",
                tables=[
                    table("Quality", ["split", "examples", "loss", *names], quality),
                    *temperature_scaling(summary),
                    table("Selected step", ["what", "value"], chosen),
                ],
            ),
            Section("Losses", drawings=curves(lines)),
            Section(
                "Costs",
                tables=[
                    table("Cost", ["what", "value"], costs),
                    table("Phases", [name.replace("_", " ") for name in phase_names], phase_rows),
                    table("Hypergradient", ["what", "value"], how),
                ],
            ),
            Section("Options", blocks=[(folder.path / "config.json").read_text(encoding="utf-8")]),
            Section("Versions", blocks=[json.dumps(summary["versions"], indent=2)]),
        ],
    )
    path = folder.path / "report.html"
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def temperature_scaling(summary: Mapping[str, Any]) -> list[Table]:
    """The test split before and after temperature scaling; none without a temperature."""
    if summary["temperature"] is None:
        return []
    names = {"loss": "test_loss", "ece": "ece", "brier": "brier"}
    rows = [
        [name, shown(summary[before]), shown(summary[f"calibrated_{name}"])]
        for name, before in names.items()
    ]
    title = f"Test split, temperature {shown(summary['temperature'])} of the validation split"
    return [table(title, ["what", "before", "after"], rows)]


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain cells."""
    return Table(title, head, [entries(*row) for row in rows])
