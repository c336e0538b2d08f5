from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from applications.data.examples import TaskData
from applications.data.splits import Splits, split_task, stratified, two_levels
from applications.errors import UsageError
from applications.options.arguments import DataOptions

labels_and_count = st.lists(st.integers(0, 4), min_size=1, max_size=60).flatmap(
    lambda labels: st.tuples(st.just(labels), st.integers(0, len(labels)))
)


def task(count: int, *, kinds: int = 3, test: int = 0) -> TaskData:
    """Numbered texts whose classes come in blocks."""

    def rows(name: str, size: int) -> Dataset:
        numbers = range(size)
        texts = [f"{name} {number}" for number in numbers]
        return Dataset.from_dict({"text": texts, "label": [n * kinds // size for n in numbers]})

    splits = {"train": rows("train", count)} | ({"test": rows("test", test)} if test else {})
    names = tuple(map(str, range(kinds)))
    return TaskData("made", "classification", "accuracy", names, splits)


def texts(examples: Dataset) -> list[str]:
    return list(examples["text"])


@given(labels_and_count, st.integers(0, 1000))
def test_a_cut_is_a_partition_with_the_count_asked_for(
    given_: tuple[list[int], int], seed: int
) -> None:
    labels, count = given_
    first, rest = stratified(labels, count, seed=seed, stream="levels")
    assert len(first) == count
    assert sorted(first + rest) == list(range(len(labels)))


@given(labels_and_count, st.integers(0, 1000))
def test_a_cut_takes_each_class_in_proportion_up_to_one(
    given_: tuple[list[int], int], seed: int
) -> None:
    labels, count = given_
    first, _ = stratified(labels, count, seed=seed, stream="levels")
    taken, whole = Counter(labels[position] for position in first), Counter(labels)
    for kind, size in whole.items():
        assert abs(taken[kind] - count * size / len(labels)) < 1


def test_d1_and_d2_are_a_stratified_partition_of_the_training_examples() -> None:
    made = task(60)
    lower, upper = two_levels(made.splits["train"], made, upper_fraction=0.2, seed=0)
    assert sorted(texts(lower) + texts(upper)) == sorted(texts(made.splits["train"]))
    assert Counter(upper["label"]) == {0: 4, 1: 4, 2: 4}
    assert Counter(lower["label"]) == {0: 16, 1: 16, 2: 16}


def test_d1_and_d2_depend_on_the_split_seed_alone() -> None:
    made = task(60)
    cuts = [
        texts(two_levels(made.splits["train"], made, upper_fraction=0.2, seed=seed)[1])
        for seed in (0, 0, 1)
    ]
    assert cuts[0] == cuts[1]
    assert cuts[0] != cuts[2]


def cut(options: DataOptions, **sizes: int) -> Splits:
    return split_task(task(60, **sizes), options)


@pytest.mark.parametrize(
    "part, changed",
    [
        ("test", {"validation_fraction": 0.3, "max_train_samples": 10}),
        ("validation", {"validation_fraction": 0.25, "max_train_samples": 10}),
    ],
)
def test_a_later_cut_does_not_move_an_earlier_one(part: str, changed: dict[str, Any]) -> None:
    plain = cut(DataOptions(validation_fraction=0.25))
    other = cut(DataOptions(**changed))
    assert texts(getattr(plain, part)) == texts(getattr(other, part))


def test_all_splits_are_disjoint() -> None:
    made = cut(DataOptions(validation_fraction=0.2, test_fraction=0.2))
    assert made.validation is not None
    everything = [*texts(made.train), *texts(made.validation), *texts(made.test)]
    assert len(everything) == len(set(everything)) == 60


def test_a_test_split_that_comes_with_the_data_is_left_whole() -> None:
    made = cut(DataOptions(), test=9)
    assert len(made.test) == 9
    assert len(made.train) == 60
    assert made.notes == ()


def test_a_test_split_that_is_cut_from_train_is_said_so() -> None:
    made = cut(DataOptions(split_seed=5))
    assert any("no test split" in note and "split seed 5" in note for note in made.notes)


def test_texts_in_both_train_and_test_are_said_so() -> None:
    rows = Dataset.from_dict({"text": ["same", "other"], "label": [0, 1]})
    made = TaskData("made", "classification", "accuracy", ("0", "1"), {"train": rows, "test": rows})
    assert split_task(made, DataOptions()).notes == (
        "2 texts of the test split also occur in the training split",
    )


def test_fewer_training_examples_than_asked_for_are_said_so() -> None:
    for asked, said in ((31, True), (30, False)):
        notes = split_task(task(30, test=9), DataOptions(max_train_samples=asked)).notes
        assert ("31 training examples were asked for, and there are only 30" in notes) is said


def test_classes_without_a_training_example_are_said_so() -> None:
    whole = split_task(task(30, test=9), DataOptions())
    assert not any("no training example" in note for note in whole.notes)
    short = split_task(task(30, test=9), DataOptions(max_train_samples=2))
    (said,) = (note for note in short.notes if "no training example" in note)
    assert set(short.train["label"]) | {int(said.split()[6].rstrip(","))} == {0, 1, 2}


def test_one_example_cannot_be_divided() -> None:
    made = task(1, kinds=1)
    with pytest.raises(UsageError, match="--upper_fraction: 1 examples"):
        two_levels(made.splits["train"], made, upper_fraction=0.2, seed=0)


def test_count_out_of_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="between 0 and 2, got 3"):
        stratified([0, 0], 3, seed=0, stream="levels")


def test_what_a_fraction_does_to_splits_that_the_data_have_is_said() -> None:
    made = task(20, test=5)
    held_out = replace(made, splits={**made.splits, "validation": made.splits["test"]})
    found = split_task(held_out, DataOptions(validation_fraction=0.25, test_fraction=0.4))
    assert "--test_fraction is not used: the data have a test split" in found.notes
    assert any(note.endswith("instead of the 5 of the data") for note in found.notes)
    assert found.validation is not None
    assert (len(found.validation), len(found.test)) == (5, 5)
