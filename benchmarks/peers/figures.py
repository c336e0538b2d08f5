"""The figures of the page: each a panel that is as wide as a telephone, with its own legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from applications.pages.drawing import COLOURS, Drawing, drawn, tell
from benchmarks.peers.results import Line

BLUE, RED, GREEN, PINK, SKY, ORANGE, BLACK, GREY = COLOURS
STYLES = {
    "by hand": (GREY, "D"),
    "blo": (BLUE, "o"),
    "blo.hypergradient": (SKY, "s"),
    "Betty": (RED, "^"),
    "TorchOpt": (GREEN, "v"),
    "higher": (ORANGE, "P"),
    "BOAT": (PINK, "X"),
    "jaxopt": (BLACK, "*"),
}
OWN = (BLACK, "d")  # a library that is not among them
DASHES = ("-", "--", ":", "-.")
SMALLEST = 1e-9  # errors below are drawn there
SIZE = (4.4, 3.9)


class Axis(NamedTuple):
    """What is drawn along an axis: the field, its label and the factor to its unit."""

    field: str
    label: str
    factor: float = 1.0

    def of(self, line: Line) -> float:
        """Return the number of a line."""
        return float(line[self.field]) * self.factor


TIME = Axis("cpu_seconds", "ms a round, process time", 1e3)
MEMORY = Axis("peak_memory_mb", "MiB")


def errors_by_cost(found: Sequence[Line]) -> list[Drawing]:
    """Return each method's error against its time, a figure a problem."""
    measured = [line for line in found if line["seconds"] and line["error"] is not None]
    problems = dict.fromkeys(line["problem"] for line in measured)
    return [
        _error_by_cost(problem, [line for line in measured if line["problem"] == problem])
        for problem in problems
    ]


def _error_by_cost(problem: str, lines: Sequence[Line]) -> Drawing:
    figure, axes = _panel()
    methods = list(dict.fromkeys(line["method"] for line in lines))
    for line in lines:
        shade, marker = STYLES.get(line["library"], OWN)
        x, y = TIME.of(line), max(line["error"], SMALLEST)
        axes.scatter(x, y, color=shade, marker=marker, s=42, linewidth=0)
        letter = chr(ord("a") + methods.index(line["method"]))
        if len(methods) > 1:
            axes.annotate(letter, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=9)
        said = f"{line['library']}, {line['method']}, {line['setting']}\n"
        tell(axes, [x], [y], [f"{said}{x:.3g} ms, error {line['error']:.1e}"])
    axes.set(xscale="log", yscale="log")
    _labelled(axes, TIME.label, "relative error")
    _key(figure, dict.fromkeys(line["library"] for line in lines))
    letters = ", ".join(f"{chr(ord('a') + i)} {name}" for i, name in enumerate(methods))
    return drawn(figure, problem, f"{letters}." if len(methods) > 1 else f"{methods[0]}.")


def curves(lines: Sequence[Line], title: str, text: str, across: Axis, up: Axis) -> Drawing:
    """Return a curve for every library and method.

    Args:
        lines: what was measured.
        title: of the figure.
        text: what it shows.
        across: what is drawn to the right.
        up: what is drawn upwards.
    """
    figure, axes = _panel()
    shown = [line for line in lines if line.get(up.field)]
    methods = list(dict.fromkeys(line["method"] for line in shown))
    for library, method in dict.fromkeys((line["library"], line["method"]) for line in shown):
        mine = [x for x in shown if (x["library"], x["method"]) == (library, method)]
        points = sorted((across.of(line), up.of(line)) for line in mine)
        xs, ys = zip(*points, strict=True)
        shade, marker = STYLES.get(library, OWN)
        dashes = DASHES[methods.index(method) % len(DASHES)]
        axes.plot(xs, ys, dashes, color=shade, marker=marker, markersize=5, linewidth=1.4)
        said = [f"{library}, {method}\n{x:g} {across.label}: {y:.3g} {up.label}" for x, y in points]
        tell(axes, xs, ys, said)
    axes.set(xscale="log", yscale="log")
    _labelled(axes, across.label, up.label)
    if across.field == "num_levels":
        axes.set_xscale("linear")
        axes.set_xlim(1.8, max(across.of(line) for line in shown) + 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _key(figure, dict.fromkeys(line["library"] for line in shown), methods)
    return drawn(figure, title, text)


def _panel() -> tuple[Figure, Axes]:
    """Return an empty figure with its axes."""
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _labelled(axes: Axes, across: str, up: str) -> None:
    """Name the axes, whose scales are logarithmic, and draw a light grid."""
    axes.set_xlabel(across, fontsize=10)
    axes.set_ylabel(up, fontsize=10)
    for axis, (low, high), set_limits in (
        (axes.xaxis, axes.get_xlim(), axes.set_xlim),
        (axes.yaxis, axes.get_ylim(), axes.set_ylim),
    ):
        if high < 10 * low:  # a decade at least, else noise is magnified
            middle = (low * high) ** 0.5
            set_limits(middle / 10**0.5, middle * 10**0.5)
        few = high < 100 * low
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=7))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _key(
    figure: Figure, libraries: Sequence[str] | dict[str, None], methods: Sequence[str] = ()
) -> None:
    """Draw the key of the libraries below, and of the methods where there are several."""
    marks = []
    for name in libraries:
        shade, marker = STYLES.get(name, OWN)
        marks.append(Line2D([], [], color=shade, marker=marker, linestyle="", label=name))
    for dashes, name in zip(DASHES, methods if len(methods) > 1 else (), strict=False):
        marks.append(Line2D([], [], color=GREY, linestyle=dashes, label=name))
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
