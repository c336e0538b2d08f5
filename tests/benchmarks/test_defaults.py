"""The grid of default learning rates: what is tried, measured, and what its tables say."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from applications.methods import METHODS
from benchmarks.defaults import __main__ as command
from benchmarks.defaults import tables, training
from benchmarks.defaults.grid import VARIANTS, Cell, checking, tuning
from benchmarks.defaults.tables import of_model, sizes, tried


def test_every_method_is_tried() -> None:
    assert {variant.flags[1] for variant in VARIANTS.values()} == set(METHODS)


def test_the_check_begins_with_the_defaults_and_goes_on_beside_them() -> None:
    first, *beside = checking("minilm", ["mpqa"], ["full"], [0])
    assert first.flags() == ["--method", "full"]
    rates = [cell.flags()[-1] for cell in beside]
    default = METHODS["full"].learning_rate
    assert rates == [f"--learning_rate={factor * default:g}" for factor in (0.4, 2.5)]
    assert {cell.split for cell in (first, *beside)} == {"test"}
    assert {cell.split for cell in tuning("minilm", ["sst2"], ["lora"], [0, 1])} == {"validation"}


def test_a_table_says_how_far_a_rate_is_from_the_best_on_its_worst_set() -> None:
    default = METHODS["lora"].learning_rate

    def row(task: str, rate: float | None, seed: int, metric: float) -> dict[str, object]:
        known = {"variant": "lora", "task": task, "split": "validation", "seed": seed}
        return known | {"learning_rate": rate, "used": [default, None], "metric": metric}

    rows = [
        row("sst2", None, 0, 0.8),
        row("sst2", None, 1, 0.6),
        row("sst2", 1.0, 0, 0.75),
        row("trec", None, 0, 0.9),
        row("trec", 1.0, 0, 0.5),
    ]
    lines = tried(rows, ("sst2", "trec"), "validation").splitlines()
    assert lines[2:] == [
        f"| `lora` | **{default:g}** | 70.0 | 90.0 | -5.0 |",
        "| `lora` | 1 | 75.0 | 50.0 | -40.0 |",
    ]


def test_models_have_tables_of_their_own() -> None:
    known = {"variant": "lora", "task": "trec", "split": "validation", "learning_rate": 1.0}
    rows = [{**known, "model": "minilm", "metric": 0.9}, {**known, "model": "other", "metric": 0.5}]
    assert tried(of_model(rows, "other"), ("trec",), "validation").splitlines()[2:] == [
        "| `lora` | 1 | 50.0 |  |"
    ]
    assert tried(of_model(rows, "third"), ("trec",), "validation") == "No run yet."


def test_the_sizes_of_hypergradients_are_their_extremes_over_the_runs() -> None:
    rows = [
        {"variant": "bilora", "hypergradient": [1e-9, 2e-6, 1e-3], "moved": 0.1},
        {"variant": "bilora", "hypergradient": [1e-7, 4e-6, 1e-4], "moved": 0.3},
    ]
    assert sizes(rows).splitlines()[2:] == ["| `bilora` | 2 | 1e-09 | 3e-06 | 1e-03 | 0.200 |"]


def test_a_rate_of_the_upper_level_is_given_as_one() -> None:
    cell = Cell("minilm", "trec", "bilora", 2e-3, 1e-2, 0, "validation")
    method = ["--method", "bilora"]
    assert cell.flags() == [*method, "--learning_rate=0.002", "--upper_learning_rate=0.01"]


def test_what_has_a_row_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[Cell] = []

    def trained(cell: Cell, data: list[str], model: str, more: list[str]) -> dict[str, Any]:
        runs.append(cell)
        return {"metric": 0.5}

    monkeypatch.setattr(training, "trained", trained)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results.jsonl")
    words = ["defaults", "tune", "--tasks", "sst2", "--variants", "lora", "--seeds"]
    for seeds in (["3"], ["3"], ["3", "4"]):
        monkeypatch.setattr(sys, "argv", [*words, *seeds])
        command.main()
    rates = VARIANTS["lora"].rates
    assert [(run.seed, run.learning_rate) for run in runs] == [
        (n, r) for n in (3, 4) for r in rates
    ]
    capsys.readouterr()


@pytest.mark.parametrize("split, rows", [("validation", 12), ("test", 30)])
def test_tuning_is_measured_on_validation_and_the_check_on_test(
    split: str, rows: int, tiny_model: str, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    family = training.TextClassification

    def evaluate(_: Any, model: Any, examples: Any, work: Any, **how: Any) -> Any:
        seen.update(rows=len(examples), pace=work.options.levels.lower_steps, **how)
        return SimpleNamespace(metrics={"accuracy": 0.25}, loss=1.5)

    monkeypatch.setattr(family, "evaluate", evaluate)
    monkeypatch.setattr(training, "STEPS", 2)
    monkeypatch.setattr(training, "PACE", 2)
    cell = Cell("tiny", "topics", "bilora", 1e-2, 0.5, 0, split)
    row = training.trained(cell, ["--data_dir", str(tiny_data)], tiny_model)
    assert seen == {"rows": rows, "pace": 2 if split == "validation" else 1} | {
        **{"split": split, "stage": "final"}
    }
    assert (row["used"], row["metric"], row["loss"]) == ([1e-2, 0.5], 0.25, 1.5)
    assert 0 < row["moved"] <= 1.01  # a step of Adam is at most the rate, here nearly


def test_the_motion_of_the_upper_level_is_told_by_adam_and_the_distance() -> None:
    """Under a constant gradient Adam's unbiased mean square is its square, from the first step."""
    sizes, signs = np.logspace(-6, 0, 41), np.resize([1.0, -1.0], 41)
    values = [torch.nn.Parameter(torch.zeros(n)) for n in (40, 1)]
    optimizer = torch.optim.AdamW(values, 0.1, betas=(0.7, 0.97), eps=1e-15)
    graph: Any = SimpleNamespace(
        problems=[
            SimpleNamespace(name="lower", optimizer=None),
            SimpleNamespace(name="upper", optimizer=optimizer),
        ]
    )
    start = training.upper_values(graph)
    for _ in range(3):
        for value, part in zip(values, np.split(sizes * signs, [40]), strict=True):
            value.grad = torch.from_numpy(part).float()
        optimizer.step()
    found = training.upper_motion(graph, start)
    assert found["hypergradient"] == pytest.approx(np.quantile(sizes, [0.05, 0.5, 0.95]), rel=1e-3)
    gone = np.concatenate([value.detach().numpy() for value in values])
    assert found["moved"] == pytest.approx(np.linalg.norm(gone) / len(gone) ** 0.5, rel=1e-5)
    assert training.upper_motion(SimpleNamespace(problems=[]), []) == {}  # type: ignore[arg-type]


def test_every_table_of_the_page_is_of_its_own_rows(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    names = ("rates", "tuned", "second model", "checked", "hypergradients", "epsilons")
    page.write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\nkept\n" for name in names))

    def row(model: str, task: str, split: str, metric: float) -> dict[str, Any]:
        known = {"model": model, "task": task, "split": split, "variant": "lora", "seed": 0}
        return known | {"learning_rate": 1.0, "metric": metric}

    rows = [
        row("minilm", "sst2", "validation", 0.91),
        row("minilm", "mpqa", "test", 0.92),
        row("smollm2", "sst2", "validation", 0.93),
        row("minilm", "mpqa", "validation", 0.94),  # of no table
    ]
    epsilon = {"variant": "lora_weight_decay", "upper_adam_epsilon": 1e-8, "moved": 0.5}
    epsilon["hypergradient"] = [1e-10, 1e-8, 1e-6]
    files = tmp_path / "results.jsonl", tmp_path / "epsilons.jsonl"
    for file, found in zip(files, (rows, [epsilon]), strict=True):
        file.write_text("".join(json.dumps(one) + "\n" for one in found))
    tables.write(*files, page)
    text = page.read_text()
    parts = {
        name: text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0] for name in names
    }
    for name, cell in {"tuned": "91.0", "second model": "93.0", "checked": "92.0"}.items():
        assert [number for number in ("91.0", "92.0", "93.0", "94.0") if number in parts[name]] == [
            cell
        ]
    assert "| `lora_weight_decay` | 1e-08 | 1e-02 | 1e+00 | 1e+02 | 0.500 |" in parts["epsilons"]
    assert (text.count("kept"), text.count("old")) == (6, 0)
