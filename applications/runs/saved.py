"""The model that a run leaves: as everyone loads it, and as it was trained."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from adapters import export_stock
from applications.families.family import Setting
from applications.pages.writing import write_json, write_whole
from applications.runs.phases import Model, Workload

TASK_FILE = "task.json"
CONFIG = "config"
"""The folder, in that of an adapter, with the base model's configuration for the task."""


def training_form(name: str) -> str:
    """The folder of the form that is trained, beside the one called ``name``."""
    return f"{name}_training"


def save_model(
    path: Path, model: Model, setting: Setting, name: str | None = None
) -> tuple[str, ...]:
    """Write the model into a run's folder, with its tokenizer and the names of its labels.

    A model without an adapter becomes ``model/``. An adapter becomes ``adapter/``, which PEFT loads
    without this package; one of this package's own, as it was trained, ``adapter_training/`` too.

    Args:
        path: the folder of the run.
        model: as it was trained.
        setting: the options of the run, and the tokenizer.
        name: another name than ``adapter``.

    Returns:
        What is to be said of the files, a sentence each: among others, why there is no form for
        PEFT alone.
    """
    if not isinstance(model, PeftModel):
        place = path / (name or "model")
        write_whole(place, lambda draft: _whole(model, setting, draft))
        return ()
    name = name or "adapter"
    configs: Any = model.peft_config
    config = configs[model.active_adapter]
    if setting.options.model.revision != "main":
        config.revision = setting.options.model.revision
    own = not type(config).__module__.startswith("peft.")
    if own:
        place = path / training_form(name)
        write_whole(place, lambda draft: _beside(model, setting, model.save_pretrained, draft))
    try:
        write_whole(
            path / name,
            lambda draft: _beside(model, setting, lambda to: export_stock(model, to), draft),
        )
    except ValueError as error:
        if not own:
            raise
        reason = f"no {name}/ that PEFT loads alone: {error}"
        return (f"{reason}; {training_form(name)}/ loads where this package is installed",)
    return masks_note(setting, name)


def masks_note(setting: Setting, name: str) -> tuple[str, ...]:
    """What is to be said where the run was tested under masks, which PEFT does not have."""
    adapter = setting.options.adapter
    if not (adapter.masks and adapter.ensemble):
        return ()
    return (
        f"{name}/ is the adapter with its masks off; the numbers of the run are those of the mean "
        f"prediction under {adapter.num_masks} masks, which applications.predict repeats",
    )


def save_task(path: Path, work: Workload) -> None:
    """Write task.json: what a prediction has to know of the data the model was trained on."""
    task = work.task
    write_json(
        path / TASK_FILE,
        {
            "command": work.family.command,
            "name": task.name,
            "kind": task.kind,
            "metric": task.metric,
            "columns": input_columns(work),
            "label_names": list(task.label_names),
        },
    )


def input_columns(work: Workload) -> Sequence[str]:
    """The columns of an example that the model reads: all but the answer."""
    return list(work.splits.train.column_names[:-1])


def _whole(model: Model, setting: Setting, draft: Path) -> None:
    model.save_pretrained(str(draft))
    setting.tokenizer.save_pretrained(str(draft))


def _beside(
    model: PeftModel, setting: Setting, write: Callable[[str], object], draft: Path
) -> None:
    """An adapter's folder, its tokenizer, and the configuration of the model that it is put on."""
    write(str(draft))
    setting.tokenizer.save_pretrained(str(draft))
    base: Any = model.get_base_model()
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.save_pretrained(draft / CONFIG)
