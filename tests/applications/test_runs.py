"""Whole runs on a tiny random BERT: what they write, what they leave alone, how they go on."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file

from applications.common import experiment, models
from applications.common.arguments import Options
from applications.common.carried import HEADLINES_PACKAGE
from applications.common.command_line import parse_options
from applications.common.errors import UsageError
from applications.common.experiment import finetune, scorer
from applications.common.outputs import SUMMARY_KEYS, RunFolder
from applications.common.splits import split_task
from applications.common.tasks import load_task
from applications.nlu import main

METHODS = ("lora", "dora", "bilora", "bidora")
# The contract of docs/design.md, section 8.
CONTRACT = [
    *("method", "task", "model", "seed", "train_size", "metric_name", "train_metric"),
    *("validation_metric", "test_metric", "train_loss", "test_loss", "ece", "generalisation_gap"),
    *("trainable_params", "upper_params", "num_lower_steps", "num_upper_steps", "num_gradients"),
    *("num_hvps", "wall_seconds", "peak_memory_mb", "hypergradient", "device", "versions"),
]
TIMED = ("wall_seconds", "peak_memory_mb")
Run = Callable[..., Options]


@pytest.fixture
def tiny(tiny_model: str, tiny_data: Path, tmp_path: Path) -> Run:
    """A function from flags to the options of a tiny run."""

    def options(method: str, *flags: str, folder: str = "run") -> Options:
        return parse_options(
            [
                *("--model", tiny_model, "--data_dir", str(tiny_data), "--method", method),
                *("--output_dir", str(tmp_path / folder), "--device", "cpu", "--disable_tqdm"),
                *("--lora_r", "2", "--learning_rate", "1e-2", "--max_steps", "6"),
                *("--per_device_train_batch_size", "8", "--logging_steps", "2", *flags),
            ]
        )

    return options


def silent(_: str) -> None:
    """Say nothing."""


def run(options: Options) -> tuple[dict[str, Any], Path]:
    return finetune(options, say=silent), Path(str(options.run.output_dir))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_writes_every_file_of_the_contract(method: str, tiny: Run) -> None:
    summary, folder = run(tiny(method, "--eval_steps", "3"))
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "summary.json", "report.html"),
        *("adapter", "checkpoints"),
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
    assert [line["round"] for line in lines if "losses" in line] == [1, 2, 4, 6]
    assert [line["round"] for line in lines if "validation" in line] == [3, 6]
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    assert "src=" not in page
    assert "<link" not in page


def test_the_summary_counts_levels_steps_and_costs(tiny: Run) -> None:
    flat, _ = run(tiny("lora", folder="flat"))
    assert (flat["upper_params"], flat["num_upper_steps"], flat["num_lower_steps"]) == (0, 0, 6)
    assert (flat["num_gradients"], flat["num_hvps"], flat["hypergradient"]) == (6, 0, None)
    two, folder = run(tiny("bilora", "--lower_steps", "2", folder="two"))
    # Query and value of two layers, two singular values each.
    assert two["upper_params"] == 2 * 2 * 2
    assert two["trainable_params"] == flat["trainable_params"] + two["upper_params"]
    assert (two["num_lower_steps"], two["num_upper_steps"]) == (6, 3)
    # A round: two lower gradients, an upper one, two for the central difference.
    assert (two["num_gradients"], two["num_hvps"]) == (3 * 5, 0)
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
    make = models.adapted_model

    def remember(*args: Any, **options: Any) -> Any:
        model, tokenizer = make(*args, **options)
        kept["model"] = model
        kept["before"] = {name: p.detach().clone() for name, p in model.named_parameters()}
        return model, tokenizer

    monkeypatch.setattr(experiment.models, "adapted_model", remember)
    run(tiny(method))
    after = dict(kept["model"].named_parameters())
    moved = {name for name, value in kept["before"].items() if not torch.equal(value, after[name])}
    trainable = {name for name, parameter in after.items() if parameter.requires_grad}
    assert moved == trainable


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_adapter_reloads_to_the_same_test_numbers(method: str, tiny: Run) -> None:
    options = tiny(method)
    summary, folder = run(options)
    metric, loss = reloaded(options, folder / "adapter")
    # BiDoRA's checkpoint is PEFT's own DoRA, which sums in another order (float32).
    assert loss == pytest.approx(summary["test_loss"], rel=1e-6)
    assert metric == summary["test_metric"]


def reloaded(options: Options, adapter: Path) -> tuple[float | None, float]:
    """Test metric and loss of the saved adapter on a base model with another random head."""
    torch.manual_seed(12345)
    task = load_task(options.data)
    base, tokenizer = models.load_base(options.model, task)
    model = PeftModel.from_pretrained(base, str(adapter))
    found = scorer(model, tokenizer, task, options)(split_task(task, options.data).test)
    return found.metrics[task.metric], found.loss


def test_the_exported_lora_gives_the_same_test_loss(tiny: Run) -> None:
    options = tiny("bilora", "--export_lora")
    summary, folder = run(options)
    assert json.loads((folder / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    # Folding the values into B changes the order of float32 products.
    metric, loss = reloaded(options, folder / "lora")
    assert loss == pytest.approx(summary["test_loss"], rel=1e-5)
    assert metric == summary["test_metric"]


class PowerCutError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_straight_run_bit_for_bit(
    method: str, tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--max_steps", "8", "--save_steps", "3", "--eval_steps", "4")
    straight, straight_folder = run(tiny(method, *flags, folder="straight"))
    log = RunFolder.log

    def cut(folder: RunFolder, line: dict[str, Any]) -> None:
        log(folder, line)
        if line["round"] == 4:
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", cut)
        with pytest.raises(PowerCutError):
            run(tiny(method, *flags, folder="cut"))
    resumed, folder = run(tiny(method, *flags, "--resume", folder="cut"))
    assert untimed(resumed) == untimed(straight)
    assert logged(folder) == logged(straight_folder)
    name = "adapter_model.safetensors"
    ours, theirs = (load_file(f / "adapter" / name) for f in (folder, straight_folder))
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key])


def untimed(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name not in TIMED}


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = RunFolder(folder).metrics()
    return [{name: v for name, v in line.items() if name != "seconds"} for line in lines]


def test_resuming_with_other_options_is_refused(tiny: Run) -> None:
    run(tiny("lora", "--save_steps", "2"))
    with pytest.raises(UsageError, match=r"--resume.*learning_rate=0\.01, not 0\.5"):
        run(tiny("lora", "--learning_rate", "0.5", "--resume"))


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(tiny: Run) -> None:
    losses = [
        run(tiny("bilora", "--seed", seed, folder=f"run{number}"))[0]["test_loss"]
        for number, seed in enumerate(["0", "0", "1"])
    ]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_the_levels_data_depend_on_the_split_seed_and_not_on_the_seed(
    tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts: list[list[str]] = []
    divide = experiment.two_levels

    def remember(*args: Any, **options: Any) -> tuple[Dataset, Dataset]:
        lower, upper = divide(*args, **options)
        cuts.append(list(upper["text"]))
        return lower, upper

    monkeypatch.setattr(experiment, "two_levels", remember)
    for seeds in (("0", "0"), ("1", "0"), ("0", "1")):
        run(tiny("bilora", "--max_steps", "1", "--seed", seeds[0], "--split_seed", seeds[1]))
    assert cuts[0] == cuts[1]
    assert cuts[0] != cuts[2]


def test_the_written_configuration_repeats_the_run(tiny: Run, tmp_path: Path) -> None:
    first, folder = run(tiny("bidora", "--orthogonality", "1e-3"))
    flags = [str(folder / "config.json"), "--output_dir", str(tmp_path / "again")]
    again, _ = run(parse_options(flags))
    assert untimed(again) == untimed(first)


def test_baselines_have_no_orthogonality_penalty_to_ask_for(tiny: Run) -> None:
    with pytest.raises(UsageError, match=r"--orthogonality: method lora .*0\.1"):
        run(tiny("lora", "--orthogonality", "0.1"))


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
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec(HEADLINES_PACKAGE) is None:
        pytest.skip(f"{HEADLINES_PACKAGE} is missing")
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
