"""A hook of mkdocs: CONTRIBUTING.md as a page, and the notebooks with their stored outputs."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Any, config: Any) -> Any:
    """The files of the site with these pages."""
    from mkdocs.structure.files import File

    pages = {"contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        pages[f"notebooks/{path.stem}.md"] = markdown(json.loads(path.read_text(encoding="utf-8")))
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def markdown(notebook: dict[str, Any]) -> str:
    """A notebook in Markdown: its texts, its code, and what that printed and drew."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if text := output.get("text"):
                parts.append(f"```text\n{''.join(text).rstrip()}\n```")
            elif "image/svg+xml" in data:
                parts.append(f'<div class="figure">{"".join(data["image/svg+xml"])}</div>')
    return "\n\n".join(parts) + "\n"
