"""The page in Markdown that stands beside the JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = "page.md"
MACHINE = "machine.json"
STATUSES = ("ok", "failed", "error", "absent", "not run")
Line = Mapping[str, Any]


def write_page(folder: Path) -> Path:
    """Write the page from the lines that are there, and return it."""
    machine = json.loads(read_text(folder / MACHINE) or "{}")
    parts = {number: lines(folder / f"part{number}.jsonl") for number in TITLES}
    pieces = [
        f"# {machine.get('device', 'One device')}",
        table(["", ""], [[name, value] for name, value in machine.items()]),
        summary(parts),
    ]
    for number, found in parts.items():
        if found:
            pieces += [f"## {number}. {TITLES[number]}", *SECTIONS[number](found), troubles(found)]
    page = folder / PAGE
    page.write_text("\n\n".join(piece for piece in pieces if piece) + "\n", encoding="utf-8")
    return page


def read_text(file: Path) -> str:
    """Return the text of a file, nothing where there is none."""
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def lines(file: Path) -> list[Line]:
    """Return the rows of a part; a line that was cut off is left out."""
    found = []
    for line in read_text(file).splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [line for line in found if "row" in line]


def summary(parts: Mapping[int, Sequence[Line]]) -> str:
    """Return how many rows of each part ended how."""
    body = []
    for number, found in parts.items():
        counts = [sum(line["status"] == status for line in found) for status in STATUSES]
        taken = sum(line.get("row_seconds", 0.0) for line in found)
        body.append([f"{number}. {TITLES[number]}", *counts, f"{taken:.0f}"])
    return table(["part", *STATUSES, "seconds"], body)


def methods_section(found: Sequence[Line]) -> list[str]:
    """Return the differences as one table a base model and precision: a method by an adapter."""
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    others = []
    for line in found:
        names = line["row"].split(" | ")
        if len(names) < 3:
            others.append([line["row"], line["status"], shown(line.get("tests"))])
            continue
        method, adapter, precision, *base = names
        kind = (precision, base[0] if base else "perceptron")
        cells.setdefault(kind, {})[method, adapter] = cell(line)
    pieces = [
        "Hypergradients of two rounds on the device, relative difference from the CPU's. In "
        "bfloat16, behind the slash: how far the CPU's own numbers move when the frozen weights "
        "are moved by one rounding. LoRA Dropout draws masks of its own on each device: its "
        "numbers are compared with those of a second run from the same seed."
    ]
    for (precision, base), values in cells.items():
        adapters = list(dict.fromkeys(adapter for _, adapter in values))
        names = list(dict.fromkeys(method for method, _ in values))
        body = [[m, *(values.get((m, a), "") for a in adapters)] for m in names]
        pieces += [f"### {base}, {precision}", table(["method", *adapters], body)]
    if others:
        pieces.append(table(["", "status", "tests"], others))
    return pieces


def cell(line: Line) -> str:
    """Return a difference, or how the row ended."""
    if line["status"] != "ok":
        text = line["status"]
        return f"**{text}** {shown(line['difference'])}" if "difference" in line else f"**{text}**"
    if "refused" in line:
        return "refused on both"
    movement = line.get("movement")
    return shown(line.get("difference")) + ("" if movement is None else f" / {shown(movement)}")


def behaviour_section(found: Sequence[Line]) -> list[str]:
    """Return one line a check."""
    body = []
    for line in found:
        remark = line.get("kernels") or line.get("error") or ""
        if "waits" in line:
            remark = f"{line['waits']} waits"
        if isinstance(remark, list):
            remark = ", ".join(f"`{name.removeprefix('aten::')}`" for name in remark)
        values = [shown(line.get("difference")), shown(line.get("limit"))]
        body.append([line["row"], line["status"], *values, remark])
    return [table(["check", "status", "difference", "limit", ""], body)]


def training_section(found: Sequence[Line]) -> list[str]:
    """Return accuracy and time of each training."""
    done = [line for line in found if "accuracy" in line]
    if not done:
        return []
    body = [
        [
            line["adapter"],
            line["seed"],
            line["precision"],
            line["on"],
            f"{100 * line['accuracy']:.1f}",
            f"{line['first_loss']:.6f}",
            f"{line['last_loss']:.4f}",
            f"{1e3 * line['train_seconds'] / line['rounds']:.1f}",
        ]
        for line in done
    ]
    heads = ["adapter", "seed", "precision", "on", "accuracy %", "first loss", "last loss"]
    say = f"{done[0]['problem']}; {done[0]['rounds']} rounds, {done[0]['num_tested']} texts tested."
    return [say, table([*heads, "ms a round"], body)]


def speed_section(found: Sequence[Line]) -> list[str]:
    """Return the agreement with the loops by hand, and a table of time and memory a shape."""
    twins = [[line["row"], cell(line)] for line in found if " small | " in line["row"]]
    pieces = [table(["the same computed, float32", "difference"], twins)] if twins else []
    pieces.append(
        "Ratios are medians of ratios in turns; below 1, ours is faster. A unit is one gradient of "
        "the lower loss. Memory is the peak of a round beyond what stood before, in MiB. Betty's "
        "differences have another radius and its step is 1 instead of the learning rate; its CG "
        "0.2.1 goes astray from the second product on; the work is the same."
    )
    tables: dict[str, list[Line]] = {}
    for line in found:
        if "units" in line:
            key = f"{line['problem']}, {line['setting']}, {line['precision']}"
            tables.setdefault(key, []).append(line)
    for name, members in tables.items():
        body = [
            [
                line["method"],
                f"{1e3 * line['seconds']:.2f}",
                f"{line['units']:.2f}",
                f"{line['num_gradients']} + {line['num_products']}",
                shown(line["to_hand"], 2),
                shown(line["to_betty"], 2),
                shown(line["peak_memory_mb"], 0),
                shown(line["peak_by_hand_mb"], 0),
                shown(line["peak_betty_mb"], 0),
            ]
            for line in members
        ]
        heads = ["method", "ms", "units", "gradients + products", "to by hand", "to Betty"]
        heads += ["MiB", "MiB by hand", "MiB Betty"]
        size = f"{members[0]['num_parameters'] / 1e6:.1f} M parameters, "
        size += f"{members[0]['num_lower']:,} below, {members[0]['num_upper']:,} above"
        pieces += [f"### {name}", size, table(heads, body)]
    return pieces


def troubles(found: Iterable[Line]) -> str:
    """Return what did not go well, with its reason."""
    body = [
        [line["row"], line["status"], line.get("error", "")]
        for line in found
        if line["status"] != "ok"
    ]
    return table(["row", "status", "reason"], body) if body else ""


def table(heads: Sequence[Any], body: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""

    def row(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(c).replace("|", "/").replace("\n", " ") for c in cells) + " |"

    return "\n".join([row(heads), row("---" for _ in heads), *(row(cells) for cells in body)])


def shown(value: Any, digits: int | None = None) -> str:
    """Return a number in few characters."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if digits is not None:
        return f"{value:,.{digits}f}"
    return "0" if value == 0 else f"{value:.1e}"


TITLES = {
    1: "Methods and adapters",
    2: "Behaviour",
    3: "Training",
    4: "Speed and memory",
}
SECTIONS: dict[int, Callable[[Sequence[Line]], list[str]]] = {
    1: methods_section,
    2: behaviour_section,
    3: training_section,
    4: speed_section,
}
