"""One page of what the libraries were measured to do: figures and tables.

``python -m benchmarks.peers.page`` reads the JSON lines of ``benchmarks.peers``,
``benchmarks.peers.examples`` and ``benchmarks.scaling`` and writes
``benchmarks/results/peers.html``, one file with everything inside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from applications.pages.page import Section, page
from applications.pages.table import DASH, Entry, Table, entries
from benchmarks.peers.figures import MEMORY, TIME, Axis, curves, errors_by_cost
from benchmarks.peers.results import Line, read

FOLDER = Path("benchmarks/results")
FILES = ("peers.jsonl", "scaling.jsonl", "examples.jsonl")


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


def by_level(levels: Sequence[Line]) -> list[Table]:
    """Return tables of what a level costs each library, and of what levels that read below cost."""
    chains = [line for line in levels if line["status"] == "ok" and line["problem"] == "chain"]
    below = [line for line in levels if line["status"] == "ok" and line["problem"] != "chain"]
    rows = [
        entries(
            line["setting"],
            line["method"],
            line["library"],
            line["claim"],
            f"{line['error']:.1e}",
            f"{1e3 * line['cpu_seconds'] / line['num_levels']:.3g}",
            ratio(line, "to_blo"),
            DASH if line["peak_memory_mb"] is None else f"{line['peak_memory_mb']:.3g}",
        )
        for line in chains
    ]
    head = ["chain", "method", "library", "claims", "error", "CPU ms a level", "x blo", "MiB"]
    text = "Betty names the paths from the bottom to the top, and walks each of them by itself."
    fields = [
        ("method", "method"),
        ("num_levels", "levels"),
        ("num_gradients", "gradients"),
        ("num_products", "products"),
        ("error", "error"),
        ("cpu_seconds", "CPU s"),
    ]
    counted = "Counts of all responses of a round; the error is that of the whole hypergradient."
    return [
        Table("Chains", head, rows, text, folded=True),
        plain(below, "Levels that read those below as well: this library", fields, counted),
    ]


def sections(
    peers: Sequence[Line], sizes: Sequence[Line], examples: Sequence[Line]
) -> list[Section]:
    """Return the sections of the page."""

    def kind(name: str) -> list[Line]:
        return [line for line in sizes if line["kind"] == name and line["status"] == "ok"]

    found = []
    if peers:
        text = "Each against what its method claims, in float64. Letters are methods."
        figures = errors_by_cost(peers)
        found.append(Section("Error against cost", text, drawings=figures, beside=True))
    below = Axis("num_lower", "parameters below")
    above = Axis("num_upper", "parameters above")
    steps = Axis("num_steps", "lower steps that are differentiated")
    levels = Axis("num_levels", "levels")
    if size := kind("size"):
        of_ten = [line for line in size if line["num_upper"] == 10]
        of_million = [line for line in size if line["num_lower"] == 10**6]
        drawings = [
            curves(of_ten, "Time by parameters below", "10 parameters above.", below, TIME),
            curves(of_million, "Time by parameters above", "1e6 below.", above, TIME),
            curves(of_ten, "Memory by parameters below", "10 above.", below, MEMORY),
        ]
        found.append(Section("Time against size", drawings=drawings, beside=True))
    if unrolled := kind("steps"):
        text = "What a training needs beyond its parameters and data."
        drawings = [
            curves(unrolled, "Memory against unrolled steps", text, steps, MEMORY),
            curves(unrolled, "Time against unrolled steps", "Of a round.", steps, TIME),
        ]
        found.append(Section("Unrolled steps", drawings=drawings, beside=True))
    if chains := kind("levels"):
        drawings = []
        for size in dict.fromkeys(line["setting"].split(" levels of ")[1] for line in chains):
            for problem in dict.fromkeys(line["problem"] for line in chains):
                mine = [
                    line
                    for line in chains
                    if line["problem"] == problem and line["setting"].endswith(f" of {size}")
                ]
                if mine:
                    title = f"Time against levels: {problem}"
                    text = f"Quadratic problems of {size}."
                    drawings.append(curves(mine, title, text, levels, TIME))
        found.append(Section("Levels", tables=by_level(chains), drawings=drawings, beside=True))
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


NOTES = (
    "Errors are relative, of the hypergradient that the optimizer above received in the first "
    "round, against the float64 value of what the method claims, computed by other means.",
    "Times are medians over blocks of rounds that were run in turns; ratios are medians of ratios "
    "of neighbouring blocks, of process time. Memory is what a training needs beyond its "
    "parameters and data: what its first round leaves, and the peak of the next beyond that.",
    "jaxopt's rounds are compiled by XLA, and its memory is not torch's to count.",
    "'By hand' is a loop for one method and one problem that checks nothing. Betty's DARTS takes "
    "1 for the learning rate; its CG 0.2.1 takes wrong directions from the second product on. The "
    "Adam of higher and BOAT adds its epsilon before it corrects the second moment.",
)


def main() -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.page", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the JSON lines")
    parser.add_argument("--out", type=Path, default=FOLDER / "peers.html")
    options = parser.parse_args()
    peers, sizes, examples = (read(options.folder / name) for name in FILES)
    if not (peers or sizes or examples):
        parser.error(f"nothing was measured: none of {', '.join(FILES)} is in {options.folder}")
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
