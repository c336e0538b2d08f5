"""Long runs and interrupted ones: the same numbers after any number of kills, the same memory after
any number of rounds.

    python -m benchmarks.survival kills --kills 50
    python -m benchmarks.survival memory --rounds 10000

Every method is trained on two levels, and on three. `kills` ends processes by SIGKILL at random
moments, within rounds and within the writing of a state, begins them again from what they saved,
and compares the end with that of a run that nobody disturbed, bit for bit. `memory` reports by how
much memory, and the number of Python's objects, grow after a tenth of the rounds; its
rows are kept, and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import blo
from blo import Engine, Method, Problem, ProblemGraph

# Every row of the table of methods, and the methods beside it.
METHODS: dict[str, Callable[[], Method]] = {
    "darts()": blo.darts,
    "darts(one_sided=True)": lambda: blo.darts(one_sided=True),
    "t1t2()": blo.t1t2,
    "sama()": blo.sama,
    "neumann(3)": lambda: blo.neumann(3, scale=0.05),
    "cg(3)": lambda: blo.cg(3, damping=1.0, warm_start=True),
    "minres(3)": lambda: blo.minres(3, warm_start=True),
    "gmres(3)": lambda: blo.gmres(3, damping=1.0),
    "bicgstab(3)": lambda: blo.bicgstab(3, damping=1.0),
    "normal_cg(3)": lambda: blo.normal_cg(3, damping=1.0),
    "nystrom(3)": lambda: blo.nystrom(3),
    "dense()": lambda: blo.dense(damping=1.0),
    "soba()": lambda: blo.soba(step=0.05),
    "unrolled(2)": lambda: blo.unrolled(2),
    "unrolled()": blo.unrolled,
    "forward_mode()": blo.forward_mode,
    "f2sa(3)": lambda: blo.f2sa(3, lr=0.05, delta=0.01),
    "pbgd()": lambda: blo.pbgd(lr=0.02),
    "evolution(2)": lambda: blo.evolution(2),
    "alternating()": blo.alternating,
}
# Of three levels, the middle one stands alone or reads the one below, which not every method takes.
LEVELS = ("two levels", "three levels", "three levels, nested")
NESTED = ("darts()", "t1t2()", "sama()", "cg(3)", "minres(3)", "dense()", "unrolled(2)")
ROWS_OF_MEMORY = Path("benchmarks/results/memory_of_rounds.jsonl")
GENERATOR = torch.Generator().manual_seed(4)
ROWS = TensorDataset(
    torch.randn(24, 3, generator=GENERATOR), torch.randn(24, 1, generator=GENERATOR)
)


def places(methods: Sequence[str], levels: Sequence[str] = LEVELS) -> list[tuple[str, str]]:
    """Return the methods with the levels that they are trained on."""
    return [(m, n) for n in levels for m in methods if n != LEVELS[2] or m in NESTED]


def engine(method: Method, levels: str) -> Engine:
    """Return an engine with noise of every library in its losses, dropout, shuffled batches,
    running statistics, moments and a scheduler.

    Three levels: penalties above weights of examples above a network.
    """
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    two, nested = (levels == LEVELS[i] for i in (0, 2))
    statistics = nn.BatchNorm1d(2) if two else nn.Identity()
    net = nn.Sequential(nn.Linear(3, 2), statistics, nn.Dropout(0.2), nn.Tanh(), nn.Linear(2, 1))
    penalty, weight = nn.ParameterDict({"log": torch.zeros(2)}), nn.Linear(3, 1)
    modules = [net, weight, penalty]

    def error(batch: Sequence[Tensor]) -> Tensor:
        return (net(batch[0]) - batch[1]).square()

    def fit(batch: Sequence[Tensor]) -> Tensor:
        noise = 1 + 0.01 * (random.random() + float(np.random.rand()))
        decay = penalty["log"].exp() @ torch.stack([p.square().sum() for p in net.parameters()][:2])
        weighed = 1.0 if two else weight(batch[0]).sigmoid()
        return (weighed * error(batch)).mean() * noise + 0.01 * decay

    def choose(batch: Sequence[Tensor]) -> Tensor:
        decay = sum(p.square().sum() for p in weight.parameters())
        fitted = error(batch) if nested else (weight(batch[0]) - batch[1]).square()
        return fitted.mean() + 0.1 * penalty["log"].exp().sum() * decay

    def loader() -> DataLoader[Any]:
        return DataLoader(ROWS, 6, shuffle=True)

    adam = torch.optim.Adam(net.parameters(), 0.01)
    problems = [
        Problem(
            "penalty",
            lambda batch: error(batch).mean(),
            modules,
            torch.optim.Adam(penalty.parameters(), 0.01),
            loader(),
        ),
        Problem(
            "weights",
            choose,
            modules,
            torch.optim.SGD(weight.parameters(), 0.01, momentum=0.5),
            loader(),
            method=method,
        ),
        Problem(
            "network",
            fit,
            modules,
            adam,
            loader(),
            steps=2,
            method=method,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(adam, 1000),
        ),
    ]
    return Engine(ProblemGraph([problems[0], problems[2]] if two else problems))


def equal(a: Any, b: Any) -> bool:
    """Return whether two states are the same, bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# Kills.


def train(folder: Path, method: str, levels: str, rounds: int) -> None:
    """Train to the end from what was saved in `folder`, and save every round."""
    made, path = engine(METHODS[method](), levels), folder / "state.pt"
    if path.exists():
        made.load(path)
    for _ in made.rounds(rounds - made.round):
        made.save(path)


def forked(work: Callable[[], None]) -> int:
    """Return the process that does some work: a copy of this one, which has trained nothing."""
    process = os.fork()
    if process:
        return process
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def trained(folder: Path, method: str, levels: str, rounds: int) -> Any:
    """Return the state at the end of an undisturbed run."""
    process = forked(lambda: train(folder, method, levels, rounds))
    if os.waitpid(process, 0)[1]:
        raise RuntimeError(f"the run of {method} on {levels} ended with an error")
    return torch.load(folder / "state.pt", weights_only=True)


def killed(
    folder: Path, method: str, levels: str, rounds: int, kills: int, longest: float, draw: Any
) -> tuple[Any, int]:
    """Return the state at the end of a run that was killed, and how many times it was."""
    done = 0
    while True:
        process = forked(lambda: train(folder, method, levels, rounds))
        if done < kills:
            time.sleep(draw.uniform(0.0, longest))
            os.kill(process, signal.SIGKILL)
            code = os.waitpid(process, 0)[1]
            done += code == signal.SIGKILL
        else:
            code = os.waitpid(process, 0)[1]
        if code == 0:
            return torch.load(folder / "state.pt", weights_only=True), done
        if code != signal.SIGKILL:
            raise RuntimeError(f"{method} on {levels} did not go on after {done} kills")


def kills(total: int, rounds: int, runs: Sequence[tuple[str, str]], seed: int) -> int:
    """Print what became of killed runs, and return the number of those that ended elsewhere."""
    torch.optim.SGD(nn.Linear(1, 1).parameters())  # what torch loads late, before the forks
    draw, left, failures = random.Random(seed), total, 0
    waiting = list(runs)
    draw.shuffle(waiting)
    while left > 0:
        method, levels = waiting.pop()
        waiting.insert(0, (method, levels))
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            start = time.perf_counter()
            right = trained(Path(first), method, levels, rounds)
            longest = 0.7 * (time.perf_counter() - start)
            state, done = killed(Path(second), method, levels, rounds, min(left, 5), longest, draw)
        same = equal(state, right)
        failures += not same
        left -= done
        print(
            f"{method}, {levels}: {done} kills, {'bit-identical' if same else 'OTHER'}", flush=True
        )
    print(f"{total - left} kills, {failures} runs that ended elsewhere")
    return failures


# Memory.


def allocated() -> int:
    """Return the bytes that this process has written, in memory or swapped out (Linux).

    Pages of files (libraries) come and go with the load of the machine, and are not counted.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.partition(":")[0]: line.split()[1:2] for line in lines}
    return 1024 * sum(int(sizes[name][0]) for name in ("RssAnon", "VmSwap"))


def growth(rounds: int, method: str, levels: str) -> dict[str, Any]:
    """Return what a run grows by from a tenth of its rounds to their end: bytes of memory,
    and Python's objects.
    """
    made = engine(METHODS[method](), levels)
    start = time.perf_counter()
    early = max(rounds // 10, 1)
    made.run(early)
    gc.collect()
    before = allocated(), len(gc.get_objects())
    made.run(rounds - early)
    gc.collect()
    return {
        "method": method,
        "levels": levels,
        "rounds": rounds,
        "bytes": allocated() - before[0],
        "objects": len(gc.get_objects()) - before[1],
        "seconds": round(time.perf_counter() - start, 1),
        "torch": torch.__version__,
    }


def flat(row: Mapping[str, Any]) -> bool:
    """Return whether a run grew by less than 4 MiB and by less than 100 objects."""
    return bool(row["bytes"] < 4 * 2**20 and row["objects"] < 100)


def memory(rounds: int, runs: Sequence[tuple[str, str]], rows: Path) -> int:
    """Print how much every run grows; those that have a row of as many rounds are not run again.

    Args:
        rounds: of a run.
        runs: method and levels of each.
        rows: the file of the rows, a line each.

    Returns:
        The number of runs that grew.
    """
    lines = rows.read_text().splitlines() if rows.exists() else []
    found = {(r["method"], r["levels"], r["rounds"]): r for r in map(json.loads, lines)}
    failures = 0
    for method, levels in runs:
        row = found.get((method, levels, rounds))
        if row is None:
            row = growth(rounds, method, levels)
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
        failures += not flat(row)
        print(
            f"{method}, {levels}: {rounds} rounds in {row['seconds']:.0f} s, "
            f"{row['bytes'] / 2**20:+.2f} MiB and {row['objects']:+d} objects after the first "
            f"tenth{'' if flat(row) else ': GROWS'}",
            flush=True,
        )
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two and return whether something failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("what", choices=("kills", "memory"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rounds", type=int, help="of a run; 30 for kills, 10000 for memory")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, default=ROWS_OF_MEMORY, help="of memory: a row a run")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = places(given.methods, given.levels)
    if given.what == "kills":
        failures = kills(given.kills, given.rounds or 30, runs, given.seed)
    else:
        failures = memory(given.rounds or 10_000, runs, given.rows)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
