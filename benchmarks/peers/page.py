"""One page of what the libraries were measured to do: figures and tables.

``python -m benchmarks.peers.page`` reads the JSON lines of ``benchmarks.peers``,
``benchmarks.peers.examples`` and ``benchmarks.scaling`` and writes
``benchmarks/results/peers.html``, one file with everything inside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from applications.pages.drawing import Drawing, drawn
from applications.pages.page import Section, page
from applications.pages.table import DASH, Entry, Table, entries

FOLDER = Path("benchmarks/results")
STYLES = {
    "by hand": ("0.45", "D"),
    "blo": ("C0", "o"),
    "blo.hypergradient": ("C9", "s"),
    "Betty": ("C3", "^"),
    "TorchOpt": ("C2", "v"),
    "higher": ("C1", "P"),
    "BOAT": ("C4", "X"),
    "jaxopt": ("C5", "*"),
}
SMALLEST = 1e-9  # errors below are drawn there
Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """Return the lines of a file; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def colour(name: str) -> tuple[str, str]:
    """Return the colour and the marker of a library, also of one that is new."""
    return STYLES.get(name, ("C6", "d"))


def error_by_cost(found: Sequence[Line]) -> Drawing:
    """Return each method's error against its time, a panel a problem."""
    measured = [line for line in found if line["seconds"] and line["error"] is not None]
    problems = list(dict.fromkeys(line["problem"] for line in measured))
    columns = min(3, max(1, len(problems)))
    rows = -(-len(problems) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.1 * rows + 0.5), layout="constrained")
    methods = list(dict.fromkeys(line["method"] for line in measured))
    for i, problem in enumerate(problems):
        axes = figure.add_subplot(rows, columns, i + 1)
        for line in (line for line in measured if line["problem"] == problem):
            shade, marker = colour(line["library"])
            place = 1e3 * line["cpu_seconds"], max(line["error"], SMALLEST)
            axes.scatter(*place, color=shade, marker=marker, s=34, alpha=0.85, linewidth=0)
            letter = chr(ord("a") + methods.index(line["method"]))
            axes.annotate(letter, place, xytext=(4, 2), textcoords="offset points", fontsize=7)
        axes.set(xscale="log", yscale="log", title=problem)
        axes.title.set_fontsize(9)
        labelled(axes, "ms a round", "relative error")
    libraries = dict.fromkeys(line["library"] for line in measured)
    keyed(figure, libraries)
    letters = ", ".join(f"{chr(ord('a') + i)} {name}" for i, name in enumerate(methods))
    text = "Error against what the method claims, in float64, by process time of a round. "
    return drawn(figure, "Error against cost", f"{text}Letters: {letters}.")


def lines_by(
    found: Sequence[Line],
    title: str,
    text: str,
    panels: Sequence[tuple[str, Callable[[Line], bool]]],
    x: tuple[str, str],
    y: tuple[str, str, float],
) -> Drawing:
    """Return a curve a library and method in every panel.

    Args:
        found: the lines.
        title: of the figure.
        text: what it shows.
        panels: their titles and which lines belong to them.
        x: the field and its label.
        y: the field, its label and the factor to its unit.
    """
    figure = Figure(figsize=(3.9 * len(panels), 3.6), layout="constrained")
    libraries: dict[str, None] = {}
    for i, (name, belongs) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for line in found:
            if belongs(line) and line.get(y[0]):
                key = line["library"], line["method"]
                curves.setdefault(key, []).append((line[x[0]], y[2] * line[y[0]]))
                libraries[line["library"]] = None
        methods = list(dict.fromkeys(method for _, method in curves))
        for (library, method), points in curves.items():
            shade, marker = colour(library)
            dashes = ["-", "--", ":", "-."][methods.index(method) % 4]
            across, up = zip(*sorted(points), strict=True)
            axes.plot(across, up, dashes, color=shade, marker=marker, markersize=4, linewidth=1.2)
        for j, method in enumerate(methods if len(methods) > 1 else []):
            axes.plot([], [], ["-", "--", ":", "-."][j % 4], color="0.3", label=method)
        if len(methods) > 1:
            axes.legend(fontsize=7, frameon=False)
        axes.set(xscale="log", yscale="log", title=name)
        axes.title.set_fontsize(9)
        labelled(axes, x[1], y[1])
        if x[0] == "num_levels":
            axes.set_xscale("linear")
            axes.set_xlim(
                1.8, max(across for points in curves.values() for across, _ in points) + 0.2
            )
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    keyed(figure, libraries)
    return drawn(figure, title, text)


def labelled(axes: Axes, across: str, up: str) -> None:
    """Name the axes, whose scales are logarithmic, and draw a light grid."""
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    for axis, (low, high), set_limits in (
        (axes.xaxis, axes.get_xlim(), axes.set_xlim),
        (axes.yaxis, axes.get_ylim(), axes.set_ylim),
    ):
        if high < 10 * low:  # a decade at least, else noise is magnified
            middle = (low * high) ** 0.5
            set_limits(middle / 10**0.5, middle * 10**0.5)
        few = high < 100 * low
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=8))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)


def keyed(figure: Figure, libraries: Iterable[str]) -> None:
    """Draw the key of the libraries below."""
    first = figure.axes[0] if figure.axes else figure.add_subplot()
    marks = []
    for name in libraries:
        shade, marker = colour(name)
        (mark,) = first.plot([], [], color=shade, marker=marker, linestyle="", label=name)
        marks.append(mark)
    if marks:
        figure.legend(
            handles=marks,
            loc="outside lower center",
            ncols=min(len(marks), 3 if figure.get_figwidth() < 6 else 8),
            fontsize=8,
            frameon=False,
        )


def by_problem(found: Sequence[Line]) -> list[Table]:
    """Return a table for each problem and setting."""
    tables = []
    settings = dict.fromkeys((line["problem"], line["setting"]) for line in found)
    for problem, setting in settings:
        mine = [line for line in found if (line["problem"], line["setting"]) == (problem, setting)]
        rows = [
            [
                *entries(line["method"], f"{line['library']} {line['version']}", line["claim"]),
                *cells(line),
            ]
            for line in mine
            if line["status"] != "absent"
        ]
        absent = [
            f"{line['library']}: {line['reason']}" for line in mine if line["status"] == "absent"
        ]
        first = mine[0]
        text = f"{first['num_lower']:,} parameters below, {first['num_upper']:,} above."
        text += f" Not there: {'; '.join(dict.fromkeys(absent))}." if absent else ""
        head = ["method", "library", "claims", "error", "ms", "CPU ms", "x blo", "x by hand", "MiB"]
        tables.append(Table(f"{problem}: {setting}", head, rows, text, folded=True))
    return tables


def cells(line: Line) -> list[Entry]:
    """Return what was measured."""
    if line["status"] != "ok":
        return entries(f"failed: {line['reason']}", *[DASH] * 5)
    wrong = line["error"] is not None and line["error"] > 0.1
    error = DASH if line["error"] is None else f"{line['error']:.1e}"
    return [
        Entry(error, "worse" if wrong else ""),
        *entries(
            f"{1e3 * line['seconds']:.3g}",
            f"{1e3 * line['cpu_seconds']:.3g}",
            ratio(line, "to_blo"),
            ratio(line, "to_by_hand"),
            DASH if line["peak_memory_mb"] is None else f"{line['peak_memory_mb']:.3g}",
        ),
    ]


def ratio(line: Line, key: str) -> str:
    """Return a ratio of times, a dash for none."""
    return f"{line[key]:.2f}" if key in line else DASH


def plain(found: Sequence[Line], title: str, fields: Sequence[tuple[str, str]], text: str) -> Table:
    """Return some fields of all lines."""
    rows = [entries(*(shortened(line.get(field)) for field, _ in fields)) for line in found]
    return Table(title, [name for _, name in fields], rows, text)


def shortened(value: Any) -> str:
    """Return a value in few characters."""
    if value is None:
        return DASH
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def sections(
    peers: Sequence[Line], sizes: Sequence[Line], examples: Sequence[Line]
) -> list[Section]:
    """Return the sections of the page."""
    found = []
    if peers:
        found.append(Section("Error against cost", drawings=[error_by_cost(peers)]))
    size = [line for line in sizes if line["kind"] == "size" and line["status"] == "ok"]
    steps = [line for line in sizes if line["kind"] == "steps" and line["status"] == "ok"]
    levels = [line for line in sizes if line["kind"] == "levels"]
    if size:
        panels = [
            ("by parameters below, 10 above", lambda line: line["num_upper"] == 10),
            ("by parameters above, 1e6 below", lambda line: line["num_lower"] == 10**6),
        ]
        drawing_pairs = [("num_lower", "parameters below"), ("num_upper", "parameters above")]
        drawings = [
            lines_by(size, f"Time {name}", "Process time of a round.", [(name, belongs)], x, MS)
            for (name, belongs), x in zip(panels, drawing_pairs, strict=True)
        ]
        found.append(Section("Time against size", drawings=drawings))
    if steps:
        everything = [("reweighting", lambda line: True)]
        x = "num_steps", "lower steps that are differentiated"
        text = "What a training needs beyond its parameters and data."
        memory = lines_by(steps, "Memory against steps", text, everything, x, MIB)
        time = lines_by(steps, "Time against steps", "Process time of a round.", everything, x, MS)
        found.append(Section("Unrolled steps", drawings=[memory, time]))
    if levels:
        panels = [
            (name, lambda line, name=name: line["problem"] == name)
            for name in dict.fromkeys(line["problem"] for line in levels)
        ]
        text = "Process time of a round of quadratic problems of 3 unknowns."
        drawing = lines_by(
            levels, "Time against levels", text, panels, ("num_levels", "levels"), MS
        )
        fields = [
            ("problem", "graph"),
            ("method", "method"),
            ("num_levels", "levels"),
            ("num_gradients", "gradients"),
            ("num_products", "products"),
            ("error", "error"),
            ("cpu_seconds", "CPU s"),
        ]
        text = "Counts of all responses of a round; the error is that of the whole hypergradient."
        found.append(
            Section("Levels", tables=[plain(levels, "Counts", fields, text)], drawings=[drawing])
        )
    if examples:
        fields = [
            ("problem", "problem"),
            ("method", "method"),
            ("library", "library"),
            ("loss", "loss above"),
            ("spread", "spread"),
            ("error", "error of the last hypergradient"),
            ("seconds", "s"),
            ("cpu_seconds", "CPU s"),
            ("peak_memory_mb", "MiB"),
        ]
        text = "The same data, starts, optimizers and numbers of iterations."
        table = plain(examples, "As in Betty's examples", fields, text)
        found.append(Section("Betty's own problems", tables=[table]))
    return [*found, Section("Everything", tables=by_problem(peers))]


MS = "cpu_seconds", "ms a round", 1e3
MIB = "peak_memory_mb", "MiB", 1.0
NOTES = (
    "Errors are relative, of the hypergradient that the optimizer above received in the first "
    "round, against the float64 value of what the method claims, computed by other means.",
    "Times are medians over blocks of rounds that were run in turns; ratios are medians of ratios "
    "of neighbouring blocks, of process time. Memory is what a training needs beyond its "
    "parameters and data: what its first round leaves, and the peak of the next beyond that.",
    "jaxopt's rounds are compiled by XLA, and its memory is not torch's to count.",
    "'By hand' is a loop for one method and one problem that checks nothing. Betty's DARTS takes "
    "1 for the learning rate; its CG 0.2.1 takes wrong directions from the second product on.",
)


def main() -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.page", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the JSON lines")
    parser.add_argument("--out", type=Path, default=FOLDER / "peers.html")
    options = parser.parse_args()
    names = ("peers.jsonl", "scaling.jsonl", "examples.jsonl")
    peers, sizes, examples = (read(options.folder / name) for name in names)
    if not (peers or sizes or examples):
        parser.error(f"nothing was measured: none of {', '.join(names)} is in {options.folder}")
    first = (peers or sizes or examples)[0]
    threads = first.get("threads", 1)
    lead = f"torch {first.get('torch')}, {threads} thread{'s' * (threads != 1)}, CPU."
    text = page(
        title="This library beside others",
        lead=lead,
        sections=sections(peers, sizes, examples),
        notes=NOTES,
    )
    options.out.write_text(text, encoding="utf-8")
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
