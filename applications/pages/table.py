"""Tables of finished cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

DASH = "\u2013"
Mark = Literal["", "better", "worse"]


@dataclass(frozen=True)
class Entry:
    """A table's cell.

    Attributes:
        text: what it says.
        mark: what an interval that leaves zero out says of it.
        share: how far it is shaded, from 0 to 1; None for not at all.
    """

    text: str
    mark: Mark = ""
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table; the first entry of a row is its head.

    Attributes:
        title: what it shows.
        head: the heads of its columns, by which a reader can sort the rows.
        rows: its cells.
        text: a sentence above it.
        folded: whether it is opened by the reader.
        prose: whether its cells are texts, which are broken into lines.
        fixed: whether the rows have an order that must stay.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    text: str = ""
    folded: bool = False
    prose: bool = False
    fixed: bool = False


def entries(*texts: str) -> list[Entry]:
    """Plain cells."""
    return [Entry(text) for text in texts]


def shown(value: Any) -> str:
    """A cell: numbers with four digits, thousands apart, a dash for nothing."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], **form: Any) -> Table:
    """A table of plain cells."""
    return Table(title, head, [entries(*row) for row in rows], **form)


def named(title: str, values: Mapping[str, Any], **form: Any) -> Table:
    """A table of names and values."""
    rows = [[name.replace("_", " "), told(value)] for name, value in values.items()]
    return table(title, ["what", "value"], rows, prose=True, fixed=True, **form)


def told(value: Any) -> str:
    """An option or a number as a reader sees it."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else shown(value)


def as_lines(made: Table) -> list[str]:
    """A table for the screen: columns under their heads, the first to the left."""
    rows = [list(made.head), *([entry.text for entry in row] for row in made.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
