"""The tables of docs/reweight.md, from rows."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from applications.comparison.statistics import spread
from benchmarks.accuracy import write_between
from benchmarks.reweight.plan import LABELS, LEARNED, METHODS, OURS, RATES, ROUTE, best_rates
from benchmarks.reweight.tables import paired

Row = Mapping[str, Any]

ON_FEATURES = {
    ("sst2_cr", 24): "24 labels",
    ("sst2_cr", 60): "60 labels",
    ("sst2_cr", 200): "200 labels",
    ("trec_shards", 60): "TREC, 60 labels",
}
WEAK = {("trec_weak", 50): "50 labels", ("trec_weak", 100): "100 labels"}
SCORES = {
    "pull": "pull, all sources alike (`weights.json`: `signs`)",
    "agreement": "agreement: the share of labels that a model of the target predicts",
    "pull_at_the_end": "pull under the softmax weights",
    "weights": "softmax weights",
}
NAMES = {
    OURS: "**helpful sources**",
    LEARNED: "softmax weights",
    "target_only": "target only",
    "weighted_union": "union with a weight by cross-validation",
    "random_search": "random search",
    "majority_vote": "majority vote",
    "dawid_skene": "Dawid and Skene's model",
    "two_stage": "two-stage",
    "agreeing_examples": "agreeing examples",
    "oracle": "the oracle's sources",
    "online": "**weights moved along the fine-tuning**",
    "uniform": "uniform: every source the same share",
}


def write(page: Path, parts: Mapping[str, str]) -> None:
    """Write each part between its marks on the page."""
    for mark, text in parts.items():
        write_between(page, mark, text)


def on_features(rows: Sequence[Row], cells: Mapping[tuple[str, int], str]) -> str:
    """A row a method, best first in the first column: for each cell its mean accuracy over the
    seeds, and the helpful sources minus it, in bold where the interval leaves zero out.
    """
    found: dict[tuple[str, int], dict[str, dict[int, float]]] = {cell: {} for cell in cells}
    for row in rows:
        cell = row["task"], row["labels"]
        if row["route"] == "features" and cell in found:
            found[cell].setdefault(row["method"], {})[row["seed"]] = row["test_metric"]
    first = next(iter(cells))
    methods = sorted(found[first], key=lambda m: (m != OURS, -fmean(found[first][m].values())))
    lines = []
    for method in methods:
        line = [NAMES.get(method, method.replace("_", " "))]
        for cell in cells:
            mine = found[cell].get(method, {})
            line.append(f"{100 * fmean(mine.values()):.1f}" if mine else "")
            line.append(bold(paired(found[cell].get(OURS, {}), mine)))
        lines.append(line)
    head = [title for name in cells.values() for title in (name, "helpful minus it")]
    return table(["method", *head], lines)


def bold(text: str) -> str:
    """A difference in bold where its interval leaves zero out."""
    value, _, ends = text.partition(" (")
    signs = {end[0] for end in ends.rstrip(")").split(" to ")} if ends else set()
    return f"**{value}** ({ends}" if len(signs) == 1 else text


def told(rows: Sequence[Row]) -> str:
    """A row a score: the area under the ROC curve in each cell, the mean over the seeds."""
    cells = ON_FEATURES | {cell: f"functions, {name}" for cell, name in WEAK.items()}
    lines = []
    for score, name in SCORES.items():
        line = [name]
        for task, labels in cells:
            of = {"task": task, "labels": labels, "score": score}
            areas = [row["area"] for row in rows if of.items() <= row.items()]
            line.append(f"{fmean(areas):.2f}" if areas else "")
        lines.append(line)
    return table(["score", *cells.values()], lines)


def finetuned(rows: Sequence[Row], tuned: Sequence[Row]) -> str:
    """A table for each number of labels: the runs at the best rate of their method."""
    own = [row for row in rows if row["route"] == ROUTE]
    if not own:
        return f"No run yet; of {len(METHODS) * len(RATES)} tries a seed, {len(tuned)} are there."
    parts = []
    for task in dict.fromkeys(row["task"] for row in own):
        methods = [m for m in METHODS if any(r["task"] == task and r["method"] == m for r in own)]
        rates = best_rates(tuned, task, methods)
        for labels in LABELS:
            cell = [
                row
                for row in own
                if row["task"] == task
                and row["labels"] == labels
                and row["learning_rate"] == rates[row["method"]]
            ]
            if cell:
                parts.append(f"{title(cell)}\n\n{scores(cell)}")
        others = [r for r in own if r["task"] == task and r["learning_rate"] != rates[r["method"]]]
        if others:
            parts.append(f"Not shown: {len(others)} runs of `{task}` at other rates.")
    return "\n\n".join(parts)


def title(rows: Sequence[Row]) -> str:
    """What a table is of, and how few seeds."""
    return f"`{rows[0]['task']}`, {rows[0]['labels']} labels, {seeds_of(rows)}:"


def seeds_of(rows: Iterable[Row]) -> str:
    """``seeds 0, 1``."""
    seeds = sorted({row["seed"] for row in rows})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def scores(rows: Sequence[Row]) -> str:
    """A row a method: accuracy, and the helpful sources minus it where seeds are common."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["seed"]] = row["test_metric"]
    lines = []
    for method, accuracies in found.items():
        mine = [row for row in rows if row["method"] == method]
        whole = spread(list(accuracies.values()))
        assert whole is not None
        std = "" if whole.std is None else f" ± {100 * whole.std:.1f}"
        aucs = [row["auc"] for row in mine if "auc" in row]
        lines.append(
            [
                NAMES.get(method, method),
                f"{mine[0]['learning_rate']:g}",
                str(whole.n),
                f"{100 * whole.mean:.1f}{std}",
                paired(found.get(OURS, {}), accuracies),
                f"{fmean(aucs):.2f}" if aucs else "",
                f"{fmean(row['cpu_seconds'] for row in mine):.0f}",
            ]
        )
    return table(["method", "rate", "seeds", "accuracy", "helpful minus it", "AUC", "CPU s"], lines)


def generated(rows: Sequence[Row]) -> str:
    """A row a method and seed: the loss on the test texts, the weights, what it took."""
    if not rows:
        return "No run yet."
    lines = []
    for row in rows:
        by = row["weights"]
        clean = [value for name, value in by.items() if name.startswith("clean")]
        lines.append(
            [
                NAMES.get(row["method"], row["method"]),
                str(row["seed"]),
                f"{row['test_loss']:.3f}",
                f"{min(clean):.2f} to {max(clean):.2f}",
                f"{by['shuffled']:.2f}",
                f"{by['other']:.2f}",
                str(row["num_gradients"] + row["num_products"]),
                f"{row['cpu_seconds']:.0f}",
            ]
        )
    head = ["method", "seed", "test loss", "clean", "shuffled", "questions", "gradients", "CPU s"]
    return table(head, lines)


def costs(rows: Sequence[Row]) -> str:
    """A row a way of training: its parts in CPU seconds, and the whole over that of plain training;
    the same of gradients.
    """
    if not rows:
        return "No run yet."
    parts = ("embedding", "search", "fine_tuning", "finish", "whole")
    plain = next(row for row in rows if row["way"] == "plain")
    lines = []
    for row in rows:
        seconds = [f"{row[part]:.0f}" if part in row else "" for part in parts]
        ratio, gradients = row["whole"] / plain["whole"], row["gradients"] / plain["gradients"]
        lines.append([row["way"], *seconds, f"{ratio:.2f}", f"{gradients:.2f}"])
    named = [part.replace("_", "-") for part in parts]
    return table(["training", *named, "over plain", "gradients over plain"], lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    align = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, align, *rows))
