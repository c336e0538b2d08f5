"""What the numbers of a run are and say: a table, and a sentence."""

from collections.abc import Mapping
from typing import Any

from scipy.stats import binomtest  # type: ignore[import-untyped]

from applications.pages.table import Table, shown, table

SPLITS = {"train": "training", "validation": "validation", "test": "test"}
LEVEL = 0.95
FAR = 0.1
"""A training metric so much above the test metric, for metrics between 0 and 1, is said to be."""


def conclusion(summary: Mapping[str, Any]) -> str:
    """The test metric with what it can be compared with: chance, the training examples, the
    selected step.

    Of an accuracy, Wilson's 95 % interval: how far it may lie from that on all texts of this kind,
    were the test examples drawn anew; it knows nothing of other seeds.
    """
    name, test, number = summary["metric_name"], summary["test_metric"], evaluated(summary, "test")
    where = "the test examples" if number is None else f"{number:,} test examples"
    if test is None:
        return f"On {where} {name} is not defined."
    parts = [f"On {where} {name} is {test:.3f}"]
    most = test
    if name == "accuracy" and number:
        parts.append(beside_chance(test, number, summary["per_class"]))
        most = interval(test, number)[1]
    train = summary["train_metric"]
    if train is not None:
        much = name in ("accuracy", "f1") and train - test > FAR and train > most
        parts.append(f"on training examples {train:.3f}" + much * ", which it fits far better")
    chosen = summary["selected"]
    if chosen and chosen["test_metric"] is not None:
        parts.append(
            f"at the selected step, after {chosen['lower_steps']:,} updates, "
            f"{chosen['test_metric']:.3f} on test"
        )
    return "; ".join(parts) + "."


def on_d2(selected: Mapping[str, Any]) -> bool:
    """Whether the data that selected a step are D2, not a validation split."""
    return selected.get("selected_on") == "upper_data"


def quality(summary: Mapping[str, Any]) -> Table:
    """Loss and metrics of each split, with the number of examples that they were taken on."""
    scores, metric = summary["metrics"], summary["metric_name"]
    names = [n for n in scores["test"] if n != "loss" and not n.startswith("f1_")]
    names.sort(key=lambda name: name != metric)
    rows = [
        [SPLITS[split], number_of(summary, split)]
        + [shown(scores[split][name]) for name in ("loss", *names)]
        for split in SPLITS
        if split in scores
    ]
    return table("Quality", ["split", "examples", "loss", *names], rows)


def number_of(summary: Mapping[str, Any], split: str) -> str:
    """How many examples of a split were evaluated, of how many."""
    whole, number = summary["examples"][split], evaluated(summary, split)
    return shown(whole) if number in (None, whole) else f"{shown(number)} of {shown(whole)}"


def evaluated(summary: Mapping[str, Any], split: str) -> int | None:
    """The number of examples of a split that were evaluated; None where it is not known."""
    found: int | None = (summary.get("evaluated") or {}).get(split)
    return found


def interval(accuracy: float, number: int) -> tuple[float, float]:
    """Wilson's interval of the accuracy on so many examples."""
    low, high = binomtest(round(accuracy * number), number).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def beside_chance(accuracy: float, number: int, classes: Mapping[str, Any] | None) -> str:
    """An accuracy's interval, and the most frequent class beside it."""
    low, high = interval(accuracy, number)
    text = f"95 % interval {low:.3f} to {high:.3f}"
    if not classes:
        return text
    most = max(one["support"] for one in classes.values()) / number
    beside = "above" if low > most else "below" if high < most else "not clearly above"
    return f"{text}, {beside} the most frequent class alone ({most:.3f})"
