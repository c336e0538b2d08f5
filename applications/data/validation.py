"""What examples must be before anything is trained on them; what is wrong is named with its row."""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from datasets import ClassLabel, Dataset

from applications.errors import UsageError

NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
MANY_CLASSES = 20
"""So many distinct labels may be classes, however few examples each has."""


Wrong = Callable[[Any], str | None]
"""From a value to what is wrong with it, with the remedy; None for nothing."""


def check_column(rows: Dataset, column: str, wrong: Wrong, where: str) -> None:
    """Raise a UsageError for the first value of a column of which ``wrong`` says something.

    Args:
        rows: the examples.
        column: its name.
        wrong: what is asked of every value.
        where: the file or the split.
    """
    for row, value in enumerate(rows[column], start=1):
        said = wrong(value)
        if said is not None:
            raise UsageError(f"{where}, row {row}, column {column!r}: {said}")


def no_text(value: Any) -> str | None:
    """What is wrong with a text."""
    if value is None:
        return "has no text; remove the row, or fill it in"
    if not isinstance(value, str):
        return f"holds {value!r}, which is no text; name other columns with --text_columns"
    return None


def empty_text(value: Any) -> str | None:
    """What is wrong with a text that a user's own file holds."""
    said = no_text(value)
    if said is None and not value.strip():
        said = "the text is empty; remove the row, or fill it in"
    return said


def no_label(value: Any) -> str | None:
    """What is wrong with a label of any kind."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "has no label; remove the row, or fill it in"
    if isinstance(value, float) and not math.isfinite(value):
        return f"the label is {value}; remove the row, or give a number"
    if isinstance(value, list | dict):
        return (
            f"the label {str(value)[:40]} is neither text nor a number; name another column with "
            "--label_column"
        )
    return None


def is_number(value: Any) -> bool:
    """Whether a label can be read as a finite number."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def is_regression(rows: Dataset, label: str, asked: str | None, where: str) -> bool:
    """Whether the labels are numbers to be predicted, not names of classes.

    Decimals are, unless ``asked`` says otherwise; whole numbers and texts are not.

    Raises:
        UsageError: they are numbers here and words there, or as many as there are rows, and
            ``asked`` does not say what is meant; or they are no numbers and it says regression.
    """
    feature = rows.features[label]
    if isinstance(feature, ClassLabel):
        if asked == "regression":
            raise UsageError(
                f"argument --problem_type: the labels of {where} have names ({feature.names[:5]}), "
                f"got 'regression'; leave it out"
            )
        return False
    values = rows[label]
    if asked == "regression":
        check_column(rows, label, not_a_number, where)
        return True
    if asked == "classification":
        return False
    decimal = [isinstance(value, float) for value in values]
    if any(decimal):
        return True
    numeric = [is_number(value) for value in values]
    if any(numeric) and not all(numeric):
        usual = 2 * sum(numeric) >= len(numeric)
        row = numeric.index(not usual) + 1
        what = ("is no number, most others are", "is a number, most others are not")[not usual]
        raise UsageError(
            f"{where}, row {row}, column {label!r}: the label {values[row - 1]!r} {what}; mend it, "
            f"or say --problem_type classification if they are names of classes"
        )
    distinct = len(set(values))
    if distinct > MANY_CLASSES and 2 * distinct > len(values):
        raise UsageError(
            f"{where}, column {label!r}: has {distinct} different labels in {len(values)} rows; "
            f"name another column with --label_column, or say with --problem_type whether they are "
            f"a classification or a regression"
        )
    return False


def not_a_number(value: Any) -> str | None:
    """What is wrong with a label to be predicted as a number."""
    return (
        None
        if is_number(value)
        else f"the label {value!r} is no number; mend it, or say --problem_type classification"
    )


def check_several(values: Sequence[Any], kind: str, where: str) -> None:
    """Raise a UsageError where there is nothing to tell apart."""
    if not values:
        raise UsageError(f"{where}: has no examples; give some")
    if len(set(values)) == 1:
        what = "class" if kind == "classification" else "value"
        raise UsageError(
            f"{where}: all labels are of one {what}, {values[0]!r}, so that there is nothing to "
            f"learn; give examples of others, or name another column with --label_column"
        )
    if kind == "classification":
        check_spelling(dict.fromkeys(values), "labels", where)


def check_spelling(values: Iterable[Any], what: str, where: str) -> None:
    """Raise a UsageError for two labels, or types of entities, that a reader takes for one."""
    seen: dict[str, Any] = {}
    for value in values:
        other = seen.setdefault(bare(str(value)), value)
        if other != value:
            raise UsageError(
                f"{where}: the {what} {other!r} and {value!r} differ in spelling alone (capitals, "
                f"white space, invisible characters, accents in one character or two, zeros of a "
                f"number); spell them alike, or rename one"
            )


def bare(label: str) -> str:
    """A label without what readers do not see, or do not take for a difference."""
    seen = unicodedata.normalize("NFKC", label)
    seen = "".join(c for c in seen if unicodedata.category(c) != "Cf")
    seen = " ".join(seen.split()).casefold()
    return repr(float(seen)) if NUMBER.fullmatch(seen) else seen


def check_texts(texts: Sequence[tuple[str, ...]], where: str) -> None:
    """Raise a UsageError where all examples have the same text, or pair of texts."""
    if len(texts) > 1 and len(set(texts)) == 1:
        shown = " ".join(texts[0])
        raise UsageError(
            f"{where}: all texts are alike ({shown[:40]!r}), so that there is nothing to tell "
            f"labels apart by; give others, or name other columns with --text_columns"
        )


def check_sources(
    rows: Dataset, source: str, references: Iterable[Sequence[Any]], target: str, where: str
) -> None:
    """Raise a UsageError for an input or a text about it that is missing or empty."""
    check_column(rows, source, no_source, where)
    for row, found in enumerate(references, start=1):
        for text in found:
            said = empty_text(text)
            if said is not None:
                raise UsageError(f"{where}, row {row}, column {target!r}: {said}")
        if not found:
            raise UsageError(
                f"{where}, row {row}, column {target!r}: there is no text to learn; remove the row"
            )


def no_source(value: Any) -> str | None:
    """What is wrong with the input that a text is to be written for."""
    parts = [value] if not isinstance(value, list) else value
    if not parts:
        return "the input is empty; remove the row, or fill it in"
    return next((said for said in map(empty_text, parts) if said is not None), None)


def check_words(sentences: Iterable[Sequence[Any]], column: str, where: str) -> None:
    """Raise a UsageError for a word that is no text."""
    for row, sentence in enumerate(sentences, start=1):
        for word in sentence:
            if not isinstance(word, str) or not word.strip():
                raise UsageError(
                    f"{where}, row {row}, column {column!r}: holds {word!r} where a word is "
                    f"expected; mend it"
                )


def check_entities(tags: Iterable[Sequence[str]], outside: str, where: str) -> None:
    """Raise a UsageError where no word is part of an entity."""
    if set(chain.from_iterable(tags)) <= {outside}:
        raise UsageError(
            f"{where}: no word is tagged as an entity, so that there is nothing to learn; check "
            f"the column of tags (--label_column, or the last one of a file with a word a line)"
        )
