"""Whole runs on a tiny random BERT: what they write, what they leave alone, how they go on."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from applications.carried import HEADLINES_PACKAGE
from applications.errors import UsageError
from applications.models import adapting as models
from applications.models import soundness
from applications.nlu import main
from applications.options.command_line import parse_options
from applications.runs.outputs import SUMMARY_KEYS
from tests.applications.tiny_runs import METHODS, Run, run

# The contract of docs/design.md, section 8.
CONTRACT = [
    *("method", "task", "model", "seed", "train_size", "metric_name", "train_metric"),
    *("validation_metric", "test_metric", "train_loss", "test_loss", "ece", "generalisation_gap"),
    *("trainable_params", "upper_params", "num_lower_steps", "num_upper_steps", "num_gradients"),
    *("num_hvps", "wall_seconds", "peak_memory_mb", "hypergradient", "device", "versions"),
    *("brier", "temperature", "calibrated_loss", "calibrated_ece", "calibrated_brier", "control"),
    *("retraining", "selected", "metrics", "reliability", "phases"),
    *("examples", "evaluated", "per_class"),
]


@pytest.mark.figures
@pytest.mark.parametrize("method", METHODS)
def test_a_run_writes_every_file_of_the_contract(method: str, tiny: Run) -> None:
    summary, folder = run(tiny(method, "--eval_steps", "3"))
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "task.json", "metrics.jsonl", "summary.json", "report.html"),
        *("mark.json", "lock"),
        *("adapter", "checkpoints"),
        *(["adapter_training"] if method.startswith("bi") else []),
    }
    written = json.loads((folder / "summary.json").read_text())
    assert list(written) == CONTRACT == list(SUMMARY_KEYS)
    assert written == summary
    assert (written["method"], written["train_size"], written["metric_name"]) == (
        method,
        48,
        "accuracy",
    )
    for name in ("train_metric", "validation_metric", "test_metric", "ece"):
        assert 0 <= written[name] <= 1
    gap = written["train_metric"] - written["test_metric"]
    assert written["generalisation_gap"] == pytest.approx(gap)
    assert set(written["versions"]) == {"torch", "peft", "transformers", "blo-torch"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {phase["name"] for phase in summary["phases"]}
    for phase in range(len(summary["phases"])):
        own = [line for line in lines if line["phase_index"] == phase]
        assert [line["round"] for line in own if "losses" in line] == [1, 2, 4, 6]
        assert [line["round"] for line in own if "validation" in line] == [3, 6]
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    assert "one batch" in page  # the legend of a figure
    assert "src=" not in page
    assert "<link" not in page
    # 48 training examples, of which a fifth is the upper level's; three labels.
    two = method.startswith("bi")
    assert summary["examples"] == {
        **{"train": 48, "validation": 12, "test": 30},
        **({"lower": 38, "upper": 10} if two else {"lower": None, "upper": None}),
    }
    assert ("upper level (D2)" in page) == two
    assert set(summary["per_class"]) == {"animals", "food", "tools"}
    for part in ("Confusions", "Examples of errors", "The 3 labels"):
        assert part in page
    assert "{&#34;" not in page  # no JSON


def test_the_page_counts_the_examples_that_were_evaluated(tiny: Run) -> None:
    summary, folder = run(tiny("lora", "--max_steps", "2", "--max_eval_samples", "9"))
    assert summary["evaluated"] == {"train": 9, "validation": 9, "test": 9}
    assert sum(one["support"] for one in summary["per_class"].values()) == 9
    page = (folder / "report.html").read_text()
    for text in ("9 of 48", "9 of 12", "9 of 30", "On 9 test examples"):
        assert text in page


def test_the_summary_counts_levels_steps_and_costs(tiny: Run) -> None:
    flat, _ = run(tiny("lora", folder="flat"))
    assert (flat["upper_params"], flat["num_upper_steps"], flat["num_lower_steps"]) == (0, 0, 6)
    assert (flat["num_gradients"], flat["num_hvps"], flat["hypergradient"]) == (6, 0, None)
    two, folder = run(tiny("bilora", "--lower_steps", "2", folder="two"))
    # Query and value of two layers, two singular values each.
    assert two["upper_params"] == 2 * 2 * 2
    assert two["trainable_params"] == flat["trainable_params"] + two["upper_params"]
    assert (two["num_lower_steps"], two["num_upper_steps"]) == (6, 3)
    # A round: two lower gradients, an upper one, two for the central difference; two more for the
    # difference that the first response compares it with.
    assert (two["num_gradients"], two["num_hvps"]) == (3 * 5 + 2, 0)
    found = two["hypergradient"]
    assert list(found) == ["method", "scale", "radius", "point"]
    # Default scale: the learning rate of the last lower step of the round, on a linear schedule.
    assert (found["method"], found["point"]) == ("darts", "before")
    assert found["scale"] == pytest.approx(1e-2 * 5 / 6)
    assert found["radius"] > 0
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["round"], line["lower_steps"]) == (3, 6)


@pytest.mark.parametrize(
    "flags, hypergradient",
    [
        (["--hypergradient_scale", "1"], {"method": "darts", "scale": 1.0, "point": "before"}),
        (["--hypergradient", "t1t2"], {"method": "t1t2", "radius": None, "point": "before"}),
        (["--hypergradient", "cg", "--hypergradient_products", "2"], {"point": "after"}),
        (["--hypergradient", "alternating"], {"method": "alternating", "scale": 0.0}),
    ],
)
def test_the_summary_says_how_the_hypergradient_was_computed(
    flags: list[str], hypergradient: dict[str, Any], tiny: Run
) -> None:
    summary, _ = run(tiny("bilora", "--max_steps", "2", *flags))
    assert summary["hypergradient"].items() >= hypergradient.items()


@pytest.mark.parametrize("method", METHODS)
def test_frozen_weights_are_bit_identical_after_a_run(
    method: str, tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {}
    make = models.adapted

    def remember(*args: Any, **options: Any) -> Any:
        model = make(*args, **options)
        kept["model"] = model
        kept["before"] = {name: p.detach().clone() for name, p in model.named_parameters()}
        kept["trainable"] = {name for name, p in model.named_parameters() if p.requires_grad}
        return model

    monkeypatch.setattr(models, "adapted", remember)
    run(tiny(method))
    after = dict(kept["model"].named_parameters())
    moved = {name for name, value in kept["before"].items() if not torch.equal(value, after[name])}
    assert moved == kept["trainable"]


def test_baselines_have_no_orthogonality_penalty_to_ask_for(tiny: Run) -> None:
    with pytest.raises(UsageError, match=r"--orthogonality: method lora .*0\.1"):
        run(tiny("lora", "--orthogonality", "0.1"))


@pytest.mark.parametrize(
    "method, flags, message",
    [
        ("bilora", ["--lora_r", "1"], r"--lora_r: .*got 1; .*--singular_values real"),
        ("bidora", ["--lora_dropout", "0.1"], "^method bidora: lora_dropout must be 0"),
        (
            "lora",
            ["--lora_target_modules", "no"],
            "^argument --lora_target_modules: no module of the model is called 'no'",
        ),
        ("lora", ["--device", "quantum"], "--device: 'quantum' is no device"),
    ],
)
def test_what_an_adapter_or_device_refuses_is_one_sentence(
    method: str, flags: list[str], message: str, tiny: Run
) -> None:
    with pytest.raises(UsageError, match=message):
        run(tiny(method, *flags))


def test_regression_reports_correlation_and_no_calibration(tiny_model: str, tmp_path: Path) -> None:
    rows = [f"the cat {'very ' * (k % 4)}big,{k % 4 + 0.5}" for k in range(24)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    flags = ["--model", tiny_model, "--data_dir", str(tmp_path), "--method", "bilora"]
    flags += ["--output_dir", str(tmp_path / "run"), "--max_steps", "4", "--lora_r", "2"]
    summary, _ = run(parse_options(flags))
    assert (summary["metric_name"], summary["ece"]) == ("pearson", None)
    # A fifth of 24 rows is the test split.
    assert summary["train_size"] == 19


def test_the_demo_ends_with_a_table_of_the_written_numbers(
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if find_spec(HEADLINES_PACKAGE) is None:
        pytest.skip(f"{HEADLINES_PACKAGE} is missing")
    monkeypatch.setattr(soundness, "MOST_UNKNOWN", 1.0)  # a tiny vocabulary
    flags = ["--model", tiny_model, "--max_steps", "2", "--max_eval_samples", "20"]
    assert main([*flags, "--output_dir", str(tmp_path), "--disable_tqdm"]) == 0
    shown = capsys.readouterr().out
    for method in ("lora", "bilora"):
        summary = json.loads((tmp_path / method / "summary.json").read_text())
        row = next(line for line in shown.splitlines() if line.startswith(f"│ {method} "))
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells == [
            method,
            f"{summary['train_metric']:.3f}",
            f"{summary['test_metric']:.3f}",
            f"{summary['test_loss']:.3f}",
            f"{summary['generalisation_gap']:.3f}",
            f"{summary['ece']:.3f}",
            f"{summary['wall_seconds']:.0f}",
            f"{summary['trainable_params']:,}",
        ]


def test_a_loss_that_is_not_finite_ends_the_command_in_one_line(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.csv").write_text("text,label\ncat,0.5\ndog,1e30\nbird,1e30\nfish,0.5\n")
    flags = ["--model", tiny_model, "--data_dir", str(tmp_path), "--device", "cpu"]
    assert main([*flags, "--output_dir", str(tmp_path / "run"), "--max_steps", "3"]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("error: the loss of problem")
