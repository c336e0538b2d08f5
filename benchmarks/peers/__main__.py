"""This library beside others: error, time and memory of the same rounds.

``python -m benchmarks.peers`` writes a line a library, method and problem to
``benchmarks/results/peers.jsonl`` and prints them; ``make bench-peers`` runs it where the other
libraries are installed. ``python -m benchmarks.peers.page`` draws what was found.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import (  # noqa: F401
    by_hand,
    ours,
    with_betty,
    with_boat,
    with_higher,
    with_jaxopt,
    with_torchopt,
)
from benchmarks.peers.library import LIBRARIES, Absent, Library
from benchmarks.peers.measuring import error, peak_mb, received, timed
from benchmarks.peers.reference import claimed
from benchmarks.peers.rows import ROWS, Row
from benchmarks.peers.task import Task
from benchmarks.versions import version_of

RESULTS = Path("benchmarks/results/peers.jsonl")


def lines(
    row: Row, libraries: Iterable[Library], repeats: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield what was found of each library: error, then time and memory; or why nothing was."""
    rounds, found = {}, {}
    for library in libraries:
        task = row.build(torch.float32)
        line = described(row, task, library)
        try:
            rounds[library.name] = library.round_of(row.method, task)
            line |= compared(row, library)
            if library.is_torch:
                line["peak_memory_mb"] = peak_mb(rounds[library.name])
        except Absent as reason:
            rounds.pop(library.name, None)
            line |= {"status": "absent", "reason": str(reason)}
        except Exception as failure:  # whatever a library raises, the others go on
            rounds.pop(library.name, None)
            line |= {"status": "failed", "reason": _last_line(failure)}
        found[library.name] = line
    for name, times in timed(rounds, repeats=repeats, seconds=seconds).items():
        ratios = {f"to_{_key(other)}": ratio for other, ratio in times.ratios.items()}
        found[name] |= {"seconds": times.seconds, "cpu_seconds": times.cpu_seconds, **ratios}
    yield from found.values()


def described(row: Row, task: Task, library: Library) -> dict[str, Any]:
    """Return the fields that are known before anything is measured."""
    return {
        "library": library.name,
        "version": version_of(library.package),
        "method": row.method,
        "problem": task.problem,
        "setting": task.setting,
        "status": "ok",
        "seconds": None,
        "error": None,
        "claim": str(row.claim),
        "peak_memory_mb": None,
        "cpu_seconds": None,
        "num_lower": sum(p.numel() for p in task.y),
        "num_upper": sum(p.numel() for p in task.x),
        "num_steps": task.steps,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def compared(row: Row, library: Library) -> dict[str, Any]:
    """Return the error of the first round's hypergradient against what the method claims."""
    entry = library.methods[row.method]
    claim = entry.claim or row.claim
    if row.claim.kind == "none":
        return {"claim": "none"}
    build = row.twin or row.build
    task = build(torch.float32)
    value = received(task, library.round_of(row.method, task))
    reference = claimed(build(torch.float64), claim)
    compared_on = {"compared_on": task.setting} if row.twin else {}
    return {"error": error(value, reference), "claim": str(claim), **compared_on}


def shown(line: dict[str, Any]) -> str:
    """Return a line of the table."""
    if line["status"] != "ok":
        return f"  {line['library']:>18}  {line['status']}: {line['reason']}"
    ratio = line.get("to_blo")
    cells = [
        f"{1e3 * line['cpu_seconds']:>9.3f} ms",
        "         " if line["error"] is None else f"{line['error']:>9.1e}",
        "" if line["peak_memory_mb"] is None else f"{line['peak_memory_mb']:>8.2f} MiB",
        f"{line['claim']:>12}",
        "" if ratio is None else f"{ratio:>6.2f} x blo",
    ]
    return f"  {line['library']:>18}  " + "  ".join(cells)


def _key(name: str) -> str:
    return name.lower().replace(" ", "_").replace(".", "_")


def _last_line(failure: Exception) -> str:
    text = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {text[-1][:200]}"


def main() -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--problems", nargs="*", default=list(ROWS), help=f"among {list(ROWS)}")
    parser.add_argument("--methods", nargs="*", help="by their names in benchmarks/peers/rows.py")
    parser.add_argument("--libraries", nargs="*", help=f"among {list(LIBRARIES)}; default: all")
    parser.add_argument("--large", action="store_true", help="the larger shapes as well")
    parser.add_argument("--repeats", type=int, default=7, help="blocks of rounds, in turns")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a block, about")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines; written anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the other libraries': of torch's older names
    names = options.libraries or list(LIBRARIES)
    unknown = [*(set(names) - set(LIBRARIES)), *(set(options.problems) - set(ROWS))]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    libraries = [LIBRARIES[name] for name in names]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as file:
        for problem in options.problems:
            for row in ROWS[problem]():
                if (row.large and not options.large) or (
                    options.methods and row.method not in options.methods
                ):
                    continue
                title = ""
                for line in lines(row, libraries, options.repeats, options.seconds):
                    if not title:
                        title = f"{line['problem']}, {line['setting']}: {row.method}"
                        print(title)
                    print(shown(line), flush=True)
                    file.write(json.dumps(line) + "\n")
                    file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
