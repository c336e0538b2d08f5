"""A hook of mkdocs: a page with every message of the packages, read from their sources."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("blo", "adapters", "applications")
PAGE = "messages.md"
SPEAKING = {"warn", "warning", "error", "UsageError"}


@dataclass(frozen=True)
class Message:
    """What one place in the sources says: its file, its kind, its text with ... for values."""

    file: str
    kind: str
    text: str


def messages(root: Path = ROOT) -> Iterator[Message]:
    """The texts of all exceptions and warnings, in the order of the files."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            place = path.relative_to(root).as_posix()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    yield from said(place, node.exc)
                elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    if named(node.value.func) in SPEAKING - {"UsageError"}:
                        yield from said(place, node.value)


def said(place: str, call: ast.Call) -> Iterator[Message]:
    """The text that a call is given first, where it is written there."""
    text = written(call.args[0]) if call.args else ""
    if len(text.replace("...", "").split()) > 2:
        yield Message(place, named(call.func), text)


def named(function: ast.expr) -> str:
    """The last part of a function's name."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def written(node: ast.expr) -> str:
    """A text as it stands in the sources, with ... for each value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(written, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left) + written(node.right)
    return "..."


def page() -> str:
    """Every message in Markdown, by file."""
    lines = [
        "# Every message",
        "",
        "Read from the sources when this page was built; `...` stands for a value. Messages name the",
        "argument, its value and the remedy, so that most need no more; the common ones are under",
        "[Troubleshooting](troubleshooting.md).",
    ]
    file = ""
    for message in messages():
        if message.file != file:
            file = message.file
            lines += ["", f"## {file}", ""]
        kind = {"warn": "warning", "UsageError": "refused"}.get(message.kind, message.kind)
        lines.append(f"- *{kind}*: `` {' '.join(message.text.split())} ``")
    return "\n".join(lines) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """The files of the site with this page."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))
    return files
