"""Sources that are too large to be seen whole stand in the search for all their examples."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from applications.data.splits import Splits
from applications.options.weighting import WeightingOptions
from applications.weighting.controls import Comparison, agreeing_examples, pooled
from applications.weighting.embedding import Embedded, embedded
from applications.weighting.features import answers
from applications.weighting.folds import folds
from applications.weighting.gathering import Gathered, Group
from applications.weighting.heads import Examples, fit
from applications.weighting.pull import pulls
from applications.weighting.search import Search, Sources, weight_gradient
from applications.weighting.weights import Weights
from blo import cg

SIZES = {"large": 12, "small": 3, "both": 4}
WEIGHTS = torch.tensor([0.7, 1.8], dtype=torch.float64)
RIDGE = 0.05


class Reader:
    """Stands for the frozen model: features that are drawn from the text of each example."""

    options = SimpleNamespace(data=SimpleNamespace(split_seed=3))

    def __call__(self, examples: Dataset) -> tuple[Tensor, Tensor, Tensor]:
        rows = []
        for text in examples["text"]:
            generator = torch.Generator().manual_seed(int(text))
            rows.append(torch.randn(3, generator=generator))
        return torch.stack(rows), answers(examples["label"], 2), torch.arange(len(rows))

    def together(self, owners: Tensor) -> Tensor | None:
        return None


def rows_of(start: int, count: int) -> Dataset:
    numbers = range(start, start + count)
    texts, labels = [str(n) for n in numbers], [n % 2 for n in numbers]
    return Dataset.from_dict({"text": texts, "label": labels})


@pytest.fixture
def seen() -> Embedded:
    """Four of twelve examples of one source, all three of another, all four that are of both."""
    members: dict[str, tuple[str, ...]] = {"both": ("large", "small")}
    groups = tuple(
        Group(name, name, members.get(name, (name,)), rows_of(100 * place, count))
        for place, (name, count) in enumerate(SIZES.items())
    )
    target = rows_of(1000, 8)
    gathered = Gathered(SimpleNamespace(kind="classification"), groups)  # type: ignore[arg-type]
    options = WeightingOptions(features_per_source=4)
    reader: Any = Reader()
    return embedded(reader, gathered, Splits(target, None, target, ()), options)


def repeated(sources: Sources) -> tuple[Examples, Tensor]:
    """Each row as often as it stands for an example, and the weight of each of those."""
    times = torch.tensor([3] * 4 + [1] * 7)
    features, labels = sources.examples.features, sources.examples.answers
    weights = torch.tensor([0.7] * 4 + [1.8] * 3 + [1.25] * 4, dtype=torch.float64)
    found = Examples(features.repeat_interleave(times, 0), labels.repeat_interleave(times, 0))
    return found, weights.repeat_interleave(times)


def test_the_sizes_are_those_of_the_whole_sources(seen: Embedded) -> None:
    assert len(seen.sources.examples) == 4 + 3 + 4
    assert seen.sources.sizes.tolist() == pytest.approx([12 + 2, 3 + 2])
    assert [group for group, _ in seen.places] == [0] * 4 + [1] * 3 + [2] * 4


def test_a_head_is_that_of_the_rows_repeated_as_often_as_they_stand_for_one(
    seen: Embedded,
) -> None:
    whole, weights = repeated(seen.sources)
    found = seen.sources.fit(WEIGHTS, ridge=RIDGE)
    torch.testing.assert_close(found, fit(whole, weights, ridge=RIDGE), rtol=0, atol=1e-4)


def test_the_weight_gradient_and_the_pulls_are_those_of_the_repeated_rows(seen: Embedded) -> None:
    whole, weights = repeated(seen.sources)
    members = torch.tensor([[1.0, 0.0]] * 12 + [[0.0, 1.0]] * 3 + [[0.5, 0.5]] * 4).double()
    head = fit(whole, weights, ridge=RIDGE)
    made = Weights(seen.sources.sizes, "non_negative")
    both = [
        weight_gradient(each, seen.target, WEIGHTS, head, weights=made, ridge=RIDGE, method=cg(50))[
            0
        ]
        for each in (seen.sources, Sources(whole, members))
    ]
    torch.testing.assert_close(both[0], both[1], rtol=1e-8, atol=1e-12)
    found = pulls(seen.sources, seen.target, WEIGHTS, head, Search(ridge=RIDGE, method=cg(50)))
    of_sources = seen.sources.members.T @ found / 19
    torch.testing.assert_close(of_sources, -both[1], rtol=1e-8, atol=1e-12)


def test_controls_count_a_row_as_often_as_it_stands_for_an_example(seen: Embedded) -> None:
    whole, _ = repeated(seen.sources)
    settings = Search(ridge=RIDGE)
    given = Comparison(seen.sources, seen.target, folds(seen.target, 2, seed=0), settings)
    in_full = Comparison(
        Sources(whole, torch.ones(19, 1, dtype=torch.float64)),
        seen.target,
        given.parts,
        settings,
    )
    for control in (
        agreeing_examples,
        lambda one: SimpleNamespace(head=pooled(one, seen.target, times=3.0)),
    ):
        torch.testing.assert_close(control(given).head, control(in_full).head, rtol=0, atol=1e-3)
