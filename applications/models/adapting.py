"""The adapter of each method, put on a base model."""

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from adapters.glue.soundness import HEADS, refuse_unused, unmatched
from applications.errors import UsageError
from applications.options.arguments import AdapterOptions


def adapter_config(
    options: AdapterOptions, task_type: TaskType, *, num_steps: int
) -> PeftConfig | None:
    """The PEFT configuration of the method; None where it trains all weights.

    Args:
        options: the method and its size.
        task_type: PEFT's name of the head.
        num_steps: updates in all, for adapters that have a schedule.

    Raises:
        UsageError: the adapter refuses a value.
    """
    row = options.row
    if row.config is None:
        return None
    modules: list[str] | str | None = options.lora_target_modules
    settings: dict[str, Any] = {
        "task_type": task_type,
        "r": options.lora_r,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": "all-linear" if modules == ["all-linear"] else modules,
    }
    if row.mask_rate is not None:
        rate = row.mask_rate if options.mask_rate is None else options.mask_rate
        settings |= {"mask_rate": rate, "learn_mask_rate": options.learn_mask_rate}
    known = {**vars(options), "num_steps": num_steps}
    settings |= {parameter: known[name] for parameter, name in row.takes.items()}
    if options.two_levels:
        settings |= row.second_level or {}
    try:
        return row.config(**settings)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"method {row.name}: {error}") from error


def adapted(
    base: PreTrainedModel, config: PeftConfig | None, options: AdapterOptions
) -> PreTrainedModel | PeftModel:
    """The base model with an adapter, or itself where the method trains all weights.

    Raises:
        UsageError: the modules to adapt are not there.
    """
    return base if config is None else put_on(base, config, options.lora_target_modules)


def put_on(base: PreTrainedModel, config: PeftConfig, targets: Sequence[str] | None) -> PeftModel:
    """The base model with an adapter.

    Args:
        base: the model.
        config: of the adapter.
        targets: the names of its modules, as they were asked for; None for PEFT's own.

    Raises:
        UsageError: some of them are not there, or are never used.
    """
    if isinstance(config, LoraConfig) and any(isinstance(m, Conv1D) for m in base.modules()):
        config.fan_in_fan_out = True  # as PEFT would, with a warning
    keep_new_parts(base, config)
    refuse_no_target(base, targets)
    try:
        model = get_peft_model(base, config)
    except (ValueError, TypeError) as error:
        raise UsageError(f"argument --lora_target_modules: {error} (got {targets})") from error
    assert isinstance(model, PeftModel)
    tuner: Any = model.base_model
    asked = set(targets or ())
    names = unmatched(asked, tuner.targeted_module_names)
    if names and asked != {"all-linear"}:
        raise UsageError(
            f"argument --lora_target_modules: no module of the model is called {', '.join(names)}; "
            f"adapted would be {', '.join(sorted(asked - set(names)))} alone"
        )
    try:
        refuse_unused(model)
    except ValueError as error:
        raise UsageError(f"argument --lora_target_modules: {error}") from error
    return model


def keep_new_parts(base: PreTrainedModel, config: PeftConfig) -> None:
    """Have the adapter train and save the heads, and all that no checkpoint gives the base model.

    PEFT does so for ``classifier`` and ``score`` alone: BART's head, or the pooler of a BERT that
    comes from masked language modelling, would stay random, and be another one when loaded again.
    """
    made: Any = config
    heads = [name for name, _ in base.named_children() if name in HEADS]
    parts = {*getattr(base, "new_parts", ()), *heads} - {"classifier", "score"}
    if parts:
        made.modules_to_save = sorted(parts | set(made.modules_to_save or ()))


def refuse_no_target(base: PreTrainedModel, names: Sequence[str] | None) -> None:
    """Raise a UsageError where no module has any of the names, which are no patterns."""
    if names is None or list(names) == ["all-linear"]:
        return
    there = [name for name, _ in base.named_modules() if name]
    if not any(f".{module}".endswith(f".{name}") for module in there for name in names if name):
        linear = {
            name.rpartition(".")[2]
            for name, module in base.named_modules()
            if isinstance(module, Conv1D | nn.Linear)
        }
        raise UsageError(
            f"argument --lora_target_modules: no module of the model is called "
            f"{' or '.join(names)!r}; linear ones are {', '.join(sorted(linear))}, or all-linear"
        )
