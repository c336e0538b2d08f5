"""The tables of docs/benchmarks.md, from what was measured.

``python -m benchmarks.peers.tables`` writes them between the page's marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.peers.results import Line, ratio_to, read

FOLDER = Path("benchmarks/results")
PAGE = Path("docs/benchmarks.md")
OTHERS = ("by hand", "Betty", "BOAT", "TorchOpt", "higher", "jaxopt")
WRONG = 0.1  # errors above it stand beside the ratio


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int) -> str:
    """Return a Markdown table; all columns after the first `words` are numbers."""
    align = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, align, *rows))


def groups(lines: Sequence[Line]) -> list[dict[str, Line]]:
    """Return the lines that were measured in turns, by library."""
    found: dict[tuple[str, ...], dict[str, Line]] = {}
    for line in lines:
        key = tuple(str(line.get(field)) for field in ("kind", "problem", "setting", "method"))
        if line["status"] != "absent":
            found.setdefault(key, {})[line["library"]] = line
    return [group for group in found.values() if group.get("blo", {}).get("status") == "ok"]


def beside(group: dict[str, Line], names: Sequence[str] = OTHERS) -> list[str]:
    """Return how many times as long this library takes as each other one; an error of theirs above
    a tenth is told, and so is a failure.
    """
    cells = []
    for name in names:
        other, ratio = group.get(name), group["blo"].get(ratio_to(name))
        if other is not None and other["status"] != "ok":
            cells.append("fails")
        elif other is None or ratio is None:  # absent, or measured in other turns
            cells.append("")
        else:
            wrong = other["error"] if (other["error"] or 0.0) > WRONG else None
            cells.append(f"{ratio:.2f}" + ("" if wrong is None else f" (error {wrong:.1g})"))
    return cells


def own(line: Line) -> list[str]:
    """Return the time, the error and the memory of a line."""
    error = "" if line["error"] is None else f"{line['error']:.0e}"
    return [f"{1e3 * line['cpu_seconds']:.3g}", error, f"{line['peak_memory_mb']:.3g}"]


def rounds(lines: Sequence[Line]) -> str:
    """A row for each problem and method: this library, and its time over that of the others."""
    head = ["problem", "setting", "method", "ms", "error", "MiB", *OTHERS]
    rows = []
    for group in groups(lines):
        line = group["blo"]
        name = [line["problem"], line["setting"], f"`{line['method']}`"]
        rows.append([*name, *own(line), *beside(group)])
    return table(head, rows, 3)


def sizes(lines: Sequence[Line]) -> str:
    """The same by the numbers of parameters."""
    names = ("by hand", "Betty", "BOAT", "TorchOpt")
    head = ["below", "above", "method", "ms", "error", "MiB", *names]
    rows = []
    for group in groups([line for line in lines if line["kind"] == "size"]):
        line = group["blo"]
        name = [f"{line['num_lower']:,}", f"{line['num_upper']:,}", f"`{line['method']}`"]
        rows.append([*name, *own(line), *beside(group, names)])
    return table(head, rows, 3)


def steps(lines: Sequence[Line]) -> str:
    """The memory of unrolled steps in MiB, by their number."""
    chosen = [x for x in lines if x["kind"] == "steps" and x["status"] == "ok"]
    numbers = sorted({line["num_steps"] for line in chosen})
    rows = []
    for library, method in dict.fromkeys((x["library"], x["method"]) for x in chosen):
        of = {
            line["num_steps"]: f"{line['peak_memory_mb']:.3g}"
            for line in chosen
            if (line["library"], line["method"]) == (library, method)
        }
        rows.append([library, f"`{method}`", *(of.get(number, "") for number in numbers)])
    return table(["library", "method", *(f"{n} steps" for n in numbers)], rows, 2)


def levels(lines: Sequence[Line]) -> str:
    """What a level of a chain costs: of this library, and its time over that of the others."""
    names = ("by hand", "Betty")
    head = ["chain", "method", "ms a level", "error", *names, "error of Betty"]
    rows = []
    for group in groups([line for line in lines if line["kind"] == "levels"]):
        line, betty = group["blo"], group.get("Betty")
        if line["problem"] == "chain":
            level = f"{1e3 * line['cpu_seconds'] / line['num_levels']:.3g}"
            error = "" if betty is None else f"{betty['error']:.0e}"
            cells = [f"`{line['method']}`", level, f"{line['error']:.0e}", *beside(group, names)]
            rows.append([line["setting"], *cells, error])
    return table(head, rows, 2)


def examples(lines: Sequence[Line]) -> str:
    """What both libraries reached on Betty's own problems."""
    head = ["problem", "method", "library", "loss above", "spread", "error", "CPU s", "MiB"]
    rows = []
    for line in lines:
        if line["status"] == "ok":
            error = "" if line["error"] is None else f"{line['error']:.2g}"
            numbers = [f"{line['loss']:.3f}", f"{line['spread']:.3f}", error]
            cost = [f"{line['cpu_seconds']:.2f}", f"{line['peak_memory_mb']:.2g}"]
            name = [line["problem"], f"`{line['method']}`", line["library"]]
            rows.append([*name, *numbers, *cost])
    return table(head, rows, 3)


def overhead(lines: Sequence[Line]) -> str:
    """What the engine adds where nothing else counts."""
    rows = [
        [
            line["work"],
            f"{line['cpu_microseconds_by_hand']:.0f}",
            f"{line['cpu_microseconds']:.0f}",
            f"{line['ratio']:.2f}",
        ]
        for line in lines
    ]
    return table(["round", "by hand, us", "engine, us", "ratio"], rows, 1)


def made(folder: Path) -> dict[str, str]:
    """Return the tables by their marks."""
    scaling = read(folder / "scaling.jsonl")
    return {
        "rounds": rounds(read(folder / "peers.jsonl")),
        "sizes": sizes(scaling),
        "steps": steps(scaling),
        "levels": levels(scaling),
        "examples": examples(read(folder / "examples.jsonl")),
        "overhead": overhead(read(folder / "overhead.jsonl")),
    }


def filled(text: str, tables: dict[str, str]) -> str:
    """Return the page with the tables between its marks."""
    for name, content in tables.items():
        first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(first)
        if not found or last not in rest:
            raise ValueError(f"the page has no {first} followed by {last}")
        text = f"{before}{first}\n{content}\n{last}{rest.partition(last)[2]}"
    return text


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.tables", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the JSON lines")
    parser.add_argument("--page", type=Path, default=PAGE, help="that has the marks")
    options = parser.parse_args()
    text = options.page.read_text(encoding="utf-8")
    options.page.write_text(filled(text, made(options.folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
