"""Labelled texts in one form, whatever columns they came in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset

from applications.data.local_files import TABLES
from applications.data.sources import load_source
from applications.errors import UsageError
from applications.options.arguments import DataOptions


@dataclass(frozen=True)
class TaskData:
    """Examples by split, in columns that depend on the kind of task; the last one is the answer.

    Classification and regression: ``text``, ``pair`` (tasks on two texts) and ``label``, a class
    number, with its name in ``label_names``, or a decimal. Tagging: ``tokens`` and ``tags``, the
    numbers of their names. Generation: ``source`` and ``references``, all of them. ``notes`` says
    in words what was decided about the data.
    """

    name: str
    kind: str
    metric: str
    label_names: tuple[str, ...]
    splits: Mapping[str, Dataset]
    notes: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        """The number of classes or tags, or 1 for regression."""
        return max(1, len(self.label_names))


def load_task(options: DataOptions) -> TaskData:
    """The texts to classify that the options ask for, in the splits in which they are distributed.

    Raises:
        UsageError: an unknown task, missing files or columns, no way to the Hub.
    """
    source = load_source(options, "nlu", TABLES)
    texts, training = source.texts, source.splits["train"]
    return task_data(
        source.name,
        source.splits,
        texts=texts or options.text_columns or text_columns(training, source.label),
        label=source.label,
        metric=source.metric,
        notes=source.notes,
    )


def task_data(
    name: str,
    raw: Mapping[str, Dataset],
    *,
    texts: Sequence[str],
    label: str,
    metric: str | None = None,
    notes: Sequence[str] = (),
) -> TaskData:
    """The splits in ``raw`` in the common form.

    The kind follows from the training labels: decimals mean regression. Classes are numbered in
    the order of a ``ClassLabel`` feature, else in sorted order. A split whose labels are all -1
    (hidden labels) is left out, with a note.

    Raises:
        UsageError: a column is missing, or a split has a label that the training split lacks.
    """
    for split, rows in raw.items():
        missing = [column for column in (*texts, label) if column not in rows.column_names]
        if missing:
            raise UsageError(
                f"task {name!r}: the {split} split has no column {missing[0]!r}, only "
                f"{rows.column_names}; name them with --text_columns and --label_column"
            )
    feature = raw["train"].features[label]
    regression = str(getattr(feature, "dtype", "")).startswith("float")
    classes: list[int | str] = [] if regression else in_order(raw["train"], label)
    names = feature.names if isinstance(feature, ClassLabel) else map(str, classes)
    splits: dict[str, Dataset] = {}
    said = list(notes)
    for split, rows in raw.items():
        values = rows[label]
        if not regression and split != "train" and set(values) == {-1}:
            said.append(f"the {split} split has hidden labels and is left out")
            continue
        columns: dict[str, list[Any]] = {"text": list(rows[texts[0]])}
        if len(texts) == 2:
            columns["pair"] = list(rows[texts[1]])
        columns["label"] = numbers(values, classes, f"task {name!r}: the {split} split")
        splits[split] = Dataset.from_dict(columns)
    kind = "regression" if regression else "classification"
    default = "pearson" if regression else "accuracy"
    return TaskData(name, kind, metric or default, tuple(names), splits, tuple(said))


def in_order(rows: Dataset, label: str) -> list[int | str]:
    """The classes as they stand in the label column, in the order in which they are numbered."""
    feature = rows.features[label]
    if isinstance(feature, ClassLabel):
        return list(range(feature.num_classes))
    found = set(rows[label])
    if None in found:
        raise UsageError(f"column {label!r} has rows without a label: remove them")
    return sorted(found)


def numbers(values: Iterable[Any], classes: Sequence[int | str], where: str) -> list[int | float]:
    """Each label as the number of its class, or as a decimal where there are no classes."""
    number = {value: index for index, value in enumerate(classes)}
    try:
        return [number[value] if classes else float(value) for value in values]
    except (KeyError, TypeError, ValueError) as error:
        known = f"the training labels are {list(classes)[:20]}" if classes else "expected decimals"
        raise UsageError(f"{where} has the label {error}, which cannot be used; {known}") from error


def text_columns(rows: Dataset, label: str) -> list[str]:
    """The columns of text besides the label, when there are one or two of them."""
    found = [
        name
        for name, feature in rows.features.items()
        if name != label and getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    if len(found) not in (1, 2):
        raise UsageError(
            f"argument --text_columns: cannot choose among the text columns {found}; name one "
            f"or two of them"
        )
    return found
