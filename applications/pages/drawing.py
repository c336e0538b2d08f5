"""Figures as SVG elements with a description."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from io import StringIO

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

NO_DATES: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Drawing:
    """A figure as an SVG element, its title, and what it shows in words."""

    title: str
    text: str
    svg: str


def drawn(figure: Figure, title: str, text: str) -> Drawing:
    """The finished figure; equal figures give equal text."""
    stream = StringIO()
    FigureCanvasSVG(figure)
    with mpl.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata=NO_DATES)
    found = stream.getvalue()
    label = f'<svg role="img" aria-label="{escape(f"{title}. {text}")}" '
    return Drawing(title, text, found[found.index("<svg") :].replace("<svg ", label, 1))
