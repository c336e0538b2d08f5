"""A finished run, read from its folder: its model, and what a prediction has to know."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

import adapters  # noqa: F401  makes PEFT know the types of this package
from applications.data.examples import TaskData
from applications.errors import UsageError
from applications.families.family import Family, Setting
from applications.families.named import FAMILIES, family_of
from applications.models.loading import device
from applications.options.arguments import Options
from applications.options.command_line import parse_options
from applications.options.commands import COMMANDS
from applications.options.files import read_settings
from applications.runs.phases import Model
from applications.runs.saved import TASK_FILE, training_form

MODELS = (training_form("adapter"), "adapter", "model")
"""Where the model is looked for: first as it was trained, so that its numbers are the run's."""
KEYS = ("command", "name", "kind", "metric", "columns", "label_names")
"""What a prediction reads in task.json."""


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
            model = with_adapter(base, self.place)
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
    task: Any = read_settings(path / TASK_FILE, "the run's file")
    missing = sorted({*KEYS} - {*task}) if isinstance(task, dict) else list(KEYS)
    if missing:
        raise UsageError(f"{path / TASK_FILE} is not whole: it lacks {', '.join(missing)}")
    if task["command"] not in FAMILIES:
        raise UsageError(f"{path / TASK_FILE} is of an unknown command: {task['command']!r}")
    found: dict[str, Any] = task
    return found


def with_adapter(base: PreTrainedModel, place: Path) -> PeftModel:
    """The base model with the adapter in a folder.

    Raises:
        UsageError: the adapter is damaged, of another model, or not finite.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(base, str(place))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(
                f"the adapter in {str(place)!r} cannot be loaded ({why}): put a whole copy there, "
                f"or name the base model of its run with --model_name_or_path"
            ) from error
    if any("missing adapter keys" in str(warning.message) for warning in caught):
        raise UsageError(f"the adapter in {str(place)!r} lacks weights: put a whole copy there")
    name = next((n for n, p in model.named_parameters() if not p.isfinite().all()), None)
    if name is not None:
        raise UsageError(
            f"the adapter in {str(place)!r} holds values that are not finite ({name}), as a run "
            f"that diverged leaves them: train it anew"
        )
    return model
