"""Open the built site in headless Chromium and say what is wider than its window, or not drawn.

``python docs/browser.py [site]``: every page at 390 and 1280 pixels, light and dark. A page fails
that is wider than the window, shows a formula's source, has a formula or a line of code that runs
out of its box, or text too faint to read on its background. No network is used.
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
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
)

# What the page does that holds the pages in a frame, one after the other.
LOOK = Path(__file__).with_suffix(".js")


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
    what = json.dumps({"pages": names, "widths": WIDTHS, "schemes": SCHEMES})
    script = f"{LOOK.read_text(encoding='utf-8')}\nall({what});"
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
        server.server_close()
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
                super().do_GET()
                return
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
