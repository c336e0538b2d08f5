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
from applications.weighting.gathering import Gathered
from applications.weighting.heads import Examples
from applications.weighting.labels import flat
from applications.weighting.search import Sources
from applications.weighting.weights import membership


@dataclass(frozen=True)
class Embedded:
    """The two levels' data as features.

    Attributes:
        sources: the examples that are weighed, at most ``features_per_source`` of a source.
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

    @property
    def words(self) -> bool:
        """Whether every word is an example."""
        return self.family.command == "token_classification"

    def together(self, owners: Tensor) -> Tensor | None:
        """What `Examples` asks: the sentences of words."""
        return owners if self.words else None

    def __call__(self, examples: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        """Features, answers and the number of the example of each row."""
        rows = self.family.encode(examples, self.tokenizer, self.options)
        words = self.words
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
    found, targets, places, members, times = [], [], [], [], []
    for number, group in enumerate(gathered.groups):
        chosen = sampled(len(group.examples), weighting, read.options.data.split_seed)
        features, labels, owners = read(group.examples.select(chosen))
        found.append(features)
        targets.append(labels)
        places += [(number, chosen[owner]) for owner in owners.tolist()]
        members += [[names.index(name) for name in group.members]] * len(features)
        times += [len(group.examples) / len(chosen)] * len(features)
    target, target_answers, target_owners = read(splits.train)
    test, test_answers, test_owners = read(splits.test)
    projection = Projection.of(torch.cat([*found, target]), kept=weighting.num_axes)
    examples = Examples(projection(torch.cat(found)), torch.cat(targets))
    return Embedded(
        Sources(examples, membership(members, len(names), times=times)),
        places,
        Examples(projection(target), target_answers, read.together(target_owners)),
        Examples(projection(test), test_answers, read.together(test_owners)),
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

    Of tags the share of those of words; of numbers their correlation with the true ones, 0 where it
    is negative.
    """
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in gathered.names}
    for group in gathered.groups:
        if group.truth is None:
            return None
        both = list(zip(flat(group.examples), flat(group.truth), strict=True))
        for name in group.members:
            pairs[name] += both
    numbers = gathered.task.kind == "regression"
    return torch.stack([share_right(found, numbers=numbers) for found in pairs.values()])


def share_right(pairs: list[tuple[float, float]], *, numbers: bool) -> Tensor:
    """How right given answers are, each beside its true one."""
    given, true = torch.tensor(pairs, dtype=torch.float64).T
    if not numbers or bool((given == true).all()):
        return torch.as_tensor((given == true).double().mean())
    found: Tensor = torch.corrcoef(torch.stack([given, true]))[0, 1]
    return found.nan_to_num().clamp(min=0)
