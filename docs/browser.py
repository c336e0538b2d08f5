"""Open the built site in headless Chromium and say what is wider than its window, or not drawn.

``python docs/browser.py [site]``: every page at 390 and 1280 pixels, light and dark. A page fails that
is wider than the window, shows a formula's source, has a formula or a line of code that runs out of
its box, or text too faint to read on its background. No network is used.
"""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

WIDTHS = (390, 1280)
SCHEMES = ("default", "slate")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars"
).split()

# What the page that holds the pages in a frame does: one after the other, one width and scheme.
LOOK = """
const PAGES = %s, WIDTHS = %s, SCHEMES = %s, found = [];
const frame = document.querySelector("iframe");
const channel = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const light = (c) => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
function look(page, width, scheme) {
  const d = frame.contentDocument, w = frame.contentWindow, say = (what) => found.push([page, width, scheme, what]);
  d.body.setAttribute("data-md-color-scheme", scheme);
  const root = d.documentElement;
  if (root.scrollWidth > root.clientWidth + 1) {
    let widest = null;
    for (const e of d.querySelectorAll("article *"))
      if (e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest(".formula, pre, .md-typeset__scrollwrap"))
        widest = widest || e;
    say("is " + root.scrollWidth + " wide" + (widest ? ": " + widest.outerHTML.slice(0, 80) : ""));
  }
  for (const m of d.querySelectorAll("article math"))
    if (/\\\\[a-zA-Z]/.test(m.textContent)) say("shows " + m.textContent.slice(0, 60));
  if (/\\$\\$|\\\\\\[/.test(d.querySelector("article").textContent.replace(/\\s/g, "")) && !d.querySelector("article pre"))
    say("shows a formula's source");
  for (const box of d.querySelectorAll("article .formula, article pre > code")) {
    const flow = w.getComputedStyle(box).overflowX;
    if (box.scrollWidth > box.clientWidth + 1 && flow !== "auto" && flow !== "scroll") say("cuts " + box.textContent.slice(0, 40));
  }
  const back = rgb(w.getComputedStyle(d.body).backgroundColor);
  for (const p of [...d.querySelectorAll("article p, article li, article td")].slice(0, 40)) {
    const [a, b] = [light(rgb(w.getComputedStyle(p).color)), light(back)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) { say("has text of contrast " + contrast.toFixed(1)); break; }
  }
}
async function all() {
  for (const page of PAGES) for (const width of WIDTHS) {
    frame.style.width = width + "px";
    await new Promise((done) => { frame.onload = done; frame.src = "/" + page; });
    await new Promise((done) => setTimeout(done, 30));
    for (const scheme of SCHEMES) look(page, width, scheme);
  }
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify({ looked: PAGES.length, found });
  document.body.append(out);
}
all();
"""


def browser() -> str | None:
    """The path of a Chromium on this machine, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def looked(site: Path, pages: list[str] | None = None) -> dict[str, Any]:
    """How many pages were looked at, and what was found: page, width, scheme, what.

    Raises:
        RuntimeError: there is no browser, or it did not come to the end.
    """
    program = browser()
    if program is None:
        raise RuntimeError(f"no browser found among {', '.join(BROWSERS)}")
    names = pages or sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    script = LOOK % (json.dumps(names), json.dumps(WIDTHS), json.dumps(SCHEMES))
    frame = f'<iframe style="height: 900px; border: 0"></iframe><script>{script}</script>'
    server = served(site, f"<!doctype html><body>{frame}</body>".encode())
    place = f"http://127.0.0.1:{server.server_address[1]}/look"
    try:
        with tempfile.TemporaryDirectory() as profile:
            words = [program, *QUIET, f"--user-data-dir={profile}", "--virtual-time-budget=600000"]
            words += ["--window-size=1400,1000", "--dump-dom", place]
            page = subprocess.run(words, capture_output=True, text=True, timeout=600).stdout
    finally:
        server.shutdown()
    answer = re.search(r'<pre id="found">(.*?)</pre>', page, re.DOTALL)
    if answer is None:
        raise RuntimeError(f"{program} did not come to the end")
    found: dict[str, Any] = json.loads(html.unescape(answer[1]))
    return found


def served(site: Path, look: bytes) -> http.server.ThreadingHTTPServer:
    """A server of the site on this machine alone, with the page `look` beside it."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/look":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(look)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    handler = functools.partial(Handler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> int:
    """Print what was found; 1 if anything was."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    answer = looked(site)
    for page, width, scheme, what in answer["found"]:
        print(f"{page} at {width}, {scheme}: {what}")
    print(f"{answer['looked']} pages at {WIDTHS}, light and dark: {len(answer['found'])} found")
    return 1 if answer["found"] else 0


if __name__ == "__main__":
    sys.exit(main())
