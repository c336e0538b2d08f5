"""This library beside others: error, time and memory of the same rounds.

``python -m benchmarks.peers`` writes a line a library, method and problem to
``benchmarks/results/peers.jsonl``, in the place of the line that was there, and prints them; ``make
bench-peers`` runs it where the other libraries are installed. ``python -m benchmarks.peers.page``
draws what was found.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
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
from benchmarks.peers.chains import Chain
from benchmarks.peers.library import LIBRARIES, Absent, Library
from benchmarks.peers.measuring import error, peak_mb, received, timed
from benchmarks.peers.reference import claimed
from benchmarks.peers.results import Results, ratio_to
from benchmarks.peers.rows import ROWS, Row
from benchmarks.peers.task import Task
from benchmarks.versions import commit, version_of

RESULTS = Path("benchmarks/results/peers.jsonl")


def lines(
    row: Row, libraries: Iterable[Library], repeats: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Yield what was found of each library: error, then time and memory; or why nothing was."""
    rounds, found = {}, {}
    task = row.build(torch.float32)
    for library in libraries:
        line = described(row, task, library)
        try:
            entry = library.entry(row.method, task)
            rounds[library.name] = entry.train(row.build(torch.float32))
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
    del task
    for name, times in timed(rounds, repeats=repeats, seconds=seconds).items():
        ratios = {ratio_to(other): ratio for other, ratio in times.ratios.items()}
        found[name] |= {"seconds": times.seconds, "cpu_seconds": times.cpu_seconds, **ratios}
    yield from found.values()


def described(row: Row, task: Task | Chain, library: Library) -> dict[str, Any]:
    """Return the fields that are known before anything is measured."""
    return {
        **({"kind": row.kind} if row.kind else {}),
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
        **({"num_levels": len(task.modules)} if isinstance(task, Chain) else {}),
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def compared(row: Row, library: Library) -> dict[str, Any]:
    """Return the error of the first round's hypergradient against what the method claims."""
    if row.claim.kind == "none":
        return {"claim": "none"}
    build = row.twin or row.build
    task = build(torch.float32)
    entry = library.entry(row.method, task)
    claim = entry.claimed(task, row.claim)
    value = received(task, entry.train(task))
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


def _last_line(failure: Exception) -> str:
    text = str(failure).strip().splitlines() or [""]
    return f"{type(failure).__name__}: {text[-1][:200]}"


def main() -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--problems", nargs="*", default=list(ROWS), help=f"among {list(ROWS)}")
    parser.add_argument("--large", action="store_true", help="the larger shapes as well")
    measured_with(parser, RESULTS)
    options = parser.parse_args()
    libraries = chosen(parser, options)
    if unknown := set(options.problems) - set(ROWS):
        parser.error(f"unknown problems: {', '.join(sorted(unknown))}")
    rows = [row for problem in options.problems for row in ROWS[problem]()]
    measure([row for row in rows if options.large or not row.large], libraries, options)
    return 0


def measured_with(parser: argparse.ArgumentParser, results: Path) -> None:
    """Add the options that say what is measured and how, and where it is written."""
    parser.add_argument("--methods", nargs="*", help="by their names in benchmarks/peers/rows.py")
    parser.add_argument("--libraries", nargs="*", help=f"among {list(LIBRARIES)}; default: all")
    parser.add_argument("--settings", nargs="*", help="rows whose setting contains one of these")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of rounds, in turns")
    parser.add_argument("--seconds", type=float, default=0.1, help="of a block, about")
    parser.add_argument("--out", type=Path, default=results, help="JSON lines, some replaced")
    parser.add_argument("--anew", action="store_true", help="begin with an empty file")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what this commit has measured already"
    )


def chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Library]:
    """Return the libraries that were asked for."""
    names = options.libraries or list(LIBRARIES)
    if unknown := set(names) - set(LIBRARIES):
        parser.error(f"unknown libraries: {', '.join(sorted(unknown))}")
    return [LIBRARIES[name] for name in names]


def measure(
    rows: Iterable[Row],
    libraries: Sequence[Library],
    options: argparse.Namespace,
) -> Results:
    """Measure rows, print them and write them as they are found.

    Args:
        rows: what is compared.
        libraries: that take part.
        options: those of `measured_with`.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the other libraries': of torch's older names
    results = Results(options.out, anew=options.anew)
    for row in rows:
        if options.methods and row.method not in options.methods:
            continue
        gc.collect()
        gc.freeze()  # what lives by now is not looked at in each collection below
        task = row.build(torch.float32)
        if options.settings and not any(part in task.setting for part in options.settings):
            continue
        wanted = [described(row, task, library) for library in libraries]
        if options.resume and results.has(wanted):
            continue
        print(f"{task.problem}, {task.setting}: {row.method}", flush=True)
        del task
        found = list(lines(row, libraries, options.repeats, options.seconds))
        print("\n".join(map(shown, found)), flush=True)
        results.put(found)
    return results


if __name__ == "__main__":
    sys.exit(main())
