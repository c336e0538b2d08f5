"""Runs of seconds: what several test files do with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from applications.common import models
from applications.common.arguments import Options
from applications.common.experiment import finetune, scorer
from applications.common.outputs import RunFolder
from applications.common.splits import split_task
from applications.common.tasks import load_task

METHODS = ("lora", "dora", "bilora", "bidora")
TIMED = ("wall_seconds", "peak_memory_mb")
Run = Callable[..., Options]


def silent(_: str) -> None:
    """Say nothing."""


def run(options: Options) -> tuple[dict[str, Any], Path]:
    return finetune(options, say=silent), Path(str(options.run.output_dir))


def untimed(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name not in TIMED}


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = RunFolder(folder).metrics()
    return [{name: v for name, v in line.items() if name != "seconds"} for line in lines]


def reloaded(options: Options, adapter: Path) -> tuple[float | None, float]:
    """Test metric and loss of the saved adapter on a base model with another random head."""
    torch.manual_seed(12345)
    task = load_task(options.data)
    base, tokenizer = models.load_base(options.model, task)
    model = PeftModel.from_pretrained(base, str(adapter))
    found = scorer(model, tokenizer, task, options)(split_task(task, options.data).test)
    return found.metrics[task.metric], found.loss
