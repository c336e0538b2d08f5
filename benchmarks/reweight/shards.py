"""What a seed draws: shards of a set with labels that are wrong at known rates, and a target."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor

from applications.data.local_files import read_layout
from benchmarks.reweight.pairs import Shards


@dataclass(frozen=True)
class Drawn:
    """One seed of a task: positions in its sets, and what the sources say."""

    sources: Tensor
    shard: Tensor
    said: Tensor
    truth: Tensor
    target: Tensor
    target_labels: Tensor
    test: Tensor
    test_labels: Tensor


def labelled(task: str, folder: Path, *, tested: bool) -> tuple[list[str], list[int], int]:
    """Texts and class numbers of a set, and how many of them are training examples; the test split
    comes behind them where it is ``tested`` on.
    """
    splits, _ = read_layout(task, folder)
    train, test = splits["train"], splits.get("test")
    text = "text" if "text" in train.column_names else "sentence"
    names = sorted(set(train["label"]))
    parts: Sequence[Dataset] = [train] if test is None or not tested else [train, test]
    texts = [value for part in parts for value in part[text]]
    labels = [names.index(value) for part in parts for value in part["label"]]
    return texts, labels, len(train)


def draw(
    task: Shards,
    source_labels: Sequence[int],
    target_labels: Sequence[int],
    *,
    num_train: int,
    labels: int,
    seed: int,
) -> Drawn:
    """The shards, target and test of a seed; targets of one seed are nested in each other.

    Where sources and target are one set, the target is drawn from what no shard holds, and tested
    on the set's own test split.
    """
    generator = torch.Generator().manual_seed(seed)
    truth, known = torch.tensor(source_labels), torch.tensor(target_labels)
    classes = int(truth.max()) + 1
    number = len(task.rates) * task.size
    order = torch.randperm(num_train, generator=generator)
    chosen = order[:number]
    if task.sources == task.target:
        pool, test = order[number:], torch.arange(num_train, len(known))
    else:
        pool = torch.randperm(len(known), generator=generator)
        test = pool[-task.num_test :]
    shard = torch.arange(number) // task.size
    said = truth[chosen].clone()
    for source, rate in enumerate(task.rates):
        mine = torch.randperm(task.size, generator=generator)[: round(rate * task.size)]
        wrong = mine + source * task.size
        away = torch.randint(1, classes, (len(wrong),), generator=generator)
        said[wrong] = (said[wrong] + away) % classes
    target, tests = pool[:labels], test[: task.num_test]
    return Drawn(chosen, shard, said, truth[chosen], target, known[target], tests, known[tests])
