"""Texts to predict for: read from files in whatever columns, and written back with the answers."""

import csv
import json
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from datasets import Dataset

from applications.data.conll import read_conll
from applications.data.local_files import TABLES, Readers, read_file
from applications.data.sentences import WORD_COLUMNS
from applications.data.tasks import TASKS
from applications.data.text_files import read_text, typed
from applications.data.validation import is_number
from applications.errors import UsageError
from applications.options.arguments import DataOptions

OUTPUTS = (".csv", ".json", ".jsonl")
USUAL: Mapping[str, Sequence[str]] = {
    "text": ("text", "sentence"),
    "tokens": (*WORD_COLUMNS, "text"),
}
"""Names under which the columns of the examples are looked for in a file, beside their own."""


def read_lines(file: Path) -> Dataset:
    """A text a line of a UTF-8 file; empty lines are left out."""
    lines = read_text(file).split("\n")
    return Dataset.from_dict({"text": [line for line in lines if line.strip()]})


TEXTS: Readers = {**TABLES, ".txt": read_lines}
SENTENCES: Readers = {**TABLES, **dict.fromkeys((".conll", ".iob", ".iob2", ".bio"), read_conll)}


def read_inputs(file: Path, columns: Sequence[str]) -> Dataset:
    """The rows of a file, by its ending.

    Cells of a table are texts as they stand.

    Args:
        file: csv, tsv, json or jsonl; for texts txt (a text a line), for words conll.
        columns: of the examples that the model was trained on.

    Raises:
        UsageError: it is missing, of another kind, or empty.
    """
    if not file.is_file():
        raise UsageError(f"argument --input_file: there is no file {str(file)!r}")
    try:
        rows = read_file(file, SENTENCES if list(columns) == ["tokens"] else TEXTS)
    except UsageError:
        raise
    except (OSError, ValueError) as error:  # datasets', for a file without rows too
        raise UsageError(
            f"argument --input_file: {str(file)!r} cannot be read, or has no rows ({error})"
        ) from error
    if not len(rows):
        raise UsageError(f"argument --input_file: {str(file)!r} has no rows")
    return rows


def with_numbers(rows: Dataset) -> Dataset:
    """The rows of a table, whose cells are texts, with numbers in columns of nothing else."""
    columns = {name: list(rows[name]) for name in rows.column_names}
    found = {name: typed(cells) for name, cells in columns.items()}
    return Dataset.from_dict(
        {n: columns[n] if isinstance(found[n][0], str) else found[n] for n in columns}
    )


def input_texts(
    rows: Dataset, columns: Sequence[str], options: DataOptions, *, usual: Sequence[str] = ()
) -> list[list[Any]]:
    """The inputs in the rows of a file, one list for each column of the examples.

    Looked for in this order: the columns of ``--text_columns``, those of the known task, those of
    the examples, usual names, and the file's columns of texts where there are as many of them.

    Raises:
        UsageError: they are not there, or a row has none.
    """
    names = found_columns(rows, columns, options, usual)
    texts = [list(rows[name]) for name in names]
    for name, values in zip(names, texts, strict=True):
        for number, value in enumerate(values, start=1):
            if value is None:
                raise UsageError(f"row {number} of the input has no {name!r}; remove it")
    kind = list(columns)
    if kind in (["tokens"], ["source"]):
        return texts
    for name, values in zip(names, texts, strict=True):
        for number, value in enumerate(values, start=1):
            if not isinstance(value, str | int | float) or not str(value).strip():
                raise UsageError(
                    f"row {number} of the input holds {value!r} as {name!r}, which is no text; "
                    f"remove it"
                )
    return [[str(value) for value in values] for values in texts]


def found_columns(
    rows: Dataset, columns: Sequence[str], options: DataOptions, usual: Sequence[str]
) -> Sequence[str]:
    """The names of the columns that hold the inputs."""
    there = rows.column_names
    asked = options.text_columns
    if asked is not None:
        if len(asked) != len(columns) or not set(asked) <= set(there):
            raise UsageError(
                f"argument --text_columns: the model reads {len(columns)} column(s) "
                f"({', '.join(columns)}) and the input has {there}, got {asked}"
            )
        return asked
    spec = TASKS.get(options.task_name or "")
    if spec is not None and spec.texts and set(spec.texts) <= set(there):
        return spec.texts
    if set(columns) <= set(there):
        return columns
    if len(columns) == 1:
        names = (*usual, *USUAL.get(columns[0], ()), "text")
        first = next((name for name in names if name in there), None)
        if first is not None:
            return [first]
    texts = [
        name
        for name, feature in rows.features.items()
        if name != options.label_column
        and getattr(feature, "dtype", "") in ("string", "large_string")
        and not all(map(is_number, rows[name]))
    ]
    if len(texts) == len(columns):
        return texts
    raise UsageError(
        f"argument --input_file: the model reads {len(columns)} column(s) "
        f"({', '.join(columns)}), which cannot be told among {there}; name them with "
        f"--text_columns"
    )


def answered(rows: Dataset, answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what is predicted for them behind.

    Raises:
        UsageError: a column of the answers is there already.
    """
    taken = [name for name in answers[0] if name in rows.column_names]
    if taken:
        raise UsageError(
            f"argument --input_file: it has a column {taken[0]!r} already; rename or remove it"
        )
    return [{**row, **answer} for row, answer in zip(rows, answers, strict=True)]


def as_text(rows: Sequence[Mapping[str, Any]], ending: str) -> str:
    """Rows as csv (lists with blanks between their members), json or jsonl."""
    if ending == ".json":
        return json.dumps(rows, indent=2, ensure_ascii=False, default=str) + "\n"
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    stream = StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {n: " ".join(map(str, v)) if isinstance(v, list) else v for n, v in row.items()}
        writer.writerow(cells)
    return stream.getvalue()
