"""Labels of several data sets as one numbering."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from datasets import Dataset

from applications.data.examples import TaskData


def problem_type(task: TaskData) -> Literal["classification", "regression"] | None:
    """What its labels are, as the option says it."""
    if task.kind == "classification":
        return "classification"
    return "regression" if task.kind == "regression" else None


def flat(rows: Dataset) -> list[Any]:
    """The answers of all rows, one after the other; no texts."""
    values = rows[rows.column_names[-1]]
    return [v for value in values for v in (value if isinstance(value, list) else [value])]


def held(task: TaskData, split: str = "train") -> list[str]:
    """The labels that the examples of a split have, in the order of their numbers."""
    found = set(flat(task.splits[split])) if task.label_names else set()
    return [name for number, name in enumerate(task.label_names) if number in found]


def renumbered(task: TaskData, split: str, names: Sequence[str]) -> Dataset:
    """The examples of a split with their answers numbered as in ``names``."""
    rows = task.splits[split]
    if not task.label_names:
        return rows
    number = {old: names.index(name) for old, name in enumerate(task.label_names)}

    def translated(value: Any) -> Any:
        return [number[v] for v in value] if isinstance(value, list) else number[value]

    return with_answers(rows, translated)


def in_words(task: TaskData) -> Dataset:
    """The training examples with the names of their labels."""
    rows, names = task.splits["train"], task.label_names
    if not names:
        return rows
    return with_answers(rows, lambda v: [names[n] for n in v] if isinstance(v, list) else names[v])


def with_answers(rows: Dataset, translated: Callable[[Any], Any]) -> Dataset:
    """The rows with their answers, the last column, translated."""
    *inputs, answer = rows.column_names
    columns = {name: list(rows[name]) for name in inputs}
    return Dataset.from_dict({**columns, answer: [translated(v) for v in rows[answer]]})
