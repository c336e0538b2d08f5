"""The options of a run, completed by what follows from them and checked against one another."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from applications.errors import UsageError
from applications.options.arguments import (
    MASKING_METHODS,
    AdapterOptions,
    LevelOptions,
    Method,
    Options,
    Retraining,
)

DEFAULT_METHOD: Method = "bilora"
DEFAULT_RETRAINING: Mapping[str, Retraining] = {"bidora": "values", "autolora": "ranks"}


class Command(Protocol):
    """Whose options they are: a family."""

    @property
    def command(self) -> str:
        """The name of the command: ``nlu``."""


def completed(options: Options, family: Command) -> Options:
    """The options with method, retraining and output folder filled in, checked together."""
    adapter = replace(options.adapter, method=options.adapter.method or DEFAULT_METHOD)
    method, level = str(adapter.method), options.levels
    retraining = level.retraining
    if retraining is None:
        nested = adapter.bi_level and level.control in ("none", "same_data")
        default: Retraining = "none" if level.cross_fitting is None else "values"
        retraining = DEFAULT_RETRAINING.get(method, default) if nested else "none"
    level = replace(level, retraining=retraining)
    check_adapter(adapter)
    check_levels(adapter, level)
    if options.run.select_on == "upper_data":
        check_selection(adapter, level)
    place = options.run.output_dir
    if place is None:
        data = options.data
        named = data.task_name or Path(str(data.train_file or data.data_dir)).stem
        place = f"runs/{family.command}/{named.replace('/', '-')}-{method}-seed{options.run.seed}"
    run = replace(options.run, output_dir=place)
    return replace(options, adapter=adapter, levels=level, run=run)


def check_adapter(adapter: AdapterOptions) -> None:
    """Refuse options that the method does not have."""
    method = str(adapter.method)
    if adapter.orthogonality > 0 and method not in ("bilora", "bidora"):
        raise UsageError(
            f"argument --orthogonality: method {method} has no such penalty, got "
            f"{adapter.orthogonality}; leave it out, or choose one of bilora, bidora"
        )
    if adapter.export_lora and method not in ("bilora", "lora_weight_decay"):
        raise UsageError(
            f"argument --export_lora: only bilora and lora_weight_decay become a plain LoRA, got "
            f"--method {method}"
        )
    if adapter.mask_rate is not None and method not in MASKING_METHODS:
        raise UsageError(
            f"argument --mask_rate: method {method} has no masks, got {adapter.mask_rate}; choose "
            f"one of {', '.join(MASKING_METHODS)}"
        )


def check_levels(adapter: AdapterOptions, level: LevelOptions) -> None:
    """Refuse controls and phases that the method does not have."""
    method, control, retraining = str(adapter.method), level.control, level.retraining
    one_level = ("none", "lower_data_only")
    known = ("none", "joint", "two_stage", "same_data") if adapter.bi_level else one_level
    if control not in known:
        raise UsageError(
            f"argument --control: method {method} has the controls {', '.join(known)}, got "
            f"{control!r}"
        )
    if method == "lora_weight_decay":
        check_response(level)
    if level.cross_fitting is not None:
        fits = adapter.bi_level and control == "none" and level.upper_warmup_steps == 0
        if not fits or retraining == "none":
            raise UsageError(
                f"argument --cross_fitting: needs a bi-level method, a retraining, and neither "
                f"--control nor --upper_warmup_steps, got {level.cross_fitting} with --method "
                f"{method}, --control {control} and --retraining {retraining}"
            )
    if retraining == "none":
        return
    if not adapter.bi_level or control in ("joint", "two_stage"):
        raise UsageError(
            f"argument --retraining: there is no search to retrain after with --method {method} "
            f"--control {control}, got {retraining!r}; leave it out"
        )
    if retraining == "ranks" and method != "autolora":
        raise UsageError(
            f"argument --retraining: only autolora selects ranks, got 'ranks' with --method "
            f"{method}; use values"
        )


def check_response(level: LevelOptions) -> None:
    """Refuse what leaves out the response where the upper loss depends on nothing else."""
    remedy = "its decays act on held-out data through the lower level's response alone"
    if level.control in ("joint", "two_stage"):
        raise UsageError(
            f"argument --control: with --method lora_weight_decay {remedy}, got "
            f"{level.control!r}; choose none or same_data"
        )
    if level.hypergradient == "alternating":
        raise UsageError(
            f"argument --hypergradient: with --method lora_weight_decay {remedy}, got "
            f"'alternating'; choose another one, such as darts"
        )


def check_selection(adapter: AdapterOptions, level: LevelOptions) -> None:
    """Refuse to select on D2 where it is trained on like the rest, or does not exist."""
    whole = not adapter.bi_level and level.control != "lower_data_only"
    if whole or level.control in ("joint", "same_data") or level.retraining != "none":
        raise UsageError(
            f"argument --select_on: with --method {adapter.method}, --control {level.control} and "
            f"--retraining {level.retraining} all data are trained on, got 'upper_data'; use "
            f"validation with --validation_fraction"
        )
