"""The curves of a run's page: losses and validation over the rounds."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from applications.pages.drawing import COLOURS, LINE, SOFT, Drawing, drawn, tell
from applications.runs.costs import updates

Line = Mapping[str, Any]
FEW = 60
"""Up to so many points, each has a marker."""


def curves(lines: Sequence[Line], metric: str, selected: Mapping[str, Any] | None) -> list[Drawing]:
    """The logged losses of every phase, by level, and what was measured on held-out data.

    Args:
        lines: of metrics.jsonl.
        metric: the task's.
        selected: the numbers of the selected step, where there is one.
    """
    made = []
    for name in dict.fromkeys(line["phase"] for line in lines):
        own = [line for line in lines if line["phase"] == name]
        chosen = selected["lower_steps"] if selected and selected["phase"] == name else None
        made.append(losses(f"Losses: {name}", own, chosen))
        if any(line.get("validation", {}).get(metric) is not None for line in own):
            made.append(validation(f"Validation {metric}: {name}", own, metric, chosen))
    return made


def losses(title: str, lines: Sequence[Line], selected: int | None) -> Drawing:
    """The losses of one phase, drawn."""
    figure, axes = panel("loss")
    logged = [line for line in lines if "losses" in line]
    for place, name in enumerate(logged[0]["losses"] if logged else ()):
        points = [(line["round"], line["losses"][name]) for line in logged]
        plot(axes, points, f"{name} level, one batch", place)
    validated = [line for line in lines if "validation" in line]
    plot(
        axes, [(v["round"], v["validation"]["loss"]) for v in validated], "held-out data", 2, "o--"
    )
    mark(axes, lines, selected)
    axes.legend(frameon=False, loc="best")
    text = "The loss of a batch of each level, and of the held-out data, over the rounds."
    return drawn(figure, title, text)


def validation(title: str, lines: Sequence[Line], metric: str, selected: int | None) -> Drawing:
    """The task's metric on held-out data in one phase, drawn."""
    figure, axes = panel(metric)
    points = [(v["round"], v["validation"][metric]) for v in lines if "validation" in v]
    plot(axes, [(x, y) for x, y in points if y is not None], metric, 2, "o-")
    mark(axes, lines, selected)
    text = f"{metric} on held-out data over the rounds."
    return drawn(figure, title, text + (" The dashed line is the selected step." * bool(selected)))


def panel(label: str) -> tuple[Figure, Axes]:
    """A figure over the rounds."""
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=LINE, linewidth=0.6)
    axes.set(xlabel="round", ylabel=label)
    return figure, axes


def plot(
    axes: Axes, points: Sequence[tuple[int, float]], label: str, place: int, form: str = "-"
) -> None:
    """A line with its values under the pointer."""
    if not points:
        return
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if form == "-" and len(points) <= FEW:
        form = ".-"
    axes.plot(xs, ys, form, color=COLOURS[place % len(COLOURS)], label=label)
    said = [f"{label}\nround {x:,}: {y:.4g}" for x, y in points]
    tell(axes, xs, ys, said)


def mark(axes: Axes, lines: Sequence[Line], selected: int | None) -> None:
    """A line at the selected step."""
    for line in lines:
        if selected is not None and updates(line) == selected:
            axes.axvline(line["round"], color=SOFT, linewidth=0.8, linestyle="--")
            return
