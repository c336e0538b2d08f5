"""What was asked for and has no part in a run, said when it begins."""

from collections.abc import Collection, Iterator
from dataclasses import fields
from typing import Any

from applications.methods import HYPERGRADIENTS, METHODS
from applications.options.arguments import Options, changed

OF_THE_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
OF_THE_RESPONSE = (
    "hypergradient",
    "hypergradient_scale",
    "hypergradient_products",
    "hypergradient_damping",
)
OF_THE_RETRAINING = (
    "retraining_learning_rate",
    "retraining_weight_decay",
    "retraining_steps",
)
# What a method of one level takes of the options of levels: its controls divide the data.
OF_ONE_LEVEL = ("control", "retraining")
Unread = Iterator[tuple[Any, Collection[str], str]]
"""A group of options, the names of those that nothing reads, and why."""


def unused_lines(options: Options, command: str) -> list[str]:
    """The options that are not at their defaults and that nothing reads, a line for each reason.

    Args:
        options: completed ones.
        command: whose they are: ``nlu``.
    """
    lines = []
    rules = (
        *of_data(options, command),
        *of_adapter(options),
        *of_levels(options),
        *of_run(options),
    )
    for group, names, reason in rules:
        asked = [f"--{name}" for name in changed(group, names)]
        if asked:
            lines.append(f"not used: {', '.join(asked)}; {reason}")
    return lines


def of_data(options: Options, command: str) -> Unread:
    """What other options for the data stand before."""
    data = options.data
    if data.train_file is not None:
        yield data, ("data_dir",), "--train_file names the file"
    if command != "nlu":
        yield data, ("problem_type",), f"applications.{command} has one kind of problem"


def of_adapter(options: Options) -> Unread:
    """What the method has not."""
    adapter = options.adapter
    row, method = adapter.row, adapter.method
    others = {option for each in METHODS.values() for option in each.takes.values()}
    yield adapter, others - set(row.takes.values()), f"{method} has no such option"
    if row.config is None:
        yield adapter, OF_THE_ADAPTER, f"{method} trains all weights"
    if "experts" in row.takes.values() and adapter.experts:
        yield adapter, ("lora_r", "lora_alpha", "num_experts"), "--experts have ranks and scales"
    if "scale_by_rank" in row.takes.values() and adapter.singular_values != "softmax":
        yield adapter, ("scale_by_rank",), f"{adapter.singular_values} values have no such sum"
    if not adapter.masks:
        yield adapter, ("num_masks", "ensemble"), "there are no masks"
    if adapter.orthogonality == 0:
        yield adapter, ("orthogonality_squared",), "--orthogonality is 0"


def of_levels(options: Options) -> Unread:
    """What a level that is not there would read, a response, or a retraining."""
    level, method = options.levels, options.adapter.method
    if not options.adapter.bi_level:
        yield from of_one_level(options)
        return
    if level.control in ("joint", "two_stage"):
        names: tuple[str, ...] = ("upper_warmup_steps", *OF_THE_RESPONSE)
        yield level, names, f"--control {level.control} has no response"
    elif "products" not in HYPERGRADIENTS[level.hypergradient].takes.values():
        yield level, ("hypergradient_products",), f"{level.hypergradient} takes none"
    if level.control == "joint":
        apart = ("lower_steps", "upper_lr_scheduler_type")
        yield level, apart, f"--control joint updates all that {method} trains at once"
    if level.control in ("joint", "same_data") or level.cross_fitting is not None:
        yield level, ("upper_fraction",), "the training examples are not divided in two"
    if level.retraining == "none":
        yield level, OF_THE_RETRAINING, "there is no retraining"


def of_one_level(options: Options) -> Unread:
    """What only an upper level would read."""
    level, adapter = options.levels, options.adapter
    if options.weighting is not None and options.weighting.route == "online":
        return  # the weights of the sources are an upper level
    has = "has one level" if adapter.row.second_level is None else "trains one level here"
    divided = ("upper_fraction",) if level.control != "none" else ()
    names = {one.name for one in fields(level)} - {*OF_ONE_LEVEL, *divided}
    yield level, names, f"{adapter.method} {has}"


def of_run(options: Options) -> Unread:
    """What schedule, evaluations and search leave out."""
    run, how = options.run, options.generation
    kinds = {run.lr_scheduler_type, options.levels.upper_lr_scheduler_type} - {None}
    if kinds == {"constant"}:
        yield run, ("warmup_ratio",), "a constant schedule has no warm-up, constant_with_warmup has"
    if how is not None and how.num_beams == 1:
        yield how, ("length_penalty",), "there is one beam"
    if how is not None and run.eval_steps is None:
        yield how, ("predict_with_generate",), "there are no evaluations without --eval_steps"
