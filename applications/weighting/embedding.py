"""Sources, target and test examples as frozen features."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from applications.data.splits import Splits
from applications.families.family import Family
from applications.options.arguments import Options
from applications.options.weighting import WeightingOptions
from applications.weighting.features import IGNORED, Projection, answers, frozen
from applications.weighting.gathering import Gathered, Group
from applications.weighting.heads import Examples
from applications.weighting.search import Sources
from applications.weighting.weights import membership


@dataclass(frozen=True)
class Embedded:
    """The two levels' data as features.

    Attributes:
        sources: the examples that are weighed, at most ``features_per_source`` of a source, each of
            which then stands for several.
        places: group and row in it of each of them.
        target: the trusted examples.
        test: those that nothing is chosen on.
        right: for each source the share of its labels that are right, where that is known.
    """

    sources: Sources
    places: list[tuple[int, int]]
    target: Examples
    test: Examples
    right: Tensor | None


@dataclass(frozen=True)
class Reader:
    """The frozen model with what turns examples into its input."""

    family: Family
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: Options
    classes: int

    def __call__(self, examples: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        """Features, answers and the number of the example of each row."""
        rows = self.family.encode(examples, self.tokenizer, self.options)
        words = self.family.command == "token_classification"
        collator = self.family.collator(self.tokenizer)
        features, owners = frozen(self.model, rows, collator, self.options, words=words)
        if words:
            labels = [label for row in rows for label in row["labels"] if label != IGNORED]
        else:
            labels = [row["labels"] for row in rows]
        return features, answers(labels, self.classes), owners


def embedded(
    read: Reader, gathered: Gathered, splits: Splits, weighting: WeightingOptions
) -> Embedded:
    """All examples through the frozen model, once; the projection is made of sources and target."""
    names = gathered.names
    found, targets, places, members, stands_for = [], [], [], [], []
    for number, group in enumerate(gathered.groups):
        chosen = sampled(len(group.examples), weighting, read.options.data.split_seed)
        features, labels, owners = read(group.examples.select(chosen))
        found.append(features)
        targets.append(labels)
        places += [(number, chosen[owner]) for owner in owners.tolist()]
        members += [[names.index(name) for name in group.members]] * len(features)
        times = len(group.examples) / len(chosen)
        stands_for.append(torch.full((len(features), 1), times, dtype=torch.float64))
    target, target_answers, _ = read(splits.train)
    test, test_answers, _ = read(splits.test)
    projection = Projection.of(torch.cat([*found, target]), kept=weighting.num_axes)
    examples = Examples(projection(torch.cat(found)), torch.cat(targets))
    return Embedded(
        Sources(examples, membership(members, len(names)) * torch.cat(stands_for)),
        places,
        Examples(projection(target), target_answers),
        Examples(projection(test), test_answers),
        right(gathered),
    )


def sampled(count: int, weighting: WeightingOptions, seed: int) -> list[int]:
    """The positions of the examples that the search sees, in their order."""
    if count <= weighting.features_per_source:
        return list(range(count))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(count, generator=generator)[: weighting.features_per_source]
    return sorted(drawn.tolist())


def right(gathered: Gathered) -> Tensor | None:
    """The share of the labels of each source that are right, where that is known.

    Of tags the share of those of words; for regression None.
    """
    if gathered.task.kind == "regression" or gathered.groups[0].truth is None:
        return None
    names = gathered.names
    same, count = torch.zeros(2, len(names), dtype=torch.float64)
    for group in gathered.groups:
        given, true = flat(group, group.examples), flat(group, group.truth)
        equal = sum(a == b for a, b in zip(given, true, strict=True))
        for name in group.members:
            same[names.index(name)] += equal
            count[names.index(name)] += len(given)
    found: Tensor = same / count
    return found


def flat(group: Group, examples: Dataset | None) -> list[int]:
    """The answers of a group one after the other."""
    assert examples is not None, group.name
    values = examples[examples.column_names[-1]]
    return [v for value in values for v in (value if isinstance(value, list) else [value])]
