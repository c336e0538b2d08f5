"""Runs of seconds: what several test files do with them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from applications.data.splits import split_task
from applications.families.classification import TextClassification
from applications.families.family import Family, Setting
from applications.options.arguments import Options
from applications.options.completion import completed
from applications.runs.experiment import finetune
from applications.runs.outputs import RunFolder
from applications.runs.phases import prepare

METHODS = ("lora", "dora", "bilora", "bidora")
ALL_METHODS = ("full", *METHODS, "adalora", "lora_dropout", "autolora")
TIMED = ("wall_seconds", "peak_memory_mb", "phases")
FAMILY = TextClassification()
Run = Callable[..., Options]


def silent(_: str) -> None:
    """Say nothing."""


def run(options: Options, family: Family = FAMILY) -> tuple[dict[str, Any], Path]:
    return finetune(options, family, say=silent), Path(str(options.run.output_dir))


def untimed(summary: dict[str, Any]) -> dict[str, Any]:
    phases = [{k: v for k, v in phase.items() if k != "seconds"} for phase in summary["phases"]]
    return {name: value for name, value in summary.items() if name not in TIMED} | {"p": phases}


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = RunFolder(folder).metrics()
    return [{name: v for name, v in line.items() if name != "seconds"} for line in lines]


def trained(folder: Path, name: str = "adapter") -> Path:
    """The adapter of a run in the form that it was trained in."""
    own = folder / f"{name}_training"
    return own if own.is_dir() else folder / name


def reloaded(
    options: Options, adapter: Path, family: Family = FAMILY
) -> tuple[float | None, float]:
    """Test metric and loss of the saved adapter on a base model with another random head."""
    options = completed(options, family)
    task = family.load_task(options.data)
    work = prepare(options, family, task, split_task(task, options.data))
    torch.manual_seed(12345)
    base, tokenizer = family.load_base(options.model, task)
    model = PeftModel.from_pretrained(base, str(adapter))
    found = family.evaluate(
        model,
        work.splits.test,
        Setting(options, task, tokenizer),
        split="test",
        stage="final",
    )
    return found.metrics[task.metric], found.loss


def cut_and_resumed(
    make: Callable[..., Options], place: tuple[str | None, int], family: Family = FAMILY
) -> tuple[Path, Path]:
    """The folders of a run cut right after a log line and resumed, and of the same run uncut.

    What a power cut would leave is a copy of the folder as it is after that line. Their summaries
    and their logs are found to be the same.

    Args:
        make: from further flags and ``folder`` to the options of the run.
        place: the phase (None for any) and the round of the line.
        family: the kind of fine-tuning.
    """
    log, copies = RunFolder.log, []

    def keep(folder: RunFolder, line: dict[str, Any]) -> None:
        log(folder, line)
        phase, number = place
        if not copies and line["round"] == number and phase in (None, line["phase"]):
            copies.append(shutil.copytree(folder.path, folder.path.with_name("kept")))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "log", keep)
        straight, folder = run(make(folder="run"), family)
    straight_folder = folder.rename(folder.with_name("straight"))
    copies[0].rename(folder)
    resumed, folder = run(make("--resume", folder="run"), family)
    assert untimed(resumed) == untimed(straight)
    assert logged(folder) == logged(straight_folder)
    return folder, straight_folder


def same_tensors(one: Path, other: Path) -> None:
    """The two safetensors files hold the same, bit for bit."""
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key])
