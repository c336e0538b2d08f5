"""What is said of a run's numbers."""

import pytest
from scipy.stats import norm

from applications.runs.conclusion import conclusion, quality
from tests.applications.synthetic_grids import summary

CLASSES = {"yes": {"support": 30}, "no": {"support": 10}}


def said(**changes: object) -> str:
    return conclusion(summary() | {"evaluated": {"test": 40}, "per_class": CLASSES} | changes)


def test_an_accuracy_has_wilsons_interval_and_chance_beside_it() -> None:
    text = said(test_metric=0.9, train_metric=0.95)
    # Wilson (1927): the roots of |p - 0.9| = z sqrt(p (1 - p) / 40).
    n, p, z = 40, 0.9, norm.ppf(0.975)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = ((p + z * z / (2 * n) + k * half) / (1 + z * z / n) for k in (-1, 1))
    assert text.startswith("On 40 test examples accuracy is 0.900; ")
    assert f"95 % interval {low:.3f} to {high:.3f}" in text
    assert "above the most frequent class alone (0.750)" in text
    assert text.endswith("on training examples 0.950.")


@pytest.mark.parametrize(
    "test, words", [(0.8, "not clearly above"), (0.7, "not clearly above"), (0.2, "below the most")]
)
def test_what_is_not_above_chance_is_said(test: float, words: str) -> None:
    assert words in said(test_metric=test)


def test_a_gap_and_a_selected_step_are_told() -> None:
    chosen = {"lower_steps": 20, "test_metric": 0.8}
    text = said(test_metric=0.775, train_metric=1.0, selected=chosen)
    assert "on training examples 1.000, which it fits far better" in text
    assert text.endswith("at the selected step, after 20 updates, 0.800 on test.")


def test_a_gap_within_the_interval_is_no_gap() -> None:
    assert said(test_metric=0.5, train_metric=0.62).endswith("on training examples 0.620.")


def test_a_gap_below_a_tenth_is_not_told_either() -> None:
    assert said(test_metric=0.9, train_metric=0.99).endswith("on training examples 0.990.")


def test_other_metrics_have_no_interval() -> None:
    text = said(metric_name="bleu", test_metric=31.0, train_metric=42.0)
    assert text == "On 40 test examples bleu is 31.000; on training examples 42.000."
    assert said(test_metric=None) == "On 40 test examples accuracy is not defined."


def test_every_split_has_its_own_numbers_the_metric_first() -> None:
    splits = ("train", "validation", "test")
    scores = {
        name: {"loss": k + 0.25, "f1": k + 0.5, "ece": k + 0.75} for k, name in enumerate(splits)
    }
    found = quality(
        {
            "metrics": scores,
            "metric_name": "ece",
            "examples": {"train": 2000, "validation": 30, "test": 40},
            "evaluated": {"train": 100, "validation": 30, "test": 40},
        }
    )
    assert list(found.head) == ["split", "examples", "loss", "ece", "f1"]
    assert [[cell.text for cell in row] for row in found.rows] == [
        ["training", "100 of 2,000", "0.25", "0.75", "0.5"],
        ["validation", "30", "1.25", "1.75", "1.5"],
        ["test", "40", "2.25", "2.75", "2.5"],
    ]
