"""Pages opened in the system's Chromium, without a window, at two widths and in both schemes."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

WIDTHS = (390, 1280)
SCHEMES = {"dark": 0, "light": 1}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=2000"),
)
# Each page in a frame of each width; a frame has the widths and media queries of a window.
FRAME = '<iframe data-page="{page}" width="{width}" height="900" srcdoc="{text}"></iframe>'
MEASURE = """
const found = [...document.querySelectorAll("iframe")].map((frame) => {
  const view = frame.contentWindow, page = frame.contentDocument;
  return {page: frame.dataset.page, width: Number(frame.width), ...(%s)(view, page)};
});
document.body.innerHTML = '<pre id="found"></pre>';
document.querySelector("#found").textContent = JSON.stringify(found);
"""


def opened(
    pages: dict[str, Path], folder: Path, scheme: str, measure: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """What a function measures in each page at each width, and what the console said.

    Args:
        pages: by name.
        folder: empty, for the browser's own files.
        scheme: dark or light.
        measure: a function of JavaScript, from a page's window and document to an object.
    """
    texts = {name: escape(path.read_text(encoding="utf-8")) for name, path in pages.items()}
    frames = [
        FRAME.format(page=name, width=width, text=text)
        for name, text in texts.items()
        for width in WIDTHS
    ]
    script = f'<script>addEventListener("load", () => {{{MEASURE % measure}}})</script>'
    wrapper = folder / "pages.html"
    wrapper.write_text("<!doctype html>" + "".join(frames) + script, encoding="utf-8")
    shown = subprocess.run(
        [
            *(str(CHROMIUM), *FLAGS, f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"),
            *(f"--user-data-dir={folder / 'profile'}", "--dump-dom", wrapper.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (text,) = re.findall(r'<pre id="found">(.*?)</pre>', shown.stdout, re.DOTALL)
    said = re.findall(r"CONSOLE[^\]]*\] (.*)", shown.stderr)
    return json.loads(unescape(text)), said
