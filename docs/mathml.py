"""A hook of mkdocs: formulas as MathML, which browsers draw without a script or a network."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(html: str, **_: Any) -> str:
    """The page with every formula that the extension arithmatex has marked converted."""
    return FORMULA.sub(mathml, html)


def mathml(found: re.Match[str]) -> str:
    """One formula; a block where it stands alone."""
    display = "block" if found["tag"] == "div" else "inline"
    return convert(unescape(found["latex"]).strip(), display=display)
