"""Regimes in which the upper level's data are better than the lower one's."""

from dataclasses import replace

import torch
from datasets import Dataset, concatenate_datasets

from applications.data.examples import TaskData
from applications.data.splits import cut, two_levels
from applications.errors import UsageError
from applications.families.family import Family
from applications.runs.phases import Workload
from benchmarks.grid.slices import Regime


def mislabelled(examples: Dataset, *, share: float, classes: int, seed: int) -> Dataset:
    """The examples with ``share`` of the labels replaced, each by one of the other classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = list(examples["label"])
    order = torch.randperm(len(labels), generator=generator).tolist()
    for position in order[: round(share * len(labels))]:
        step = int(torch.randint(1, classes, (), generator=generator))
        labels[position] = (labels[position] + step) % classes
    changed = examples.remove_columns("label").add_column("label", labels)
    return changed.cast(examples.features)


def another_domain(task: TaskData, other: TaskData, *, count: int, seed: int) -> Dataset:
    """``count`` training examples of the other task, in this one's columns.

    Raises:
        UsageError: the tasks have different classes.
    """
    if task.num_labels != other.num_labels:
        raise UsageError(
            f"regime: tasks {task.name!r} and {other.name!r} have different classes, "
            f"{task.label_names} and {other.label_names}; take a pair with the same"
        )
    drawn, _ = cut(other.splits["train"], count, other, seed=seed, stream="train_subset")
    return drawn.cast(task.splits["train"].features)


def in_regime(work: Workload, regime: Regime, family: Family) -> Workload:
    """The work with another D1; D2, the validation split and the test split stay as they are."""
    options, before = work.options, work.splits.train
    fraction, seed = options.levels.upper_fraction, options.data.split_seed
    lower, upper = two_levels(before, work.task, upper_fraction=fraction, seed=seed)
    if regime.lower_from is not None:
        other = family.load_task(replace(options.data, task_name=regime.lower_from))
        lower = another_domain(work.task, other, count=len(lower), seed=seed)
    if regime.noise:
        classes = work.task.num_labels
        lower = mislabelled(lower, share=regime.noise, classes=classes, seed=seed)
    whole = concatenate_datasets([lower, upper])
    target = options.levels.control == "upper_data_only"
    return replace(
        work,
        splits=replace(work.splits, train=whole),
        lower=upper if target else whole if work.lower is before else lower,
        upper=whole if work.upper is before else upper,
    )
