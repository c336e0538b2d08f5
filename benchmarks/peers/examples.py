"""Betty's own problems, trained by both libraries from the same start on the same batches.

``python -m benchmarks.peers.examples`` trains the logistic regression of Betty's three tests
(darts, neumann, cg) and a Meta-Weight-Net as in its examples (the weighted loss detached), here on
scikit-learn's digits with 40 % wrong labels, and writes the loss that was reached, time, memory and
how far the last hypergradient was from that of an exact solve (regression) to
``benchmarks/results/examples.jsonl``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

import blo
from benchmarks.peers.bettys import (
    Example,
    last_error,
    regression,
    weighting,
    with_betty,
    with_blo,
)
from benchmarks.peers.library import Round
from benchmarks.peers.measuring import peak_mb, ratio_of
from benchmarks.peers.results import Line, Results, ratio_to
from benchmarks.versions import commit, version_of

RESULTS = Path("benchmarks/results/examples.jsonl")
BLOCKS = 10
Start = Callable[[Example], Round]


# (method, of this library, of Betty); CG as in Betty's tests and as it should be.
REGRESSION = (
    ("darts", blo.darts(), {"type": "darts"}),
    ("neumann(3)", blo.neumann(3), {"type": "neumann", "neumann_iterations": 3}),
    ("cg(3)", blo.cg(3), {"type": "cg", "cg_iterations": 3}),
    ("cg(3), cg_alpha 0.1", None, {"type": "cg", "cg_iterations": 3, "cg_alpha": 0.1}),
)
WEIGHTING = (
    ("darts", blo.darts(), {"type": "darts"}),
    ("t1t2", blo.t1t2(), None),
    ("neumann(5)", blo.neumann(5), {"type": "neumann", "neumann_iterations": 5}),
)


def lines(seeds: int, rounds: tuple[int, int]) -> Iterator[list[Line]]:
    """Yield what the libraries reached by a method, over some seeds."""
    for make, cases, number in (
        (regression, REGRESSION, rounds[0]),
        (weighting, WEIGHTING, rounds[1]),
    ):
        for method, own, betty in cases:
            starts: dict[str, Start] = {}
            if own is not None:
                starts["blo"] = partial(with_blo, method=own)
            if betty is not None:
                starts["Betty"] = partial(with_betty, **betty)
            yield trained(method, make, starts, seeds, number)


def trained(
    method: str,
    make: Callable[[int], Example],
    starts: Mapping[str, Start],
    seeds: int,
    rounds: int,
) -> list[Line]:
    """Return what each library reached: means over the seeds, and their spread; they are trained in
    turns, a block of rounds each.
    """
    runs: dict[str, list[Run]] = {library: [] for library in starts}
    reasons = {}
    for seed in range(seeds):
        for library, start in starts.items():
            example = make(seed)
            try:
                runs[library].append(Run(example, start(example)))
            except ImportError as reason:
                reasons[library] = str(reason)
        turns = [own[seed] for own in runs.values() if own]
        for block in range(BLOCKS):
            for run in turns:
                run.take(rounds * (block + 1) // BLOCKS - rounds * block // BLOCKS)
        for run in turns:
            run.end()
    shared = {
        "method": method,
        "problem": make(0).problem,
        "setting": f"{rounds} rounds, {seeds} seeds",
    }
    return [
        {
            "library": library,
            "version": version_of("betty-ml" if library == "Betty" else "blo-torch"),
            **shared,
            **(
                {"status": "absent", "reason": reasons[library]}
                if library in reasons
                else reached(library, runs)
            ),
        }
        for library in runs
    ]


def reached(library: str, runs: Mapping[str, Sequence[Run]]) -> Line:
    """Return what a library reached and took, beside the others in the same turns."""
    own = runs[library]
    losses = [run.loss for run in own]
    errors = [run.error for run in own if run.error is not None]
    blocks = [cpu for run in own for cpu in run.cpus]
    ratios = {
        ratio_to(name): ratio_of(blocks, [cpu for run in other for cpu in run.cpus])
        for name, other in runs.items()
        if name != library and other
    }
    return {
        "status": "ok",
        "seconds": statistics.mean(sum(run.walls) for run in own),
        "cpu_seconds": statistics.mean(sum(run.cpus) for run in own),
        "error": statistics.mean(errors) if errors else None,
        "peak_memory_mb": own[-1].memory,
        "loss": statistics.mean(losses),
        "spread": statistics.stdev(losses) if len(losses) > 1 else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        **ratios,
    }


class Run:
    """A training of one library from one seed, in blocks of rounds.

    Args:
        example: what is trained.
        once: a round of it.
    """

    def __init__(self, example: Example, once: Round) -> None:
        self.example, self.once = example, once
        self.walls: list[float] = []
        self.cpus: list[float] = []

    def take(self, rounds: int) -> None:
        """Train for some rounds, and keep their time."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            self.once()
        self.walls.append(time.perf_counter() - wall)
        self.cpus.append(time.process_time() - cpu)

    def end(self) -> None:
        """Measure what was reached, and then the error and the memory of further rounds."""
        self.loss = self.example.measured()
        self.error = last_error(self.example, self.once) if self.example.exact else None
        self.memory = peak_mb(self.once)
        self.example, self.once = None, None  # its tensors are not needed any more


def main() -> int:
    """Train, write and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.examples", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, nargs=2, default=(50, 300), help="of both problems")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines; written anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = Results(options.out, anew=True)
    for found in lines(options.seeds, tuple(options.rounds)):
        results.put(found)
        for line in found:
            if line["status"] != "ok":
                print(f"{line['library']}, {line['method']}: {line['reason']}")
                continue
            error = "" if line["error"] is None else f"  error {line['error']:.2g}"
            print(
                f"{line['problem']:>40} {line['method']:>20} {line['library']:>6}  loss "
                f"{line['loss']:.4f} ({line['spread'] or 0:.4f}) {line['cpu_seconds']:.2f} s CPU "
                f"{line['peak_memory_mb']:.2f} MiB{error}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
