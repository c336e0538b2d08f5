"""Tables of finished cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

DASH = "\u2013"
Mark = Literal["", "better", "worse"]


@dataclass(frozen=True)
class Entry:
    """A table's cell; ``mark`` says what an interval that leaves zero out says of it."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """A table; the first entry of a row is its head."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    text: str = ""
    folded: bool = False


def entries(*texts: str) -> list[Entry]:
    """Plain cells."""
    return [Entry(text) for text in texts]


def shown(value: Any) -> str:
    """A cell: numbers with four digits, thousands apart, a dash for nothing."""
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
