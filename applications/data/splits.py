"""Which example serves what: training, the two levels, validation, test."""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset, Value

from applications.data.examples import TaskData
from applications.errors import UsageError
from applications.options.arguments import DataOptions

# Each cut has a random stream of its own, so that asking for one does not move another.
STREAMS = {"test": 1, "validation": 2, "train_subset": 3, "eval_subset": 4, "levels": 5}


@dataclass(frozen=True)
class Splits:
    """Disjoint examples: ``test`` is seen by nothing but the final evaluation."""

    train: Dataset
    validation: Dataset | None
    test: Dataset
    notes: tuple[str, ...]


def stratified(
    labels: Sequence[Hashable], count: int, *, seed: int, stream: str
) -> tuple[list[int], list[int]]:
    """Two disjoint sorted lists of positions that together are all: ``count``, and the rest.

    Every class is divided in the same proportion, up to one example (largest remainder: class k
    of size n_k gives floor(count n_k / n) examples, and the classes with the largest fractions
    one more, until there are ``count``).

    Args:
        labels: the class of each example; one class for all means plain random choice.
        count: the size of the first list, 0 to len(labels).
        seed: the split seed.
        stream: which cut this is; cuts of one seed are independent.

    Raises:
        ValueError: ``count`` is out of range.
    """
    total = len(labels)
    if not 0 <= count <= total:
        raise ValueError(f"count must lie between 0 and {total}, got {count}")
    generator = torch.Generator().manual_seed(1_000_003 * seed + STREAMS[stream])
    members: dict[Hashable, list[int]] = defaultdict(list)
    for position in torch.randperm(total, generator=generator).tolist():
        members[labels[position]].append(position)
    quotas = {kind: count * len(positions) / total for kind, positions in members.items()}
    taken = {kind: math.floor(quota) for kind, quota in quotas.items()}
    by_remainder = sorted(members, key=lambda kind: taken[kind] - quotas[kind])
    for kind in by_remainder[: count - sum(taken.values())]:
        taken[kind] += 1
    first = [position for kind in members for position in members[kind][: taken[kind]]]
    rest = [position for kind in members for position in members[kind][taken[kind] :]]
    return sorted(first), sorted(rest)


def strata(examples: Dataset, task: TaskData) -> list[Hashable]:
    """The class of each example; one class for all where an answer is not one of the names."""
    answer = examples.column_names[-1]
    if task.label_names and isinstance(examples.features[answer], Value):
        return list(examples[answer])
    return [0] * len(examples)


def cut(
    examples: Dataset, count: int, task: TaskData, *, seed: int, stream: str
) -> tuple[Dataset, Dataset]:
    """``count`` examples and the rest, stratified for classification."""
    first, rest = stratified(strata(examples, task), count, seed=seed, stream=stream)
    return examples.select(first), examples.select(rest)


def share(fraction: float, total: int, name: str) -> int:
    """``fraction`` of ``total`` examples, at least one on either side.

    Raises:
        UsageError: there are fewer than two examples.
    """
    if total < 2:
        raise UsageError(f"argument --{name}: {total} examples cannot be divided in two")
    return min(max(round(fraction * total), 1), total - 1)


def split_task(task: TaskData, options: DataOptions) -> Splits:
    """The splits of a run: those distributed with the data, the others cut from training.

    The test split is cut first, then the validation split, then the training subset: what is
    tested on depends on the data, ``split_seed`` and ``test_fraction`` alone.
    """
    seed, notes = options.split_seed, list(task.notes)
    train, test = task.splits["train"], task.splits.get("test")
    validation = task.splits.get("validation")
    if test is None:
        count = share(options.test_fraction, len(train), "test_fraction")
        test, train = cut(train, count, task, seed=seed, stream="test")
        notes.append(f"no test split: {count} examples cut from train (split seed {seed})")
    elif options.test_fraction != DataOptions.test_fraction:
        notes.append("--test_fraction is not used: the data have a test split")
    if options.validation_fraction > 0:
        count = share(options.validation_fraction, len(train), "validation_fraction")
        instead = "" if validation is None else f", instead of the {len(validation)} of the data"
        validation, train = cut(train, count, task, seed=seed, stream="validation")
        notes.append(
            f"validation split: {count} examples cut from train (split seed {seed}){instead}"
        )
    if options.max_train_samples is not None and options.max_train_samples < len(train):
        count, whole = options.max_train_samples, len(train)
        train, _ = cut(train, count, task, seed=seed, stream="train_subset")
        notes.append(f"{count} of {whole} training examples (split seed {seed})")
    elif options.max_train_samples is not None and options.max_train_samples > len(train):
        asked = options.max_train_samples
        notes.append(f"{asked} training examples were asked for, and there are only {len(train)}")
    notes += lost_classes(task, train)
    repeated = len({*texts(train)} & {*texts(test)})
    if repeated:
        notes.append(f"{repeated} texts of the test split also occur in the training split")
    return Splits(train, validation, test, tuple(notes))


def lost_classes(task: TaskData, train: Dataset) -> list[str]:
    """What is to be said of classes whose training examples were all cut off."""
    if task.kind != "classification":
        return []
    lost = sorted(set(task.splits["train"]["label"]) - set(train["label"]))
    if not lost:
        return []
    names = ", ".join(task.label_names[number] for number in lost[:5])
    more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
    return [f"no training example is left of {names}{more}, which cannot be learned so"]


def texts(examples: Dataset) -> list[tuple[str, ...]]:
    """The texts (or pairs of texts) of a split, tagged ones with spaces between words."""
    inputs = [
        [value if isinstance(value, str) else " ".join(value) for value in examples[name]]
        for name in examples.column_names[:-1]
    ]
    return list(zip(*inputs, strict=True))


def at_most(examples: Dataset, limit: int | None, task: TaskData, seed: int) -> Dataset:
    """The examples, or ``limit`` of them drawn with the split seed."""
    if limit is None or limit >= len(examples):
        return examples
    return cut(examples, limit, task, seed=seed, stream="eval_subset")[0]


def two_levels(
    train: Dataset, task: TaskData, *, upper_fraction: float, seed: int
) -> tuple[Dataset, Dataset]:
    """D1 for the lower level and D2 for the upper: a partition of the training examples.

    Reference: arXiv 2403.13037 (8 : 2).
    """
    count = share(upper_fraction, len(train), "upper_fraction")
    upper, lower = cut(train, count, task, seed=seed, stream="levels")
    return lower, upper


def folds(train: Dataset, task: TaskData, *, count: int, seed: int) -> list[Dataset]:
    """A partition of the training examples into ``count`` parts of equal size, up to one.

    Stratified for classification.

    Raises:
        UsageError: there are fewer examples than folds.
    """
    if len(train) < count:
        raise UsageError(
            f"argument --cross_fitting: {len(train)} examples cannot be divided into {count} folds"
        )
    found, rest = [], train
    for left in range(count, 1, -1):
        share_of_one = round(len(rest) / left)
        fold, rest = cut(rest, share_of_one, task, seed=seed, stream="levels")
        found.append(fold)
    return [*found, rest]


def sizes(splits: Splits) -> Mapping[str, int]:
    """The number of examples of each split."""
    validation = 0 if splits.validation is None else len(splits.validation)
    return {"train": len(splits.train), "validation": validation, "test": len(splits.test)}
