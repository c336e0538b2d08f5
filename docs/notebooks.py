"""Run the notebooks and store what they print and draw: ``python docs/notebooks.py``."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def executed(path: Path) -> dict[str, Any]:
    """A notebook with the outputs of its cells, run in this process, in one set of names."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = path.stem  # the same figure, the same file
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
        cell["execution_count"], cell["outputs"] = number, []
        if text := out.getvalue():
            lines = text.splitlines(keepends=True)
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": lines})
        cell["outputs"] += [drawn(plt.figure(figure)) for figure in plt.get_fignums()]
        plt.close("all")
    return notebook


def drawn(figure: Any) -> dict[str, Any]:
    """A figure as the output of a cell."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    lines = svg[svg.index("<svg") :].splitlines(keepends=True)
    data = {"image/svg+xml": lines, "text/plain": ["<Figure>"]}
    return {"output_type": "display_data", "metadata": {}, "data": data}


def main() -> None:
    """Run all of them and store them."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    for path in sorted(FOLDER.glob("*.ipynb")):
        text = json.dumps(executed(path), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
