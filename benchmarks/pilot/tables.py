"""The tables and the figure of docs/pilot.md, from the results that the pilot's grids left.

    python -m benchmarks.pilot.tables [--collect RUNS]

``--collect RUNS`` first copies what the grids in RUNS (folders comparison, leads ...) left to
``benchmarks/results/pilot/``: results.jsonl, and curves.jsonl, the evaluations during training of
every run.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from applications.comparison.folder import run_places
from applications.comparison.results import LABELS, order, read_lines, write_lines
from applications.comparison.statistics import Spread, spread
from applications.comparison.summary import Cell, Result, cell_of, cells_of, compared, value
from applications.runs.outputs import RunFolder
from benchmarks.accuracy import write_between

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "pilot"
PAGE = ROOT / "docs" / "pilot.md"
GRIDS = {"comparison": "lora", "longer": "lora", "leads": "pace5"}
"""The grids in the page, and the variant that the others are compared with."""
TABLES = (
    ("comparison", ("sst2", "300")),
    ("longer", ("sst2", "1000")),
    ("longer", ("wnut17", "300")),
    ("leads", ("sst2", "300")),
)
"""The grid and the cell of each table; those of comparisons have learning curves too."""
SELECTED = ("comparison", ("sst2", "300"))
DRAWN = (
    *("lora", "lora_d1_only", "dora", "bilora_real", "bilora_softmax", "bilora_softmax_joint"),
    "bidora",
)
COLUMNS = ("train_metric", "test_metric", "test_loss", "ece", "brier", "generalisation_gap")
HEADS = ("train", "test", "test loss", "ECE", "Brier", "gap")


def collect(source: Path, target: Path) -> None:
    """Copy what one grid left."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "results.jsonl", target / "results.jsonl")
    if target.name not in GRIDS:
        return
    curves = []
    for place in run_places(source):
        record = place.record()
        if record is None or place.summary() is None:
            continue
        lines = [line for line in RunFolder(place.path).metrics() if "validation" in line]
        kept = ("phase", "lower_steps", "num_gradients", "validation")
        curves.append(
            {name: record[name] for name in (*LABELS, "seed")}
            | {"lines": [{name: line[name] for name in kept} for line in lines]}
        )
    write_lines(target / "curves.jsonl", sorted(curves, key=order))


def shown(found: Spread | None) -> str:
    """``mean ± standard deviation``."""
    if found is None:
        return "-"
    return f"{found.mean:.3f}" if found.std is None else f"{found.mean:.3f} ± {found.std:.3f}"


def outcome(results: Sequence[Result], name: str) -> str:
    """Mean and standard deviation of a number of the final step, over the results that have it."""
    return shown(spread([n for r in results if (n := value(r, name, "final")) is not None]))


def difference(results: Sequence[Result], variant: str, reference: str, name: str) -> str:
    """The mean paired difference to the reference, and its 95 % interval."""
    row = compared(results, (variant, reference), name) if variant != reference else None
    if row is None:
        return "-"
    text = f"{row['difference']:+.3f}"
    if row["interval"] is None:
        return text
    low, high = row["interval"]
    return f"{text} [{low:+.3f}, {high:+.3f}]"


def table(results: Sequence[Result], cell: Cell, reference: str) -> str:
    """One task and train size, a row a variant."""
    chosen = [result for result in results if cell_of(result) == cell]
    variants = sorted({str(result["variant"]) for result in chosen}, key=place_of(reference))
    heads = ["variant", "n", *HEADS, f"test, minus {reference}", "loss, minus", "units", "s"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for variant in variants:
        runs = [result for result in chosen if result["variant"] == variant]
        units, seconds = (
            sum(run[name] for run in runs) / len(runs) for name in ("num_gradients", "wall_seconds")
        )
        cells = [
            *(f"`{variant}`", str(len(runs))),
            *(outcome(runs, name) for name in COLUMNS),
            *(
                difference(chosen, variant, reference, name)
                for name in ("test_metric", "test_loss")
            ),
            f"{units:.0f}",
            f"{seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def place_of(reference: str) -> Any:
    """A sort key: the reference first, the others by name."""
    return lambda variant: (variant != reference, variant)


def selected_table(results: Sequence[Result], cell: Cell, reference: str) -> str:
    """The numbers at the step with the lowest held-out loss."""
    chosen = [r for r in results if cell_of(r) == cell and r["selected"] is not None]
    heads = ("variant", "n", "lower step", "train", "test", "test loss", "ECE")
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for variant in sorted({str(r["variant"]) for r in chosen}, key=place_of(reference)):
        found = [r["selected"] for r in chosen if r["variant"] == variant]
        steps = ", ".join(str(one["lower_steps"]) for one in found)
        names = ("train_metric", "test_metric", "test_loss", "ece")
        cells = [shown(spread([one[name] for one in found])) for name in names]
        lines.append("| " + " | ".join([f"`{variant}`", str(len(found)), steps, *cells]) + " |")
    return "\n".join(lines)


def tries_table(results: Sequence[Result]) -> str:
    """What the choice of learning rates saw: held-out data alone."""
    lines = [
        "| try | learning rate | held-out metric | held-out loss |",
        "| --- | --- | --- | --- |",
    ]
    for result in sorted(results, key=lambda r: str(r["variant"])):
        variant, _, rate = str(result["variant"]).rpartition("-")
        held_out = result["metrics"]["validation"]
        if variant.endswith("e"):  # 12e-3: the exponent has a hyphen of its own
            variant, _, first = variant.rpartition("-")
            rate = f"{first}-{rate}"
        metric, loss = held_out[result["metric_name"]], held_out["loss"]
        lines.append(f"| `{variant}` | {rate} | {metric:.4f} | {loss:.3f} |")
    return "\n".join(lines)


def phase_table(results: Sequence[Result]) -> str:
    """What retraining adds: the end of the search beside the end of the run."""
    heads = ("task", "variant", "n", "test after search", "test at the end", "loss", "loss at end")
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for cell in cells_of(results):
        for variant in sorted({str(r["variant"]) for r in results}):
            runs = [r for r in results if cell_of(r) == cell and r["variant"] == variant]
            ends = [r["phases"][0]["metrics"].get("test") for r in runs if len(r["phases"]) > 1]
            if not ends or None in ends:
                continue
            name = runs[0]["metric_name"]
            before, loss = (spread([end[key] for end in ends]) for key in (name, "loss"))
            cells = [
                *(" ".join(cell), f"`{variant}`", str(len(runs))),
                *(shown(before), outcome(runs, "test_metric")),
                *(shown(loss), outcome(runs, "test_loss")),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: Mapping[Cell, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Held-out loss against lower steps and gradient units, a row a cell: means over the seeds."""
    figure = Figure(figsize=(9, 2.9 * len(found)), layout="constrained")
    rows = figure.subplots(len(found), 2, squeeze=False)
    for ((task, size), curves), axes in zip(found.items(), rows, strict=True):
        for variant in DRAWN:
            runs = [
                c["lines"]
                for c in curves
                if (c["task_label"], c["train_size_label"], c["variant"]) == (task, size, variant)
            ]
            if not runs:
                continue
            last = runs[0][-1]["phase"]
            points = [[line for line in run if line["phase"] == last] for run in runs]
            losses = [[line["validation"]["loss"] for line in run] for run in points]
            mean = [sum(values) / len(values) for values in zip(*losses, strict=True)]
            for one, name in zip(axes, ("lower_steps", "num_gradients"), strict=True):
                one.plot([line[name] for line in points[0]], mean, marker=".", label=variant)
        for one, label in zip(
            axes, ("lower steps of the last phase", "gradient units"), strict=True
        ):
            one.set(xlabel=label, ylabel="held-out loss", title=f"{task}, {size} examples")
            one.spines[["top", "right"]].set_visible(False)
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def write() -> None:
    """Renew the page and its figure."""
    results = {grid: read_lines(RESULTS / grid / "results.jsonl") for grid in GRIDS}
    for grid, cell in TABLES:
        text = table(results[grid], cell, GRIDS[grid])
        write_between(PAGE, f"{grid} {' '.join(cell)}", text)
    grid, cell = SELECTED
    chosen = selected_table(results[grid], cell, GRIDS[grid])
    write_between(PAGE, f"selected {' '.join(cell)}", chosen)
    shown_cells = [
        result for grid, cell in TABLES for result in results[grid] if cell_of(result) == cell
    ]
    write_between(PAGE, "phases", phase_table(shown_cells))
    for grid in ("tune", "tune_wnut17"):
        write_between(PAGE, grid, tries_table(read_lines(RESULTS / grid / "results.jsonl")))
    curves = {
        cell: [
            line
            for line in read_lines(RESULTS / grid / "curves.jsonl")
            if (line["task_label"], line["train_size_label"]) == cell
        ]
        for grid, cell in TABLES
        if grid != "leads"
    }
    draw(curves, ROOT / "docs" / "figures" / "pilot_curves.svg")


def main() -> None:
    """Collect, if asked to, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--collect", type=Path, help="folder with the grids' folders")
    options = parser.parse_args()
    if options.collect is not None:
        for folder in sorted(options.collect.iterdir()):
            if (folder / "results.jsonl").exists():
                collect(folder, RESULTS / folder.name)
    write()
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
