"""Time and memory by size, and by the number of levels.

``python -m benchmarks.scaling`` measures rounds of this library and of the others that are
installed on squares with 1e3 to 1e6 lower parameters (``--large``: 1e8) and 1 to 1e4 upper ones
(``--large``: 1e6), on steps that are unrolled, and on chains of two to five levels; where levels
read those below them, which this library alone does, gradients and products are counted as well. It
writes ``benchmarks/results/scaling.jsonl``.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import blo
from benchmarks.nested import NestedQuadratics, received
from benchmarks.peers import tasks
from benchmarks.peers.__main__ import chosen, measure, measured_with
from benchmarks.peers.chains import chain
from benchmarks.peers.library import Claim
from benchmarks.peers.measuring import peak_mb, timed
from benchmarks.peers.rows import Row
from benchmarks.versions import commit, version_of
from blo import Engine, Method, ProblemGraph

RESULTS = Path("benchmarks/results/scaling.jsonl")
CLAIMS = {"darts": Claim("one step"), "cg(10)": Claim("krylov", 10)}
OF_CHAINS = {
    "darts": Claim("one step"),
    "t1t2": Claim("one step"),
    "neumann(3)": Claim("series", 3),
    "cg(3)": Claim("krylov", 3),
}
METHODS: dict[str, Method] = {"t1t2": blo.t1t2(), "cg(3)": blo.cg(3)}
Line = dict[str, Any]


def by_size(large: bool, most: int) -> Iterator[Row]:
    """Yield rows of squares: lower sizes at ten upper parameters, then upper sizes."""
    lower = [10**k for k in range(3, 9 if large else 7)]
    upper = [10**k for k in (0, 2, 4, *((6,) if large else ()))]
    pairs = [(n, 10) for n in lower if n <= most] + [(10**6, m) for m in upper]
    twin = partial(tasks.diagonal, num_lower=1000, num_upper=10)
    for n, m in pairs:
        build = partial(tasks.diagonal, num_lower=n, num_upper=m)
        for method, claim in CLAIMS.items():
            yield Row(method, build, claim, twin if n > 10**6 else None, kind="size")


def by_steps(large: bool) -> Iterator[Row]:
    """Yield rows of unrolled steps."""
    for steps in (1, 3, 10, 30, *((100,) if large else ())):
        build = partial(tasks.reweighting, steps=steps)
        for method in ("unrolled", "unrolled, checkpoints"):
            yield Row(method, build, Claim("steps"), kind="steps")


def by_levels(most: int) -> Iterator[Row]:
    """Yield rows of chains of levels, each of which reads the one above."""
    for size, methods in ((3, list(OF_CHAINS)), (300, ["darts", "neumann(3)"])):
        for levels in range(2, most + 1):
            for method in methods:
                yield Row(
                    method,
                    partial(chain, levels=levels, size=size),
                    OF_CHAINS[method],
                    kind="levels",
                )


def all_reading(levels: int) -> dict[str, list[str]]:
    """Return who reads whom among so many levels: each the one above and all below."""
    names = [f"level {k}" for k in range(levels)]
    return {name: [*names[max(k - 1, 0) : k], *names[k + 1 :]] for k, name in enumerate(names)}


def reading_below(repeats: int, seconds: float, most: int) -> Iterator[Line]:
    """Yield what chains cost in which each level reads those below as well, and how far their
    hypergradients are from the closed form: what the method leaves out.

    Each level multiplies the cost: the fifth takes minutes.
    """
    for method_name, method in METHODS.items():
        for levels in range(2, min(most, 4) + 1):
            nested = NestedQuadratics(all_reading(levels))
            values, reference = nested.solve()
            engine = Engine(ProblemGraph(nested.problems(values, method, lr=0.1)))
            value, num_gradients, num_products = received(engine)
            rounds = engine.rounds(10**9)
            once = partial(next, rounds)
            memory = peak_mb(once)
            times = timed({"blo": once}, repeats=repeats, seconds=seconds)["blo"]
            yield {
                "kind": "levels",
                "library": "blo",
                "version": version_of("blo-torch"),
                "method": method_name,
                "problem": "chain, middle reads below",
                "setting": f"{levels} levels of {nested.size} unknowns",
                "status": "ok",
                "seconds": times.seconds,
                "error": float((value - reference).norm() / reference.norm()),
                "claim": "implicit",
                "peak_memory_mb": memory,
                "cpu_seconds": times.cpu_seconds,
                "num_levels": levels,
                "num_gradients": num_gradients,
                "num_products": num_products,
                "dtype": "float64",
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "commit": commit(),
            }


def main() -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--kinds", nargs="*", default=["size", "steps", "levels"])
    parser.add_argument("--large", action="store_true", help="up to 1e8 lower parameters")
    parser.add_argument("--most", type=int, default=10**8, help="lower parameters at ten above")
    parser.add_argument("--levels", type=int, default=5, help="at most")
    measured_with(parser, RESULTS)
    options = parser.parse_args()
    rows = [
        *by_size(options.large, options.most),
        *by_steps(options.large),
        *by_levels(options.levels),
    ]
    asked = [row for row in rows if row.kind in options.kinds]
    results = measure(asked, chosen(parser, options), options)
    if "levels" not in options.kinds or options.settings:
        return 0
    print("levels that read below: ms of a round, gradients + products, error")
    for line in reading_below(options.repeats, options.seconds, options.levels):
        cost = f"{line['num_gradients']} + {line['num_products']}"
        print(
            f"  {line['method']:>6}  {line['num_levels']} levels "
            f"{1e3 * line['cpu_seconds']:>9.2f}  {cost:>10}  {line['error']:.1e}"
        )
        results.put([line])
    return 0


if __name__ == "__main__":
    sys.exit(main())
