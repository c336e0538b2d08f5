"""The deciding grid: its regimes, its rows and its paired statistics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from scipy import stats  # type: ignore[import-untyped]

from applications.data.examples import TaskData
from applications.data.splits import Splits, two_levels
from applications.errors import UsageError
from applications.families.classification import TextClassification
from applications.options.arguments import DataOptions, LevelOptions, Options
from applications.runs.phases import Workload
from benchmarks.grid.__main__ import GRID
from benchmarks.grid.page import (
    IN_REGIMES,
    OF_RESPONSES,
    QUESTIONS,
    blocks,
    comparisons,
    mean,
    progress,
    retraining,
    said,
    starts,
    tries,
)
from benchmarks.grid.pairs import Paired, differences, paired
from benchmarks.grid.regimes import another_domain, in_regime, mislabelled
from benchmarks.grid.rows import KEPT, append, left, read, settings
from benchmarks.grid.rows import row as made_row
from benchmarks.grid.slices import Regime, read_slices

FLAGS = {"data_dir": "data"}


def task(labels: list[int], word: str = "text", name: str = "made") -> TaskData:
    texts = [f"{word} {number}" for number in range(len(labels))]
    train = Dataset.from_dict({"text": texts, "label": labels})
    names = tuple(f"class {number}" for number in sorted(set(labels)))
    return TaskData(name, "classification", "accuracy", names, {"train": train})


def row(method: str, seed: int, value: float, **changes: Any) -> dict[str, Any]:
    return {"slice": "tasks", "task": "a", "seed": seed, "method": method, "x": value} | changes


def test_noise_replaces_the_share_of_labels_and_leaves_the_texts() -> None:
    clean = task([0, 1, 2, 3] * 25).splits["train"]
    noisy = mislabelled(clean, share=0.4, classes=4, seed=3)
    wrong = [a != b for a, b in zip(clean["label"], noisy["label"], strict=True)]
    assert sum(wrong) == 40
    assert set(noisy["label"]) == {0, 1, 2, 3}
    assert noisy["text"] == clean["text"]
    assert noisy.features == clean.features
    again = mislabelled(clean, share=0.4, classes=4, seed=3)
    assert again["label"] == noisy["label"]


def test_another_domain_gives_as_many_examples_of_each_class() -> None:
    here = task([0, 1] * 10)
    there = task([0, 1] * 30, "review")
    drawn = another_domain(here, there, count=20, seed=1)
    assert sorted(drawn["label"]) == [0] * 10 + [1] * 10
    assert all(text.startswith("review") for text in drawn["text"])
    assert drawn.features == here.splits["train"].features
    three = task([0, 1, 2] * 9, name="three")
    with pytest.raises(UsageError, match="have different classes"):
        another_domain(here, three, count=20, seed=1)


@pytest.mark.parametrize("control", ["none", "upper_data_only", "two_stage"])
def test_a_regime_changes_d1_alone(control: Any) -> None:
    made = task([0, 1] * 50)
    train = made.splits["train"]
    options = Options(data=DataOptions(task_name="cr"), levels=LevelOptions(control=control))
    lower, upper = two_levels(train, made, upper_fraction=0.2, seed=0)
    own = {"none": (train, train), "upper_data_only": (upper, upper), "two_stage": (lower, upper)}
    splits = Splits(train, None, train, ())
    work = Workload(options, made, None, None, splits, None, *own[control])  # type: ignore[arg-type]
    found = in_regime(work, Regime(noise=0.5), TextClassification())
    truth = dict(zip(train["text"], train["label"], strict=True))

    def wrong(part: Dataset) -> int:
        return sum(
            truth[text] != label for text, label in zip(part["text"], part["label"], strict=True)
        )

    whole = found.splits.train
    assert (len(whole), wrong(whole)) == (100, 40)
    expected = {"none": (40, 40), "upper_data_only": (0, 0), "two_stage": (40, 0)}[control]
    assert (wrong(found.lower), wrong(found.upper)) == expected
    sizes = {"none": (100, 100), "upper_data_only": (20, 20), "two_stage": (80, 20)}[control]
    assert (len(found.lower), len(found.upper)) == sizes


def test_methods_are_paired_by_task_and_seed_and_tested_as_scipy_does() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 2, 5))
    rows = [
        row(method, seed, float(values[t, seed]), task=name)
        for method, values in (("one", first), ("two", second))
        for t, name in enumerate("ab")
        for seed in range(5)
    ]
    found = paired([*rows, row("one", 9, 1.0)], "one", "two", "x")
    assert found is not None
    both = stats.ttest_rel(first.ravel(), second.ravel())
    limits = both.confidence_interval()
    assert (found.num_pairs, found.num_tasks) == (10, 2)
    assert found.mean == pytest.approx((first - second).mean())
    assert found.interval == pytest.approx((limits.low, limits.high))
    assert found.p_t == pytest.approx(both.pvalue)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(first.ravel(), second.ravel()).pvalue)
    # The mixed model on balanced data: the mean square between tasks, over all pairs, one freedom.
    by_task = (first - second).mean(axis=1)
    square = 5 * ((by_task - by_task.mean()) ** 2).sum()
    half = stats.t.ppf(0.975, 1) * np.sqrt(square / 10)
    assert found.tasks_interval == pytest.approx((found.mean - half, found.mean + half))
    assert differences(rows, "one", "three", "x") == {}
    assert paired(rows, "one", "three", "x") is None


def test_equal_methods_have_no_interval_and_no_p_value() -> None:
    rows = [row(method, seed, 0.5) for method in ("one", "two") for seed in range(3)]
    found = paired(rows, "one", "two", "x")
    assert found is not None
    assert (found.mean, found.interval, found.p_t, found.p_wilcoxon) == (0.0, None, None, None)


def test_a_run_with_a_row_is_not_run_again_and_one_with_other_settings_refused(
    tmp_path: Path,
) -> None:
    part = read_slices(GRID)["tasks"]
    runs = part.runs(FLAGS, seeds=[0])
    assert len(runs) == 4 * 9
    made = row(runs[0].variant, 0, 1.0, task=runs[0].task, settings=settings(runs[0]))
    file = tmp_path / "results.jsonl"
    append(made, file)
    file.write_text(file.read_text() + '{"cut')
    assert read(file) == [made]
    append(row("other", 0, 1.0), file)
    assert [found["method"] for found in read(file)] == [runs[0].variant, "other"]
    assert left("tasks", runs, [made]) == runs[1:]
    assert left("regimes", runs, [made]) == runs
    changed = made | {"settings": made["settings"] | {"learning_rate": 1.0}}
    with pytest.raises(UsageError, match="found with the settings"):
        left("tasks", runs, [changed])


def test_the_slices_of_the_file_can_be_planned_and_give_every_method_its_rate() -> None:
    slices = read_slices(GRID)
    assert list(slices)[:3] == ["tasks", "regimes", "responses"]
    for part in slices.values():
        for run in part.runs(FLAGS):
            assert "learning_rate" in run.options
            if run.options["method"] == "bilora" and "singular_values" not in run.options:
                assert run.options["scale_by_rank"] is False  # softmax, at an eighth of the scale


def test_the_page_has_a_row_a_cell_and_a_row_a_comparison() -> None:
    numbers = {"test_loss": 0.5, "ece": 0.1, "brier": 0.2, "num_gradients": 10, "search": None}
    values = {"lora": 0.75, "lora_eighth": 0.8, "bilora_softmax": 0.7}
    rows = [
        row(method, seed, 0.0, test_metric=value + seed * number / 100, **numbers)
        for number, (method, value) in enumerate(values.items())
        for seed in range(3)
    ]
    made = blocks(json.loads(json.dumps(rows)))
    assert len(made["cells"].splitlines()) == 2 + 3
    (line,) = [
        line for line in made["differences test_metric"].splitlines() if "at its scale" in line
    ]
    assert "| 3 of 1 | -9.00 | [" in line  # -10, -9 and -8 points
    assert "| tasks | a | 3 | 3 | 9 |" in made["progress"]


def test_other_starts_of_lora_stand_beside_what_the_retrainings_drew() -> None:
    values = {"lora_eighth": 0.5, "bilora_unmoved": 0.25, "bilora_softmax": 0.125}
    rows = [row(m, 0, 0.0, test_metric=v, test_loss=v) for m, v in values.items()]
    rows += [
        row("lora_eighth", seed, 0.0, slice="noise", test_metric=v, test_loss=v)
        for seed, v in ((1, 0.6), (2, 0.7))
    ]
    line = starts(rows).splitlines()[2]
    assert line == "| a | test metric | 3 | 0.600 ± 0.100 | 0.500 to 0.700 | 0.250 | 0.125 |"


def test_noise_is_drawn_anew_for_every_seed() -> None:
    clean = task([0, 1, 2, 3] * 25).splits["train"]
    one, other = (mislabelled(clean, share=0.4, classes=4, seed=seed) for seed in (3, 4))
    assert one["label"] != other["label"]


def test_a_row_has_the_end_of_the_search_and_the_loss_on_held_out_data() -> None:
    run = read_slices(GRID)["tasks"].runs(FLAGS, seeds=[0])[0]
    splits = {
        "test": {"loss": 0.5, "accuracy": 0.7},
        "validation": {"loss": 0.25, "accuracy": 0.75},
    }
    searched = {"name": "search", "metrics": {"test": {"loss": 2.0, "accuracy": 0.5}}}
    retrained = {"name": "retraining", "metrics": {"test": {"loss": 0.5, "accuracy": 0.7}}}
    summary: dict[str, Any] = dict.fromkeys(KEPT, 0.0) | {
        "metric_name": "accuracy",
        "metrics": splits,
        "phases": [searched, retrained],
        "train_size": 100,
        "versions": {},
    }
    found = made_row("tasks", run, summary)
    assert found["search"] == {"test_metric": 0.5, "accuracy": 0.5, "loss": 2.0}
    assert found["validation_loss"] == 0.25
    alone = made_row("tasks", run, summary | {"phases": [retrained], "metrics": {}})
    assert (alone["search"], alone["validation_loss"]) == (None, None)


def by_seed(method: str, values: list[float], **changes: Any) -> list[dict[str, Any]]:
    return [
        row(method, seed, 0.0, test_metric=value, **changes) for seed, value in enumerate(values)
    ]


def test_a_comparison_is_told_in_points_with_its_interval_and_holms_p() -> None:
    """Six differences of 1 to 6 points, and of 1 to 6 with one negative."""
    gains = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    rows = by_seed("lora", [0.5] * 6)
    rows += by_seed("dora", [0.5 + gain for gain in gains])
    rows += by_seed("bilora_real", [0.5 - gains[0], *(0.5 + gain for gain in gains[1:])])
    pairs = {("dora", "lora"): "first", ("bilora_real", "lora"): "second"}
    first, second = comparisons(rows, pairs, "test_metric").splitlines()[2:]
    limits = stats.t.interval(0.95, 5, 3.5, stats.sem(range(1, 7)))
    interval = f"[{limits[0]:+.2f}, {limits[1]:+.2f}]"
    p_t = stats.ttest_1samp(range(1, 7), 0).pvalue
    # Wilcoxon: 2 / 2^6 and, with the smallest negative, 4 / 2^6; Holm: twice the first.
    expected = f"| first | 6 of 1 | +3.50 | {interval} | - | {p_t:.3f} | 0.031 | 0.062 |"
    assert first == expected
    assert second.endswith("| 0.062 | 0.062 |")


def test_deviations_are_those_of_samples() -> None:
    assert mean([{"x": 1.0}, {"x": 2.0}, {"x": None}, {"x": 4.5}], "x") == "2.500 ± 1.803"
    assert mean([{"x": 1.0}], "x") == "1.000"
    assert mean([{}], "x") == "-"


def test_retraining_stands_beside_the_search_that_it_follows() -> None:
    searched = {"test_metric": 0.25, "loss": 2.0}
    made = row("bilora_real", 0, 0.0, test_metric=0.75, test_loss=0.5, search=searched)
    (line,) = retraining([made]).splitlines()[2:]
    assert line == "| a | `bilora_real` | 1 | 0.250 | 0.750 | 2.000 | 0.500 |"
    assert retraining([made, row("bilora_real", 1, 0.0, search=None)]).count("\n") == 1


def test_subsets_count_as_finished_with_every_method_alone() -> None:
    rows = [row("lora", 0, 0.0), row("dora", 0, 0.0), row("lora", 1, 0.0)]
    assert progress(rows).splitlines()[2] == "| tasks | a | 2 | 1 | 3 |"


@pytest.mark.parametrize(
    "interval, said_of_it",
    [
        ((0.01, 0.03), "+2.0 points [+1.0, +3.0]"),
        ((-0.03, -0.01), "+2.0 points [-3.0, -1.0]"),
        ((-0.01, 0.05), "+2.0 points [-1.0, +5.0], which cannot be told from none"),
        (None, "+2.0 points, without a spread to judge it by"),
    ],
)
def test_a_difference_is_clear_where_its_interval_leaves_zero_out(
    interval: Any, said_of_it: str
) -> None:
    assert said(Paired(3, 1, 0.02, interval, None, None, None), " points", 100, 1) == said_of_it


def test_tries_show_what_held_out_data_said() -> None:
    made = {
        "method": "lora-0.001",
        **{"validation_loss": 0.1, "validation_metric": 0.2, "train_metric": 0.3},
        **{"test_loss": 0.4, "test_metric": 0.5},
    }
    assert tries([made]).splitlines()[2] == "| `lora` | 0.001 | 0.100 | 0.200 | 0.300 |"


@pytest.mark.parametrize("pairs", [QUESTIONS, IN_REGIMES, OF_RESPONSES])
def test_a_text_names_the_methods_of_its_pair_in_their_order(pairs: Any) -> None:
    named = {"bilora": "BiLoRA", "bidora": "BiDoRA", "dora": "DoRA", "lora": "LoRA"}
    for pair, text in pairs.items():
        for method, part in zip(pair, text.split(" less "), strict=True):
            words = set(part.replace(",", "").split()) & set(named.values())
            assert words <= {named.get(method.split("_")[0])}, text
