"""Time and memory by size, and by the number of levels.

``python -m benchmarks.scaling`` measures rounds of this library and of the others that are
installed on squares with 1e3 to 1e6 lower parameters (``--large``: 1e8) and 1 to 1e4 upper ones
(``--large``: 1e6), on steps that are unrolled, and on chains of two to five levels, where the cost
of a level is counted as well. It writes ``benchmarks/results/scaling.jsonl``; other libraries take
part in the first two.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import blo
from benchmarks.nested import NestedQuadratics, received
from benchmarks.peers import tasks
from benchmarks.peers.__main__ import lines, shown
from benchmarks.peers.library import LIBRARIES, Claim
from benchmarks.peers.measuring import peak_mb, timed
from benchmarks.peers.rows import Row
from benchmarks.versions import version_of
from blo import Engine, Method, ProblemGraph

RESULTS = Path("benchmarks/results/scaling.jsonl")
CLAIMS = {"darts": Claim("one step"), "cg(10)": Claim("krylov", 10)}
METHODS: dict[str, Method] = {"darts": blo.darts(), "t1t2": blo.t1t2(), "cg(3)": blo.cg(3)}
Line = dict[str, Any]


def by_size(large: bool) -> Iterator[tuple[str, Row]]:
    """Yield rows of squares: lower sizes at ten upper parameters, then upper sizes."""
    lower = [10**k for k in range(3, 9 if large else 7)]
    upper = [10**k for k in (0, 2, 4, *((6,) if large else ()))]
    pairs = [(n, 10) for n in lower] + [(10**6, m) for m in upper]
    twin = partial(tasks.diagonal, num_lower=1000, num_upper=10)
    for n, m in pairs:
        build = partial(tasks.diagonal, num_lower=n, num_upper=m)
        for method, claim in CLAIMS.items():
            yield "size", Row(method, build, claim, twin if n > 10**6 else None)


def by_steps(large: bool) -> Iterator[tuple[str, Row]]:
    """Yield rows of unrolled steps."""
    for steps in (1, 3, 10, 30, *((100,) if large else ())):
        build = partial(tasks.reweighting, steps=steps)
        for method in ("unrolled", "unrolled, checkpoints"):
            yield "steps", Row(method, build, Claim("steps"))


def chain(levels: int, *, reads_below: bool) -> dict[str, list[str]]:
    """Return who reads whom among so many levels; each but the top reads the level above, the top
    reads all, and where `reads_below`, so does every problem those below it.
    """
    names = [f"level {k}" for k in range(levels)]
    reads = {names[0]: names[1:]}
    for k in range(1, levels):
        reads[names[k]] = [names[k - 1], *(names[k + 1 :] if reads_below else [])]
    return reads


def by_levels(repeats: int, seconds: float, most: int) -> Iterator[Line]:
    """Yield what chains of quadratic problems cost, and how far their hypergradients are from the
    closed form: what the method leaves out.
    """
    for reads_below in (False, True):
        rounds, found = {}, {}
        for method_name, method in METHODS.items():
            if reads_below and method_name == "darts":
                continue
            # Where all read below, a level multiplies the cost: the fifth takes minutes.
            for levels in range(2, (min(most, 4) if reads_below else most) + 1):
                nested = NestedQuadratics(chain(levels, reads_below=reads_below))
                values, reference = nested.solve()
                engine = Engine(ProblemGraph(nested.problems(values, method, lr=0.1)))
                value, num_gradients, num_products = received(engine)
                key = f"{method_name} {levels}"
                rounds[key] = partial(engine.run, 1)
                found[key] = {
                    "library": "blo",
                    "version": version_of("blo-torch"),
                    "method": method_name,
                    "problem": "chain, middle reads below" if reads_below else "chain",
                    "setting": f"{levels} levels of {nested.size} unknowns",
                    "status": "ok",
                    "error": float((value - reference).norm() / reference.norm()),
                    "claim": "implicit",
                    "peak_memory_mb": peak_mb(rounds[key]),
                    "num_levels": levels,
                    "num_gradients": num_gradients,
                    "num_products": num_products,
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                }
        for key, times in timed(rounds, repeats=repeats, seconds=seconds).items():
            yield {**found[key], "seconds": times.seconds, "cpu_seconds": times.cpu_seconds}


def main() -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--kinds", nargs="*", default=["size", "steps", "levels"])
    parser.add_argument("--large", action="store_true", help="up to 1e8 lower parameters")
    parser.add_argument("--levels", type=int, default=5, help="at most")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of rounds, in turns")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a block, about")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines; written anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the other libraries': of torch's older names
    options.out.parent.mkdir(parents=True, exist_ok=True)
    asked = [*by_size(options.large), *by_steps(options.large)]
    with options.out.open("w", encoding="utf-8") as file:

        def write(line: Line) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        for kind, row in asked:
            if kind not in options.kinds:
                continue
            print(f"{row.build(torch.float32).setting}: {row.method}")
            for line in lines(row, LIBRARIES.values(), options.repeats, options.seconds):
                if line["status"] != "absent":
                    print(shown(line), flush=True)
                write({"kind": kind, **line})
        if "levels" in options.kinds:
            print("levels: ms of a round, gradients + products, error")
            for line in by_levels(options.repeats, options.seconds, options.levels):
                cost = f"{line['num_gradients']} + {line['num_products']}"
                print(
                    f"  {line['problem']:>26}  {line['method']:>6}  {line['num_levels']} levels "
                    f"{1e3 * line['cpu_seconds']:>9.2f}  {cost:>10}  {line['error']:.1e}"
                )
                write({"kind": "levels", **line})
    return 0


if __name__ == "__main__":
    sys.exit(main())
