"""A hook of mkdocs: a page with every message of the packages, read from their sources."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("blo", "adapters", "applications")
PAGE = "messages.md"
WARNING = {"warn", "warning"}


@dataclass(frozen=True)
class Message:
    """What one place in the sources says: its file, its kind, its text with ... for values."""

    file: str
    kind: str
    text: str


def messages(root: Path = ROOT) -> Iterator[Message]:
    """The texts of all exceptions and warnings, in the order of the files."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    known = {name: text for tree in trees.values() for name, text in constants(tree)}
    for path, tree in trees.items():
        for call in speaking(tree):
            text = written(call.args[0], known) if call.args else ""
            if len(text.replace("...", "").split()) > 2:
                yield Message(path.relative_to(root).as_posix(), named(call.func), text)


def constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The texts that a module gives names to."""
    for node in tree.body:
        match node:
            case ast.Assign([ast.Name(name)], ast.Constant(str(text))):
                yield name, text


def speaking(tree: ast.Module) -> Iterator[ast.Call]:
    """The calls that make an exception which is raised, or a warning."""
    for node in ast.walk(tree):
        match node:
            case ast.Raise(ast.Call() as call):
                yield call
            case ast.Expr(ast.Call() as call) if named(call.func) in WARNING:
                yield call


def named(function: ast.expr) -> str:
    """The last part of a function's name."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def written(node: ast.expr, known: Mapping[str, str]) -> str:
    """A text as it stands in the sources, with ... for each value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part, known) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left, known) + written(node.right, known)
    return known.get(node.id, "...") if isinstance(node, ast.Name) else "..."


def page() -> str:
    """Every message in Markdown, by file."""
    lines = [
        "# Every message",
        "",
        "Read from the sources when this page was built; `...` stands for a value. Messages name",
        "the argument, its value and the remedy, so that most need no more; the common ones are",
        "under [Troubleshooting](troubleshooting.md).",
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
