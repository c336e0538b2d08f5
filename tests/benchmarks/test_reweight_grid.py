"""The plan of the grid of sources: which runs, at which rates, and what its tables say."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import mannwhitneyu

from benchmarks.reweight.generation import POISONED, SIZES, displaced, once, weights
from benchmarks.reweight.on_features import area
from benchmarks.reweight.page import bold, costs, on_features, scores, told
from benchmarks.reweight.plan import (
    METHODS,
    RATES,
    Run,
    best_rates,
    expected_seconds,
    finetuning,
    tuning,
)
from benchmarks.reweight.rows import read
from benchmarks.reweight.running import run_all

PAIR = ("two_stage", "weights")


def tried(method: str, rate: float, seed: int, metric: float, seconds: float = 1.0) -> Any:
    run = Run("sst2_cr", "minilm_lora", 60, seed, method, rate)
    return {**run.key, "test_metric": metric, "cpu_seconds": seconds}


def row(run: Run) -> Any:
    return {**run.key, "test_metric": 0.5, "cpu_seconds": 60.0}


def test_every_method_has_the_same_tries() -> None:
    runs = list(tuning("sst2_cr", (60,), (100, 101), METHODS))
    tries = [[(r.seed, r.learning_rate) for r in runs if r.method == m] for m in METHODS]
    assert all(each == tries[0] for each in tries)
    assert len(tries[0]) == 2 * len(RATES)


def test_the_best_rate_is_chosen_on_seeds_that_all_methods_ended() -> None:
    """On seed 101, where two_stage prefers the last rate by far, one run is missing."""
    rows = [tried(m, rate, 100, 0.8 - 0.1 * n) for m in PAIR for n, rate in enumerate(RATES)]
    rows += [tried("two_stage", rate, 101, 0.1 + 0.4 * n) for n, rate in enumerate(RATES)]
    rows += [tried("weights", rate, 101, 0.1 + 0.4 * n) for n, rate in enumerate(RATES[:-1])]
    assert best_rates(rows, "sst2_cr", PAIR) == dict.fromkeys(PAIR, RATES[0])
    rows.append(tried("weights", RATES[-1], 101, 0.9))
    assert best_rates(rows, "sst2_cr", PAIR) == dict.fromkeys(PAIR, RATES[-1])


def test_without_all_tries_there_is_no_best_rate() -> None:
    rows = [tried("weights", RATES[0], 100, 0.9)]
    with pytest.raises(SystemExit, match="run the part tune first"):
        best_rates(rows, "sst2_cr", ["weights"])


def test_runs_with_a_row_are_not_run_again(tmp_path: Path) -> None:
    file, asked, said = tmp_path / "rows.jsonl", [], []
    runs = list(finetuning("sst2_cr", (60,), (0, 1), PAIR, dict.fromkeys(PAIR, 1e-3)))

    def train(run: Run) -> Any:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(run)
        return row(run)

    with pytest.raises(KeyboardInterrupt):
        run_all(runs, file, train, say=said.append)
    assert [line.split(":")[0] for line in said[1:]] == [
        f"{n}/4 sst2_cr, 60 labels, seed {seed}, {method}, rate 0.001"
        for n, seed, method in ((1, 0, "two_stage"), (2, 0, "weights"), (3, 1, "two_stage"))
    ]
    run_all(runs, file, row, say=said.append)
    assert said[-2] == "1 of 4 runs are left; CPU time: about 1 min"
    assert [Run(**{k: r[k] for k in run.key}) for r, run in zip(read(file), runs, strict=True)] == (
        runs
    )


def test_no_run_is_begun_that_would_end_after_the_limit(tmp_path: Path) -> None:
    """Each takes a minute, so that none fits into half of one, once that is known."""
    file, said = tmp_path / "rows.jsonl", []
    runs = tuning("sst2_cr", (60,), (100,), PAIR)
    run_all(runs, file, row, minutes=0.5, say=said.append)
    assert len(read(file)) == 1
    assert said[-1] == "stopped before the limit of 0.5 minutes; the same command goes on"


def test_the_time_left_is_that_of_each_method() -> None:
    rows = [tried("two_stage", 1e-3, 0, 0.5, seconds) for seconds in (10.0, 20.0)]
    rows.append(tried("weights", 1e-3, 0, 0.5, 60.0))
    runs = list(finetuning("sst2_cr", (60,), (5,), METHODS[:3], dict.fromkeys(METHODS, 1e-3)))
    assert expected_seconds(runs, rows) == pytest.approx(15 + 60 + 30)
    assert expected_seconds(runs, []) is None


def test_one_seed_has_a_difference_and_no_interval() -> None:
    rows = [tried("helpful", 1e-3, 0, 0.8), tried("two_stage", 1e-3, 0, 0.7)]
    assert scores(rows).splitlines()[2:] == [
        "| **helpful sources** | 0.001 | 1 | 80.0 |  |  | 1 |",
        "| two-stage | 0.001 | 1 | 70.0 | +10.0 |  | 1 |",
    ]


def test_costs_are_told_over_plain_training() -> None:
    plain = {"way": "plain", "fine_tuning": 100.0, "finish": 0.0, "whole": 100.0, "gradients": 300}
    ours = {"way": "features", "fine_tuning": 100.0, "finish": 4.0, "search": 6.0, "gradients": 312}
    rows = [plain, {**ours, "embedding": 20.0, "whole": 130.0}]
    assert costs(rows).splitlines()[2:] == [
        "| plain |  |  | 100 | 0 | 100 | 1.00 | 1.00 |",
        "| features | 20 | 6 | 100 | 4 | 130 | 1.30 | 1.04 |",
    ]


@pytest.mark.parametrize("method", ["two_stage", "uniform", "oracle"])
def test_weights_of_sources_of_texts_have_a_mean_of_one_a_text(method: str) -> None:
    given = weights(method, SIZES)
    assert given is not None
    whole = sum(SIZES.values())
    shares = {name: weight * SIZES[name] / whole for name, weight in given.items()}
    assert sum(shares.values()) == pytest.approx(1)
    if method == "uniform":
        assert shares == pytest.approx(dict.fromkeys(SIZES, 1 / len(SIZES)))
    assert {name for name in SIZES if shares[name] == 0} == (
        set(POISONED) if method == "oracle" else set()
    )


def test_no_meaning_keeps_its_text() -> None:
    pairs = [(f"name : {n // 2}", f"text {n}") for n in range(10)]
    true = {text: meaning for meaning, text in pairs}
    poisoned = displaced(pairs)
    assert sorted(text for _, text in poisoned) == sorted(true)
    assert all(true[text] != meaning for meaning, text in poisoned)


def test_the_first_text_of_each_meaning_is_taken() -> None:
    assert once([("a", "1"), ("b", "2"), ("a", "3")]) == [("a", "1"), ("b", "2")]


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; from benchmarks.reweight.__main__ import parser; parser(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_area_is_that_of_mann_and_whitney() -> None:
    scores_, wrong = torch.tensor([0.9, 0.5, 0.5, 0.1, 0.7]), torch.tensor([0, 0, 1, 1, 1]) > 0
    counted = mannwhitneyu(scores_[~wrong], scores_[wrong]).statistic / 6
    assert area(scores_, wrong) == pytest.approx(counted, abs=1e-4)
    assert area(-scores_, wrong) == pytest.approx(1 - counted, abs=1e-4)


def test_the_table_of_features_has_ours_first_and_pairs_seeds() -> None:
    values = {"helpful": (0.8, 0.9), "two_stage": (0.7, 0.85), "oracle": (0.95, 0.9)}
    rows = [
        {"task": "a", "route": "features", "labels": 24, "seed": s, "method": m, "test_metric": v}
        for m, both in values.items()
        for s, v in enumerate(both)
    ]
    other = {**rows[2], "route": "minilm_lora", "test_metric": 0.0}
    lines = on_features([*rows, other], {("a", 24): "24 labels"}).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| **helpful sources**", "85.0"],
        ["| the oracle's sources", "92.5"],
        ["| two-stage", "77.5"],
    ]
    assert "+7.5 (" in lines[2]  # 10 and 5 points, of the same seeds
    assert "-7.5 (" in lines[1]  # -15 and 0


@pytest.mark.parametrize(
    "text, expected",
    [
        ("+2.0 (+1.0 to +3.0)", "**+2.0** (+1.0 to +3.0)"),
        ("-2.0 (-3.0 to -1.0)", "**-2.0** (-3.0 to -1.0)"),
        ("+2.0 (-1.0 to +3.0)", "+2.0 (-1.0 to +3.0)"),
        ("+2.0", "+2.0"),
        ("", ""),
    ],
)
def test_a_difference_is_bold_where_its_interval_leaves_zero_out(text: str, expected: str) -> None:
    assert bold(text) == expected


def test_a_score_has_its_mean_area_in_each_cell() -> None:
    rows = [
        {"task": "sst2_cr", "labels": labels, "score": "pull", "area": value}
        for labels, value in ((24, 0.9), (24, 0.8), (60, 1.0))
    ]
    first = told(rows).splitlines()[2].split(" | ")
    assert first[1:4] == ["0.85", "1.00", ""]
