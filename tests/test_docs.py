"""The documentation: its code runs, its commands, links and quotations are there."""

import json
import random
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import pytest

import adapters
import blo
from applications.options.command_line import parse_options
from docs import browser
from docs.messages import messages
from docs.notebooks import executed
from tests.documents import (
    PAGES,
    PREPARED,
    ROOT,
    ROUNDS,
    Block,
    agree,
    blocks,
    called,
    offered_by,
    run_page,
)

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

ELSEWHERE = {"README.md", "docs/recipes.md"}  # in test_readme.py, with what they must find
PYTHON = [page for page in PAGES if called(page) not in ELSEWHERE and any(blocks(page, "python"))]
COMMANDS = [block for page in PAGES for block in blocks(page, "bash")]
FINE_TUNING = ("nlu", "nlg", "token_classification")
HELP = {"--help", "--version", "--nproc_per_node"}
# Upstream: transformers on every model, its loaders without an accelerator.
UPSTREAM = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*pin_memory")


@UPSTREAM
@pytest.mark.parametrize("page", PYTHON, ids=called)
def test_the_code_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    random.seed(0)
    run_page(page)


@UPSTREAM
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_stored_in_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored, new = (
        ["".join(o.get("text", ["a figure"])) for c in book["cells"] for o in c.get("outputs", [])]
        for book in (json.loads(path.read_text(encoding="utf-8")), executed(path))
    )
    assert len(new) == len(stored) >= 3
    for one, other in zip(new, stored, strict=True):
        agree(one, Block(path, "text", other, 0))


def test_no_page_is_prepared_that_is_not_there():
    assert {*PREPARED, *ROUNDS} <= set(map(called, PAGES))


@cache
def flags() -> frozenset[str]:
    """What the commands know as an option: in quotes in a source, or a field of options."""
    found: set[str] = set()
    for package in ("applications", "benchmarks", "blo"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r"\"(--[a-z_]+)\"", text))
            if path.parent.name == "options":
                found |= {f"--{name}" for name in re.findall(r"^    (\w+): ", text, re.MULTILINE)}
    return frozenset(found)


def said(block: Block) -> Iterator[list[str]]:
    """The commands of a block in words, without variables before them."""
    for line in re.split(r"\n|&&", block.text.replace("\\\n", " ")):
        words = shlex.split(line, comments=True)
        yield [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]


@pytest.mark.parametrize("block", COMMANDS, ids=lambda b: f"{called(b.page)}:{b.line}")
def test_a_command_is_one(block):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in said(block):
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        if "-m" not in words or words[0] not in ("python", "torchrun"):
            continue
        module, *options = words[words.index("-m") + 1 :]
        if module.partition(".")[0] not in ("applications", "benchmarks", "blo"):
            continue
        assert find_spec(module), words
        unknown = {o.partition("=")[0] for o in options if o.startswith("--")} - flags() - HELP
        assert not unknown, words
        if module.partition(".")[2] in FINE_TUNING:
            parse_options(options)  # their values, too


LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#[^)]*)?\)")
GENERATED = {"docs/messages.md", "docs/contributing.md"}  # when the site is built


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_what_a_page_links_to_is_there(page):
    for link in filter(None, LINK.findall(page.read_text(encoding="utf-8"))):
        place = (page.parent / link).resolve()
        is_notebook = (ROOT / "notebooks" / f"{place.stem}.ipynb").exists()
        made = place.relative_to(ROOT).as_posix() in GENERATED
        assert place.exists() or made or is_notebook, f"{called(page)}: {link}"


def test_the_navigation_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r": (\S+\.md)$", text, re.MULTILINE))
    there = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    made = {name.removeprefix("docs/") for name in GENERATED}
    made |= {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert listed == there | made


def test_every_message_that_is_explained_is_in_the_sources():
    """The quotations of troubleshooting.md, by their parts between the values."""
    texts = [re.sub(r"%\.?\d*[sdrf]%*", "...", message.text) for message in messages()]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    page = page.split("## Installing")[0]
    quoted = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(quoted) >= 45
    for quote in quoted:
        parts = [re.escape(part) for part in quote.split("...")]
        pattern = re.compile(r"[^\n]*?".join(parts))
        assert any(pattern.search(" ".join(text.split())) for text in texts), quote


@pytest.mark.parametrize("package", [adapters, blo], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package):
    pages = (ROOT / "docs" / "reference").glob("*.md")
    shown = {name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)}
    own = {
        f"{package.__name__}.{name}": item.__module__
        for name, item in offered_by(package).items()
        if getattr(item, "__module__", "").startswith(package.__name__)
    }
    assert not [name for name, module in own.items() if shown.isdisjoint({name, module})]


def test_no_page_promises_a_release():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"pip install [^\n]*blo-torch(?!-)", text), called(page)


def test_a_browser_finds_what_is_too_wide_cut_undrawn_and_faint(tmp_path):
    if browser.browser() is None:
        pytest.skip(f"no browser: none of {', '.join(browser.BROWSERS)} is installed")
    body = "<!doctype html><body style='margin: 0; background: {}'><article>{}</article></body>"
    wide = "<p style='width: 800px'>text</p><div class='formula'><math><mi>\\arg</mi></math></div>"
    cut = "<pre style='width: 99px; overflow: hidden'><code style='display: block'>{}</code></pre>"
    pages = {
        "sound": ("#fff", "<p style='color: #000'>text</p>"),
        "bad": ("#fff", wide + cut.format("x" * 99) + "<p style='color: #ccc'>$$ \\alpha $$</p>"),
    }
    for name, (background, content) in pages.items():
        (tmp_path / f"{name}.html").write_text(body.format(background, content))
    answer = browser.looked(tmp_path)
    assert answer["looked"] == 2
    assert {page for page, *_ in answer["found"]} == {"bad.html"}
    narrow = " ".join(what for _, width, _, what in answer["found"] if width == 390)
    for fault in ("800 wide", "shows \\arg", "shows the source", "cuts xxx", "contrast 1.6"):
        assert fault in narrow
    assert "800 wide" not in " ".join(w for _, width, _, w in answer["found"] if width == 1280)
