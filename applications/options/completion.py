"""The options of a run, completed by what follows from them and checked against one another."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from applications.errors import UsageError
from applications.methods import (
    DEFAULT_METHOD,
    HYPERGRADIENTS,
    METHODS,
    Retraining,
    those_with,
)
from applications.options.arguments import AdapterOptions, LevelOptions, Options


class Command(Protocol):
    """Whose options they are: a family."""

    @property
    def command(self) -> str:
        """The name of the command: ``nlu``."""


def completed(options: Options, family: Command) -> Options:
    """The options with method, rates, retraining and output folder filled in, checked together."""
    adapter = replace(options.adapter, method=options.adapter.method or DEFAULT_METHOD)
    method, level = str(adapter.method), options.levels
    retraining = level.retraining
    if retraining is None:
        nested = adapter.bi_level and level.control in ("none", "same_data")
        default: Retraining = "none" if level.cross_fitting is None else "values"
        asked = default if adapter.row.retraining == "none" else adapter.row.retraining
        retraining = asked if nested else "none"
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
    if adapter.bi_level:
        level = replace(level, upper_learning_rate=options.upper_learning_rate)
    run = replace(options.run, output_dir=place, learning_rate=options.learning_rate)
    return replace(options, adapter=adapter, levels=level, run=run)


def check_adapter(adapter: AdapterOptions) -> None:
    """Refuse options that the method does not have."""
    row = adapter.row
    if adapter.orthogonality > 0 and row.orthogonality is None:
        raise UsageError(
            f"argument --orthogonality: method {row.name} has no such penalty, got "
            f"{adapter.orthogonality}; leave it out, or choose one of "
            f"{', '.join(those_with('orthogonality'))}"
        )
    if adapter.binarisation > 0 and row.binarisation is None:
        raise UsageError(
            f"argument --binarisation: method {row.name} has no such penalty, got "
            f"{adapter.binarisation}; leave it out, or choose one of "
            f"{', '.join(those_with('binarisation'))}"
        )
    if adapter.export_lora and row.export is None:
        raise UsageError(
            f"argument --export_lora: only {' and '.join(those_with('export'))} become a plain "
            f"LoRA, got --method {row.name}"
        )
    if adapter.two_levels and row.second_level is None:
        has = "always has an" if row.bi_level else "has no"
        raise UsageError(
            f"argument --two_levels: method {row.name} {has} upper level, got True; leave it "
            f"out, or choose one of {', '.join(those_with('second_level'))}"
        )
    if adapter.mask_rate is not None and row.mask_rate is None:
        raise UsageError(
            f"argument --mask_rate: method {row.name} has no masks, got {adapter.mask_rate}; "
            f"choose one of {', '.join(those_with('mask_rate'))}"
        )


def check_levels(adapter: AdapterOptions, level: LevelOptions) -> None:
    """Refuse controls and phases that the method does not have."""
    method, control, retraining = str(adapter.method), level.control, level.retraining
    known = adapter.controls
    if control not in known:
        raise UsageError(
            f"argument --control: method {method} has the controls {', '.join(known)}, got "
            f"{control!r}"
        )
    if control == "two_stage" and adapter.bi_level and adapter.row.hook is not None:
        raise UsageError(
            f"argument --control: method {method} acts on both levels after each step, and "
            f"two_stage has one at a time, got {control!r}; choose another of {', '.join(known)}"
        )
    if adapter.row.response_alone is not None:
        check_response(method, adapter.row.response_alone, level)
    if level.cross_fitting is not None:
        fits = adapter.bi_level and control == "none" and level.upper_warmup_steps == 0
        if not fits or retraining == "none":
            raise UsageError(
                f"argument --cross_fitting: needs a bi-level method, a retraining, and neither "
                f"--control nor --upper_warmup_steps, got {level.cross_fitting} with --method "
                f"{method}, --control {control} and --retraining {retraining}"
            )
        if adapter.row.hook is not None:
            raise UsageError(
                f"argument --cross_fitting: method {method} acts on its one optimizer after each "
                f"step, and every fold has its own, got {level.cross_fitting}; leave it out"
            )
    if retraining == "none":
        return
    if not adapter.bi_level or control in ("joint", "two_stage"):
        raise UsageError(
            f"argument --retraining: there is no search to retrain after with --method {method} "
            f"--control {control}, got {retraining!r}; leave it out"
        )
    if retraining == "ranks" and not adapter.row.selects_ranks:
        able = ", ".join(row.name for row in METHODS.values() if row.selects_ranks)
        raise UsageError(
            f"argument --retraining: only {able} selects ranks, got 'ranks' with --method "
            f"{method}; use values"
        )


def check_response(method: str, reason: str, level: LevelOptions) -> None:
    """Refuse what leaves out the response where the upper loss depends on nothing else."""
    if level.control in ("joint", "two_stage"):
        raise UsageError(
            f"argument --control: with --method {method} {reason}, got {level.control!r}; choose "
            f"none or same_data"
        )
    if not HYPERGRADIENTS[level.hypergradient].responds:
        raise UsageError(
            f"argument --hypergradient: with --method {method} {reason}, got "
            f"{level.hypergradient!r}; choose another one, such as darts"
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
