"""A hook of mkdocs: formulas as MathML, which browsers draw without a script or a network."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
# What the converter sets letter by letter, or leaves as it is written.
NAMES = re.compile(r"\\operatorname\{([^}]*)\}|\\(arg)\\(min|max)(?![a-zA-Z])")
LEFT = re.compile(r">[^<]*\\[a-zA-Z]+")


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """The page with every formula that the extension arithmatex has marked converted.

    Raises:
        PluginError: a command of a formula that would be shown as it is written.
    """

    def mathml(found: re.Match[str]) -> str:
        latex = unescape(found["latex"]).strip()
        latex = NAMES.sub(name, latex)
        block = found["tag"] == "div"
        drawn = convert(latex, display="block" if block else "inline")
        if unknown := LEFT.search(drawn):
            raise PluginError(f"{page.file.src_uri}: {unknown[0][1:]} in {latex}")
        return f'<div class="formula">{drawn}</div>' if block else drawn

    return FORMULA.sub(mathml, html)


def name(found: re.Match[str]) -> str:
    """The name of an operator as upright text, a blank before its argument."""
    operator = found[1] or f"{found[2]} {found[3]}"
    return r"\text{" + operator.replace(r"\,", " ") + "}"
