"""Figures as SVG elements with a description: values under the pointer, colours of the page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from warnings import catch_warnings, filterwarnings
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; markers tell them apart without.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#6B6B6B")
INK, PAPER, SOFT, LINE = "#000000", "#ffffff", "#777777", "#e6e6e6"
PLACES = {
    **{colour.lower(): f"--c{number}" for number, colour in enumerate(COLOURS) if colour != INK},
    INK: "--ink",
    PAPER: "--paper",
    SOFT: "--soft",
    LINE: "--line",
}
"""The colours of figures, each with the style sheet's name for it, which light and dark fill."""
LEAST = 0.85
"""Pixels of a point where a page is narrow: below, a figure scrolls in its box."""
LONG = 24
NO_DATES: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
TOLD, BETWEEN, BREAK = "told:", "\u2063", "\u2064"
"""Marks within an attribute of SVG, in which a line break would become a space."""
SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Drawing:
    """A figure as an SVG element, its title, and what it shows in words."""

    title: str
    text: str
    svg: str


def tell(axes: Axes, xs: Sequence[float], ys: Sequence[float], texts: Sequence[str]) -> None:
    """Let the points say something under the pointer: each a text, of one line or several."""
    said = BETWEEN.join(texts).replace("\n", BREAK)
    axes.plot(xs, ys, "o", markersize=11, alpha=0, gid=TOLD + said)


def short(name: str) -> str:
    """A name as it fits in a figure: the whole one stands in the tables."""
    return name if len(name) <= LONG else name[:LONG] + "\u2026"


def drawn(figure: Figure, title: str, text: str) -> Drawing:
    """The finished figure; equal figures give equal text.

    Its colours are those of the page, by name, with their own value where it stands alone.
    """
    stream = StringIO()
    FigureCanvasSVG(figure)
    with mpl.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}), catch_warnings():
        # Text is drawn by the browser, which has other fonts.
        filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata=NO_DATES, transparent=True)
    root = ElementTree.fromstring(stream.getvalue())
    least = LEAST * 72 * figure.get_figwidth()
    root.attrib |= {
        "role": "img",
        "aria-label": f"{title}. {text}",
        "class": "chart",
        "style": f"min-width: {least:.0f}px",
    }
    for element in root.iter():
        said = element.attrib.pop("id", "") if element.tag == f"{{{SVG}}}g" else ""
        if said.startswith(TOLD):
            put_titles(element, said.removeprefix(TOLD).split(BETWEEN))
    found = ElementTree.tostring(root, encoding="unicode")
    return Drawing(title, text, re.sub(r"#[0-9a-f]{6}\b", coloured, found))


def put_titles(group: ElementTree.Element, texts: Sequence[str]) -> None:
    """Give each marker in a group its text."""
    markers = [element for element in group.iter() if element.tag == f"{{{SVG}}}use"]
    for marker, text in zip(markers, texts, strict=True):
        ElementTree.SubElement(marker, f"{{{SVG}}}title").text = text.replace(BREAK, "\n")


def coloured(found: re.Match[str]) -> str:
    """The page's colour in place of a figure's."""
    name = PLACES.get(found[0])
    return found[0] if name is None else f"var({name}, {found[0]})"
