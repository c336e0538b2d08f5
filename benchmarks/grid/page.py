"""``python -m benchmarks.grid.page``: the answer and the tables of docs/results.md, from rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from applications.comparison.statistics import holm
from benchmarks.accuracy import write_between
from benchmarks.grid.pairs import Paired, paired
from benchmarks.grid.rows import RESULTS, Row, read

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"
ROWS = PAGE.parents[1] / RESULTS
TRIES = ROWS.with_name("tuning.jsonl")
QUESTIONS = {
    ("bilora_softmax", "lora_eighth"): "softmax BiLoRA, retrained, less LoRA at its scale",
    ("bilora_real", "lora"): "real BiLoRA, retrained, less LoRA",
    ("bidora", "dora"): "BiDoRA, retrained, less DoRA",
    ("bilora_softmax", "bilora_joint"): "softmax BiLoRA less its parameters trained jointly",
    (
        "bilora_softmax",
        "bilora_unmoved",
    ): "softmax BiLoRA less the same with values that do not move",
    ("bilora_joint", "lora_eighth"): "joint training less LoRA at its scale",
    ("lora_eighth", "lora"): "LoRA at an eighth of the scale less LoRA",
    ("dora", "lora"): "DoRA less LoRA",
    ("lora_decay", "lora"): "LoRA with weight decay less LoRA",
}
"""The comparisons that decide, and what each is."""
IN_REGIMES = {
    ("bilora_softmax", "lora_two_stage"): "softmax BiLoRA, retrained, less LoRA in two stages",
    ("bilora_real", "lora_two_stage"): "real BiLoRA, retrained, less LoRA in two stages",
    ("bidora", "lora_two_stage"): "BiDoRA, retrained, less LoRA in two stages",
    ("bilora_softmax", "lora_eighth"): "softmax BiLoRA, retrained, less LoRA on everything",
    ("bilora_joint", "lora_eighth"): "joint training less LoRA on everything",
    ("lora_two_stage", "lora_eighth"): "LoRA in two stages less LoRA on everything",
    ("lora_upper_data", "lora_two_stage"): "LoRA on D2 alone less LoRA in two stages",
    (
        "bilora_softmax",
        "bilora_unmoved",
    ): "softmax BiLoRA less the same with values that do not move",
    (
        "bilora_unmoved",
        "lora_eighth",
    ): "values that do not move less LoRA on everything",
}
OF_RESPONSES = {
    ("bilora_unrolled", "bilora_float32"): "exact hypergradient less the difference of gradients",
    ("bilora_unrolled", "unmoved_float32"): "exact hypergradient less values that do not move",
}
OUTCOMES = {
    "test_metric": "test metric, points",
    "test_loss": "test loss",
    "ece": "ECE",
    "calibrated_loss": "loss after temperature scaling",
    "calibrated_ece": "ECE after temperature scaling",
}
COLUMNS = {
    "test_metric": "test",
    "test_loss": "loss",
    "ece": "ECE",
    "brier": "Brier",
    "temperature": "T",
    "calibrated_loss": "loss, T",
    "calibrated_ece": "ECE, T",
    "calibrated_brier": "Brier, T",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def methods_of(rows: Sequence[Row]) -> list[str]:
    """The methods there are, in the order of their first rows."""
    return list(dict.fromkeys(row["method"] for row in rows))


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """The tasks there are, in order."""
    return sorted({row["task"] for row in rows})


def mean(rows: Sequence[Row], name: str) -> str:
    """``mean ± standard deviation`` of a number over the rows that have it."""
    found = [row[name] for row in rows if row.get(name) is not None]
    if not found:
        return "-"
    text = f"{np.mean(found):.3f}"
    return text if len(found) == 1 else f"{text} ± {np.std(found, ddof=1):.3f}"


def cells(rows: Sequence[Row]) -> str:
    """A row a task and method: means over the subsets."""
    lines = []
    for task in tasks_of(rows):
        for method in methods_of(rows):
            mine = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            if mine:
                units = np.mean([row["num_gradients"] for row in mine])
                numbers = [mean(mine, name) for name in COLUMNS]
                lines.append([task, f"`{method}`", str(len(mine)), *numbers, f"{units:.0f}"])
    return table(["task", "method", "n", *COLUMNS.values(), "units"], lines)


def limits(found: tuple[float, float] | None, factor: float, digits: int) -> str:
    """An interval in brackets."""
    if found is None:
        return "-"
    low, high = (factor * limit for limit in found)
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def probability(p: float | None) -> str:
    """A p-value."""
    return "-" if p is None else f"{p:.3f}"


def comparisons(rows: Sequence[Row], pairs: dict[tuple[str, str], str], outcome: str) -> str:
    """A row a pair of methods: the mean difference over all subsets of all tasks."""
    found = [
        (text, result) for pair, text in pairs.items() if (result := paired(rows, *pair, outcome))
    ]
    adjusted = holm([result.p_wilcoxon for _, result in found])
    factor, digits = (100.0, 2) if outcome == "test_metric" else (1.0, 3)
    lines = [
        [
            text,
            f"{one.num_pairs} of {one.num_tasks}",
            f"{factor * one.mean:+.{digits}f}",
            limits(one.interval, factor, digits),
            limits(one.tasks_interval, factor, digits),
            *map(probability, (one.p_t, one.p_wilcoxon, p)),
        ]
        for (text, one), p in zip(found, adjusted, strict=True)
    ]
    head = ["difference", "pairs of tasks", "mean", "95 %", "95 %, tasks in general"]
    return table([*head, "p, t", "p, Wilcoxon", "p, Holm"], lines)


def retraining(rows: Sequence[Row]) -> str:
    """What retraining adds: the end of the search beside the end of the run."""
    lines = []
    for task in tasks_of(rows):
        for method in methods_of(rows):
            mine = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            searched = [row["search"] for row in mine if row["search"]]
            if searched and len(searched) == len(mine):
                numbers = [
                    *(mean(searched, "test_metric"), mean(mine, "test_metric")),
                    *(mean(searched, "loss"), mean(mine, "test_loss")),
                ]
                lines.append([task, f"`{method}`", str(len(mine)), *numbers])
    head = [
        "task",
        "method",
        "n",
        "test after the search",
        "test at the end",
        "loss",
        "loss at end",
    ]
    return table(head, lines)


def said(one: Paired, unit: str, factor: float, digits: int) -> str:
    """A difference in words, with its interval and what may be concluded."""
    difference = f"{factor * one.mean:+.{digits}f}{unit}"
    if one.interval is None:
        return f"{difference}, without a spread to judge it by"
    clear = one.interval[0] > 0 or one.interval[1] < 0
    verdict = "" if clear else ", which cannot be told from none"
    return f"{difference} {limits(one.interval, factor, digits)}{verdict}"


def answer(rows: Sequence[Row]) -> str:
    """The differences that decide, in words."""
    sentences = []
    names = {
        ("bilora_softmax", "lora_eighth"): "softmax BiLoRA and LoRA at the same scale",
        ("bilora_softmax", "bilora_unmoved"): "softmax BiLoRA and the same with unmoved values",
        ("bilora_real", "lora"): "real BiLoRA and LoRA",
        ("bidora", "dora"): "BiDoRA and DoRA",
    }
    for pair, text in names.items():
        metric, loss = (paired(rows, *pair, name) for name in ("test_metric", "calibrated_loss"))
        if metric is not None and loss is not None:
            sentences.append(
                f"- **{text}** (pairs: {metric.num_pairs}): {said(metric, ' points', 100, 1)}; "
                f"test loss after temperature scaling {said(loss, '', 1, 3)}."
            )
    return "\n".join(sentences)


def progress(rows: Sequence[Row]) -> str:
    """How many subsets of each task are finished with every method, a row a slice."""
    lines = []
    for part in dict.fromkeys(row["slice"] for row in rows):
        mine = [row for row in rows if row["slice"] == part]
        methods = set(methods_of(mine))
        for task in tasks_of(mine):
            by_seed: dict[int, set[str]] = {}
            for row in mine:
                if row["task"] == task:
                    by_seed.setdefault(row["seed"], set()).add(row["method"])
            whole = sum(found == methods for found in by_seed.values())
            runs = sum(map(len, by_seed.values()))
            lines.append([part, task, str(len(methods)), str(whole), str(runs)])
    return table(["slice", "task", "methods", "subsets with all of them", "runs"], lines)


def starts(rows: Sequence[Row]) -> str:
    """LoRA with other starts on the subset of seed 0, beside what a retraining drew there."""
    lines = []
    again = [row for row in rows if row["slice"] == "noise"]
    for task in tasks_of(again):
        first = [r for r in rows if (r["slice"], r["task"], r["seed"]) == ("tasks", task, 0)]
        by_method = {row["method"]: row for row in first}
        mine = [row for row in [*first, *again] if row["task"] == task]
        mine = [row for row in mine if row["method"] == "lora_eighth"]
        for name in ("test_metric", "test_loss"):
            values = [row[name] for row in mine]
            found = [by_method[m][name] for m in ("bilora_unmoved", "bilora_softmax")]
            span = f"{min(values):.3f} to {max(values):.3f}"
            numbers = [str(len(mine)), mean(mine, name), span, *(f"{v:.3f}" for v in found)]
            lines.append([task, name.replace("_", " "), *numbers])
    head = ["task", "what", "starts", "`lora_eighth`", "from, to"]
    return table([*head, "`bilora_unmoved`", "`bilora_softmax`"], lines)


def tries(rows: Sequence[Row]) -> str:
    """What the choice of learning rates saw: held-out data, and how far training came."""
    lines = []
    for row in rows:
        method, rate = row["method"].split("-", 1)
        numbers = [row["validation_loss"], row["validation_metric"], row["train_metric"]]
        lines.append([f"`{method}`", rate, *(f"{number:.3f}" for number in numbers)])
    return table(["method", "rate", "held-out loss", "held-out metric", "train"], lines)


def blocks(rows: Sequence[Row], tuning: Sequence[Row] = ()) -> dict[str, str]:
    """What stands between the marks of the page."""
    tasks, regimes, responses, decay = (
        [row for row in rows if row["slice"] == part]
        for part in ("tasks", "regimes", "responses", "decay")
    )
    made = {"answer": answer(tasks), "progress": progress(rows), "cells": cells(tasks)}
    for outcome in OUTCOMES:
        made[f"differences {outcome}"] = comparisons(tasks, QUESTIONS, outcome)
    made["retraining"] = retraining(tasks)
    if tuning:
        made["tries"] = tries(tuning)
    if regimes:
        made["regimes"] = cells(regimes)
        made["regimes differences"] = comparisons(regimes, IN_REGIMES, "test_metric")
        made["regimes retraining"] = retraining(regimes)
    if responses:
        made["responses"] = cells(responses)
        made["responses differences"] = comparisons(responses, OF_RESPONSES, "test_metric")
        made["responses loss"] = comparisons(responses, OF_RESPONSES, "test_loss")
    if any(row["slice"] == "noise" for row in rows):
        made["starts"] = starts(rows)
    if decay:
        made["decay"] = cells(decay)
    return made


def main() -> None:
    """Renew the page."""
    text = PAGE.read_text(encoding="utf-8")
    for mark, block in blocks(read(ROWS), read(TRIES)).items():
        if f"<!-- {mark} -->" in text:
            write_between(PAGE, mark, block)
    print(PAGE.name)


if __name__ == "__main__":
    main()
