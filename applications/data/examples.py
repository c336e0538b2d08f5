"""Labelled texts in one form, whatever columns they came in."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset

from applications.data.local_files import TABLES
from applications.data.sources import Source, load_source
from applications.data.text_files import typed
from applications.data.validation import (
    check_column,
    check_several,
    check_texts,
    empty_text,
    is_number,
    is_regression,
    no_label,
    no_text,
)
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


def load_task(
    options: DataOptions, *, part: bool = False, unread: Collection[str] = ()
) -> TaskData:
    """The texts to classify that the options ask for, in the splits in which they are distributed.

    Args:
        options: which data.
        part: they are a part of what is trained on: one class will do, and other splits may hold
            classes that it lacks.
        unread: columns that are no texts to be read, whatever they hold.

    Raises:
        UsageError: an unknown task, missing files or columns, no way to the Hub.
    """
    source = load_source(options, "nlu", TABLES)
    if not part:
        check_asked(source, options)
    splits, label = source.splits, source.label
    texts = source.texts or options.text_columns or text_columns(splits["train"], label, unread)
    notes = source.notes
    if len(texts) == 2 and not (source.texts or options.text_columns):
        notes += (f"the texts are pairs of {texts[0]!r} and {texts[1]!r} (--text_columns)",)
    check_names(source.name, splits, [*texts, label])
    if label in texts:
        raise UsageError(
            f"argument --text_columns: {label!r} is the column of the labels, which a model that "
            f"reads it has only to repeat; name columns of texts"
        )
    for split, rows in splits.items():
        where = source.where(split)
        for column in texts:
            check_column(rows, column, empty_text if source.files else no_text, where)
        check_column(rows, label, no_label, where)
    if source.files:
        splits = with_labels_typed(splits, label)
    regression = is_regression(splits["train"], label, options.problem_type, source.where("train"))
    chosen = regression and options.problem_type is None and not source.texts
    if chosen and all(value == round(value) for value in splits["train"][label]):
        notes += (
            "the labels are whole numbers written as decimals, and are predicted as numbers "
            "(--problem_type classification takes them for classes)",
        )
    return task_data(
        source.name,
        splits,
        texts=texts,
        label=label,
        metric=source.metric,
        notes=notes,
        regression=regression,
        where=source.where,
        part=part,
    )


def check_asked(source: Source, options: DataOptions) -> None:
    """Raise a UsageError for other columns than those by which a known task is known."""
    asked = {
        "text_columns": (options.text_columns, None, list(source.texts)),
        "label_column": (options.label_column, DataOptions.label_column, source.label),
    }
    for argument, (value, default, known) in asked.items():
        if source.texts and value not in (default, known):
            raise UsageError(
                f"argument --{argument}: task {source.name!r} has the column {known!r}, got "
                f"{value!r}; leave it out, or give the files as --train_file and --test_file"
            )


def with_labels_typed(splits: Mapping[str, Dataset], label: str) -> dict[str, Dataset]:
    """The splits with labels that are numbers in the training split as numbers everywhere."""
    values = list(splits["train"][label])
    if not all(isinstance(value, str) for value in values):
        return dict(splits)
    numbers = not isinstance(typed(values)[0], str)
    found = {}
    for split, rows in splits.items():
        cells = [str(value) for value in rows[label]]
        kept = typed(cells) if numbers else [cell.strip() for cell in cells]
        if numbers and isinstance(kept[0], str):  # in another split: `numbers` says which
            return dict(splits)
        others = {name: rows[name][:] for name in rows.column_names if name != label}
        found[split] = Dataset.from_dict({**others, label: kept})
    return found


def task_data(
    name: str,
    raw: Mapping[str, Dataset],
    *,
    texts: Sequence[str],
    label: str,
    metric: str | None = None,
    notes: Sequence[str] = (),
    regression: bool | None = None,
    where: Callable[[str], str] | None = None,
    part: bool = False,
) -> TaskData:
    """The splits in ``raw`` in the common form.

    With ``where``, from a split to its name in messages, the training labels must differ, too,
    unless they are a ``part`` of them; then every split's classes have a number. The kind follows
    from the training labels, if ``regression`` does not say it: decimals mean regression.
    Classes are numbered in the order of a ``ClassLabel`` feature, else in sorted order. A split
    whose labels are all -1 (hidden labels) is left out, with a note.

    Raises:
        UsageError: a column is missing, a split has a label that the training split lacks, or all
            training labels are the same.
    """
    check_names(name, raw, [*texts, label])
    feature = raw["train"].features[label]
    if regression is None:
        regression = str(getattr(feature, "dtype", "")).startswith("float")
    classes: list[int | str] = [] if regression else in_order(raw["train"], label)
    if part and not regression and not isinstance(feature, ClassLabel):
        others = dict.fromkeys(value for rows in raw.values() for value in rows[label])
        classes += sorted((v for v in others if v not in classes and v != -1), key=str)
    names = list(feature.names if isinstance(feature, ClassLabel) else map(str, classes))
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
        columns["label"] = numbers(
            values,
            classes,
            f"task {name!r}: the {split} split",
            None if where is None else where(split),
        )
        if split == "train" and where is not None and not part:
            texts_of = [columns[name] for name in ("text", "pair") if name in columns]
            check_texts(list(zip(*texts_of, strict=True)), where(split))
            shown = columns["label"] if regression else [names[n] for n in columns["label"]]
            check_several(shown, "regression" if regression else "classification", where(split))
        splits[split] = Dataset.from_dict(columns)
    kind = "regression" if regression else "classification"
    default = "pearson" if regression else "accuracy"
    return TaskData(name, kind, metric or default, tuple(names), splits, tuple(said))


def check_names(name: str, raw: Mapping[str, Dataset], columns: Sequence[str]) -> None:
    """Raise a UsageError unless every split has the columns."""
    for split, rows in raw.items():
        missing = [column for column in columns if column not in rows.column_names]
        if missing:
            raise UsageError(
                f"task {name!r}: the {split} split has no column {missing[0]!r}, only "
                f"{rows.column_names}; name them with --text_columns and --label_column"
            )


def in_order(rows: Dataset, label: str) -> list[int | str]:
    """The classes as they stand in the label column, in the order in which they are numbered."""
    feature = rows.features[label]
    if isinstance(feature, ClassLabel):
        return list(range(feature.num_classes))
    return sorted(set(rows[label]))


def numbers(
    values: Iterable[Any], classes: Sequence[int | str], where: str, place: str | None = None
) -> list[int | float]:
    """Each label as the number of its class, or as a decimal where there are no classes.

    Raises:
        UsageError: a label is of no class, or no number; with its row, and the file ``place``.
    """
    number = {value: index for index, value in enumerate(classes)}
    found: list[int | float] = []
    for row, value in enumerate(values, start=1):
        try:
            found.append(number[value] if classes else float(value))
        except (KeyError, TypeError, ValueError) as error:
            known = (
                f"the training labels are {list(classes)[:20]}"
                if classes
                else "the training labels are numbers"
            )
            file = "" if place is None else f" of {place}"
            raise UsageError(
                f"{where} has the label {value!r} in row {row}{file}, which cannot be used; {known}"
            ) from error
    return found


def text_columns(rows: Dataset, label: str, unread: Collection[str] = ()) -> list[str]:
    """The columns of text besides the label and those ``unread``, when there are one or two."""
    strings = [
        name
        for name, feature in rows.features.items()
        if name != label
        and name not in unread
        and getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    found = [name for name in strings if not all(map(is_number, rows[name]))] or strings
    if len(found) not in (1, 2):
        raise UsageError(
            f"argument --text_columns: cannot choose among the text columns {found}; name one "
            f"or two of them"
        )
    return found
