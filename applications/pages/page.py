"""A page to look at: one self-contained HTML file of titled sections."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from applications.pages.drawing import Drawing
from applications.pages.table import Table


@dataclass(frozen=True)
class Section:
    """A part of the page: tables, figures and blocks of text in a fixed-width font.

    Attributes:
        title: what it is about.
        text: a sentence below.
        tables: its tables.
        drawings: its figures.
        blocks: its texts.
        beside: whether figures stand beside each other where the page is wide.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
    blocks: Sequence[str] = ()
    beside: bool = False

    @property
    def anchor(self) -> str:
        """The name that links lead to."""
        return self.title.lower().replace(" ", "-")

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.tables or self.drawings or self.blocks)


def page(
    *,
    title: str,
    lead: str,
    sections: Sequence[Section],
    notes: Sequence[str] = (),
    notes_title: str = "Before reading the numbers",
) -> str:
    """The HTML text of a page; everything is inside it and all texts are escaped.

    Args:
        title: what it is about.
        lead: the sentence below.
        sections: its parts; empty ones are left out.
        notes: remarks above all parts.
        notes_title: what they are called.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(part("page.html.j2")).render(
        style=part("page.css"),
        script=part("page.js"),
        title=title,
        lead=lead,
        sections=[section for section in sections if not section.empty],
        notes=notes,
        notes_title=notes_title,
    )


def part(name: str) -> str:
    """The text of a file beside this one."""
    return files("applications.pages").joinpath(name).read_text(encoding="utf-8")
