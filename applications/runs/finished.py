"""A finished run, read from its folder: its model, and what a prediction has to know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel

import adapters  # noqa: F401  makes PEFT know the types of this package
from applications.data.examples import TaskData
from applications.errors import UsageError
from applications.families.family import Family, Setting
from applications.families.named import FAMILIES, family_of
from applications.models.loading import device
from applications.options.arguments import Options
from applications.options.command_line import parse_options
from applications.options.commands import COMMANDS
from applications.runs.phases import Model
from applications.runs.saved import TASK_FILE, training_form

MODELS = (training_form("adapter"), "adapter", "model")
"""Where the model is looked for: first as it was trained, so that its numbers are the run's."""


@dataclass(frozen=True)
class FinishedRun:
    """What a run has left.

    Attributes:
        path: its folder.
        family: its kind of fine-tuning.
        options: its own, with what is said now.
        task: without examples.
        columns: of an example that the model reads.
        place: the folder of the model.
    """

    path: Path
    family: Family
    options: Options
    task: TaskData
    columns: Sequence[str]
    place: Path

    def load(self) -> tuple[Model, Setting]:
        """The model in evaluation mode on its device, and what predictions share."""
        chosen = self.options.model
        if self.place.name == "model":
            chosen = replace(chosen, model_name_or_path=str(self.place), revision="main")
        base, tokenizer = self.family.load_base(chosen, self.task)
        model: Model = base
        if self.place.name != "model":
            model = PeftModel.from_pretrained(base, str(self.place))
        model.to(device(self.options.model))  # type: ignore[arg-type]
        model.eval()
        return model, Setting(self.options, self.task, tokenizer)


def finished_run(path: Path, words: Sequence[str] = ()) -> FinishedRun:
    """The run in a folder.

    Args:
        path: the folder.
        words: options of the run that are others now, as on a command line.

    Raises:
        UsageError: it is no finished run's.
    """
    task = read_task(path)
    command = task["command"]
    options = parse_options([str(path / "config.json"), *words], groups=COMMANDS[command].groups)
    place = next((path / name for name in MODELS if (path / name).is_dir()), None)
    if place is None:
        raise UsageError(f"{str(path)!r} holds no model: the run has not ended; --resume ends it")
    names = tuple(task["label_names"])
    data = TaskData(task["name"], task["kind"], task["metric"], names, {})
    return FinishedRun(path, family_of(command), options, data, task["columns"], place)


def read_task(path: Path) -> dict[str, Any]:
    """What task.json says.

    Raises:
        UsageError: it is not there, or of an unknown command.
    """
    for name in ("config.json", TASK_FILE):
        if not (path / name).is_file():
            raise UsageError(
                f"{str(path)!r} is no run of this version: it has no {name}; give the "
                f"--output_dir of a finished one"
            )
    task: dict[str, Any] = json.loads((path / TASK_FILE).read_text(encoding="utf-8"))
    if task.get("command") not in FAMILIES:
        raise UsageError(f"{path / TASK_FILE} is of an unknown command: {task.get('command')!r}")
    return task
