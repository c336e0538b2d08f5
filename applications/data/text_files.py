"""Text files and tables in them, read strictly: what is wrong is named with its file and row."""

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from applications.errors import UsageError

# Beginnings of files that hold no text, whatever their names say.
BINARY = {
    b"PK\x03\x04": "a zip archive (xlsx?)",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "a parquet table",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
LONGEST_CELL = 2**31 - 1
WHOLE = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
NAME_IN_DIGITS = re.compile(r"[+-]?(0\d.*|\d{16,})")
"""A code or an identifier: as a decimal it would lose its zeros, or its last digits."""
Cells = list[str]


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        UsageError: it is missing, cannot be read, is empty, or is not UTF-8.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{file} does not exist: check --train_file and its like") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror})") from error
    if not content.strip():
        raise UsageError(f"{file} is empty: give a file with examples")
    kind = next((kind for start, kind in BINARY.items() if content.startswith(start)), None)
    if kind is None and b"\0" in content:
        kind = "binary"
    if kind is not None:
        raise UsageError(f"{file} is {kind}, not text in UTF-8: convert it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{file}, line {line}: is not UTF-8 ({error.reason}, byte {content[error.start]:#x}); "
            f"convert it, for example by iconv -f latin1 -t utf8"
        ) from error


def read_table(file: Path) -> Dataset:
    """The rows of a csv or tsv file with a header.

    All cells are texts as they stand, "null", "NA" and "1.50" among them.

    Raises:
        UsageError: as `read_text`; a quote that is never closed, columns without a name or of the
            same one, rows with too many or too few cells, no rows.
    """
    lines = list(table_lines(file, read_text(file)))
    header = [name.strip() for name in lines[0][1]]
    for number, name in enumerate(header, start=1):
        if not name:
            raise UsageError(f"{file}: column {number} has no name in the header; give it one")
        if name in header[: number - 1]:
            raise UsageError(
                f"{file}: two columns are called {name!r} (columns {header.index(name) + 1} and "
                f"{number} of the header); rename one"
            )
    rows = lines[1:]
    if not rows:
        raise UsageError(f"{file} has a header ({', '.join(header)}) and no rows: add examples")
    for row, (line, cells) in enumerate(rows, start=1):
        if len(cells) != len(header):
            raise UsageError(
                f"{file}, row {row} (line {line}): has {len(cells)} cells, the header has "
                f"{len(header)} ({', '.join(header)}); put quotes around cells that hold the "
                f"separator"
            )
    columns = zip(*(cells for _, cells in rows), strict=True)
    return Dataset.from_dict(
        {name: list(cells) for name, cells in zip(header, columns, strict=True)}
    )


def table_lines(file: Path, text: str) -> Iterator[tuple[int, Cells]]:
    """The rows of a table with the line in which each begins; empty lines are left out."""
    csv.field_size_limit(LONGEST_CELL)
    separator = "\t" if file.suffix == ".tsv" else ","
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    begin = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UsageError(
                f"{file}, row beginning in line {begin}: {error}; a quote is not closed, or one "
                f"within a cell is not doubled"
            ) from error
        if cells:
            yield begin, cells
        begin = reader.line_num + 1


def typed(cells: Cells) -> list[Any]:
    """Texts as integers or decimals where all of them are such, else without the space around."""
    if all(WHOLE.fullmatch(cell.strip()) for cell in cells):
        return [int(cell) for cell in cells]
    try:
        return [number(cell) for cell in cells]
    except ValueError:
        return [cell.strip() for cell in cells]


def number(cell: str) -> float:
    """The number in a cell.

    Raises:
        ValueError: it is none; words such as "nan" are text, and so are codes such as "007".
    """
    found = float(cell)
    if not math.isfinite(found) or "_" in cell or NAME_IN_DIGITS.fullmatch(cell.strip()):
        raise ValueError(cell)
    return found


def read_rows(file: Path) -> Dataset:
    """The rows of a json file (a list of objects) or a jsonl file (an object a line).

    A key that a row lacks is a missing value there.

    Raises:
        UsageError: as `read_text`; no JSON, something else than objects, a key twice in a row, no
            rows, a column of several kinds.
    """
    text = read_text(file)
    rows = parsed_lines(file, text) if file.suffix == ".jsonl" else parsed(file, text)
    for row, found in enumerate(rows, start=1):
        if not isinstance(found, dict):
            raise UsageError(
                f'{file}, row {row}: must be an object such as {{"text": ..., "label": ...}}, '
                f"got {json.dumps(found)[:40]}"
            )
    if not rows:
        raise UsageError(f"{file} has no rows: add examples")
    names = list(dict.fromkeys(name for found in rows for name in found))
    columns = {name: [found.get(name) for found in rows] for name in names}
    return Dataset.from_dict({name: uniform(file, name, v) for name, v in columns.items()})


def parsed(file: Path, text: str) -> list[Any]:
    """The rows of a file that holds one list."""
    try:
        found = json.loads(text, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        lines = (
            "; a file with an object a line ends in .jsonl" if "Extra data" in str(error) else ""
        )
        raise UsageError(f"{file} is not JSON: {error}{lines}") from error
    if not isinstance(found, list):
        raise UsageError(f"{file} must hold a list of objects, got {json.dumps(found)[:40]}")
    return found


def parsed_lines(file: Path, text: str) -> list[Any]:
    """The rows of a file with a row a line."""
    rows = []
    for line, part in enumerate(text.split("\n"), start=1):
        if part.strip():
            try:
                rows.append(json.loads(part, object_pairs_hook=unrepeated))
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{file}, line {line}: is not JSON: {error}") from error
    return rows


def unrepeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of the pairs.

    Raises:
        ValueError: a key is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one row")
    return found


def uniform(file: Path, name: str, values: list[Any]) -> list[Any]:
    """The values of a column, which must be of one kind; integers among decimals are decimals."""
    kinds = {kind_of(value) for value in values} - {"nothing"}
    if kinds == {"a whole number", "a decimal"}:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1:
        first = kind_of(values[0])
        row, odd = next((n, v) for n, v in enumerate(values, 1) if kind_of(v) != first)
        raise UsageError(
            f"{file}, row {row}, column {name!r}: is {kind_of(odd)}, {first} in row 1; make them "
            f"alike"
        )
    try:
        Dataset.from_dict({name: values})
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
        raise UsageError(f"{file}, column {name!r}: cannot be read: {error}") from error
    return values


def kind_of(value: Any) -> str:
    """What a value of a JSON file is, in words."""
    names = {
        type(None): "nothing",
        bool: "true or false",
        int: "a whole number",
        float: "a decimal",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names[type(value)]
