"""A hook of mkdocs: the notebooks as pages, with the outputs that are stored in them."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def on_files(files: Any, config: Any) -> Any:
    """The files of the site with a page for each notebook."""
    from mkdocs.structure.files import File

    for path in sorted(FOLDER.glob("*.ipynb")):
        content = markdown(json.loads(path.read_text(encoding="utf-8")))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=content))
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
