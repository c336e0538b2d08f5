"""What can be repeated: a run from its seed, from a checkpoint, from its saved adapter."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from applications.errors import UsageError
from applications.options.command_line import parse_options
from applications.runs import phases
from tests.applications.tiny_runs import (
    METHODS,
    Run,
    cut_and_resumed,
    logged,
    reloaded,
    run,
    same_tensors,
    untimed,
)

CUTS = [
    *((method, (), "search" if method.startswith("bi") else "training") for method in METHODS),
    ("full", (), "training"),
    ("adalora", ("--max_steps", "20"), "training"),
    ("lora_dropout", (), "training"),
    ("lora_dropout", ("--learn_mask_rate",), "search"),
    ("bidora", (), "retraining"),
    ("bilora", ("--singular_values", "real", "--tied_values"), "search"),
    ("lora_weight_decay", ("--retraining", "values"), "retraining"),
    ("autolora", (), "retraining"),
    ("bilora", ("--upper_warmup_steps", "2"), "search"),
    ("bilora", ("--control", "two_stage"), "values"),
    ("bilora", ("--metric_for_best_model", "loss", "--eval_steps", "2"), "search"),
]


@pytest.mark.parametrize("method, extra, phase", CUTS)
def test_a_resumed_run_is_the_straight_run_bit_for_bit(
    method: str, extra: tuple[str, ...], phase: str, tiny: Run
) -> None:
    flags = ("--max_steps", "8", "--save_steps", "3", "--eval_steps", "4", *extra)
    cut, straight = cut_and_resumed(partial(tiny, method, *flags), (phase, 4))
    name = "model/model.safetensors" if method == "full" else "adapter/adapter_model.safetensors"
    same_tensors(cut / name, straight / name)


def test_resuming_where_there_is_no_checkpoint_starts_afresh(tiny: Run) -> None:
    first, folder = run(tiny("lora"))
    for checkpoint in (folder / "checkpoints").iterdir():
        checkpoint.unlink()
    again, _ = run(tiny("lora", "--resume"))
    assert untimed(again) == untimed(first)
    assert [line["round"] for line in logged(folder)] == [1, 2, 4, 6]


def test_resuming_a_finished_run_changes_nothing(tiny: Run) -> None:
    first, folder = run(tiny("bidora"))
    lines = logged(folder)
    again, _ = run(tiny("bidora", "--resume"))
    assert untimed(again) == untimed(first)
    assert logged(folder) == lines


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
    divide = phases.two_levels

    def remember(*args: Any, **options: Any) -> tuple[Dataset, Dataset]:
        lower, upper = divide(*args, **options)
        cuts.append(list(upper["text"]))
        return lower, upper

    monkeypatch.setattr(phases, "two_levels", remember)
    for seeds in (("0", "0"), ("1", "0"), ("0", "1")):
        run(tiny("bilora", "--max_steps", "1", "--seed", seeds[0], "--split_seed", seeds[1]))
    assert cuts[0] == cuts[1]
    assert cuts[0] != cuts[2]


def test_the_written_configuration_repeats_the_run(tiny: Run, tmp_path: Path) -> None:
    first, folder = run(tiny("bidora", "--orthogonality", "1e-3"))
    flags = [str(folder / "config.json"), "--output_dir", str(tmp_path / "again")]
    again, _ = run(parse_options(flags))
    assert untimed(again) == untimed(first)


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_adapter_reloads_to_the_same_test_numbers(method: str, tiny: Run) -> None:
    options = tiny(method)
    summary, folder = run(options)
    metric, loss = reloaded(options, folder / "adapter")
    # What is folded into B, and PEFT's own DoRA, sum in another order (float32).
    assert loss == pytest.approx(summary["test_loss"], rel=1e-5)
    assert metric == summary["test_metric"]


def test_the_exported_lora_gives_the_same_test_loss(tiny: Run) -> None:
    options = tiny("bilora", "--export_lora")
    summary, folder = run(options)
    assert json.loads((folder / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    # Folding the values into B changes the order of float32 products.
    metric, loss = reloaded(options, folder / "lora")
    assert loss == pytest.approx(summary["test_loss"], rel=1e-5)
    assert metric == summary["test_metric"]


@pytest.mark.cuda
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_trained_on_cuda_gives_the_same_test_loss_on_the_cpu(
    method: str, tiny: Run
) -> None:
    summary, folder = run(tiny(method, "--device", "cuda"))
    assert summary["device"] == torch.cuda.get_device_name()
    assert summary["peak_memory_mb"] > 0
    _, loss = reloaded(tiny(method), folder / "adapter")
    # Devices sum in another order, and CUDA may multiply in TensorFloat-32.
    assert loss == pytest.approx(summary["test_loss"], rel=1e-3)
