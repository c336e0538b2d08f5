"""A page to look at: one self-contained HTML file a run."""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from applications.families.metrics import Evaluation
from applications.pages.writing import write_whole
from applications.runs.outputs import RunFolder


@dataclass(frozen=True)
class Table:
    """A titled table of finished cells."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A titled figure as SVG text."""

    title: str
    svg: str


@dataclass(frozen=True)
class Block:
    """A titled text in a fixed-width font."""

    title: str
    text: str


def svg(figure: Figure) -> str:
    """The figure as an SVG element, to be put inside a page."""
    stream = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def page(
    *,
    title: str,
    lead: str,
    tables: Sequence[Table] = (),
    figures: Sequence[Picture] = (),
    notes: Sequence[str] = (),
    blocks: Sequence[Block] = (),
) -> str:
    """The HTML text of a report; all parts are inside it and all texts are escaped."""
    template = files("applications.pages").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(
        title=title, lead=lead, tables=tables, figures=figures, notes=notes, blocks=blocks
    )


def curves(lines: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """The logged losses of every phase, by level, and those on held-out data, over the rounds."""
    names = list(dict.fromkeys(line["phase"] for line in lines))
    return [
        Picture(f"Losses: {name}", curve([line for line in lines if line["phase"] == name]))
        for name in names
    ]


def curve(lines: Sequence[Mapping[str, Any]]) -> str:
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
    axes.legend(frameon=False)
    return svg(figure)


def ends(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """How often the solve behind a response ended in each way, over the logged rounds.

    Methods that solve nothing, such as one-step ones, have no residual and are not counted.
    """
    responses = (info for line in lines for info in line.get("responses", {}).values())
    return Counter(info["status"] for info in responses if info["residual"] is not None)


def shown(value: Any) -> str:
    """A cell: numbers with four digits, thousands apart, a dash for nothing."""
    if value is None:
        return "–"  # noqa: RUF001
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


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
        tables=[
            Table("Quality", ["split", "examples", "loss", *names], quality),
            Table("Selected step", ["what", "value"], chosen),
            Table("Cost", ["what", "value"], costs),
            Table("Phases", [name.replace("_", " ") for name in phase_names], phase_rows),
            Table("Hypergradient", ["what", "value"], how),
        ],
        figures=curves(lines),
        notes=notes,
        blocks=[
            Block("Options", (folder.path / "config.json").read_text(encoding="utf-8")),
            Block("Versions", json.dumps(summary["versions"], indent=2)),
        ],
    )
    path = folder.path / "report.html"
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))
