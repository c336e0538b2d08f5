"""Error, time and memory of the rounds of several libraries on one problem."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of itself on stderr

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.memory import allocated_bytes
from benchmarks.peers.chains import Chain
from benchmarks.peers.library import Round
from benchmarks.peers.task import Task


class Times(NamedTuple):
    """The seconds of a round, as medians over blocks of rounds, and ratios of the same blocks."""

    seconds: float
    cpu_seconds: float
    ratios: dict[str, float]


def received(task: Task | Chain, once: Round) -> Tensor:
    """Return what the optimizer above receives in the next round, as one flat vector."""
    own = {id(p) for p in task.x}
    seen: list[Tensor] = []

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        held = optimizer.param_groups[0]["params"]
        # By their shapes as well: a library may hand its own copies to its optimizers.
        if {id(p) for p in held} == own:
            seen.append(torch.cat([_gradient(p).flatten() for p in task.x]).double())

    handle = register_optimizer_step_pre_hook(look)
    try:
        once()
    finally:
        handle.remove()
    if len(seen) != 1:
        raise RuntimeError(f"the optimizer above took {len(seen)} steps in a round, not one")
    return seen[0]


def _gradient(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.detach()


def error(found: Tensor, reference: Tensor) -> float:
    """Return the relative distance of a hypergradient from what it should be."""
    return float((found - reference).norm() / reference.norm())


def timed(
    rounds: Mapping[str, Round], *, repeats: int, seconds: float, warm: int = 3
) -> dict[str, Times]:
    """Return the times of several rounds, measured in turns.

    Args:
        rounds: by library.
        repeats: blocks of each.
        seconds: of process time that a block takes about.
        warm: rounds before, which are not counted: two are enough where one takes a block's time.
    """
    counts = {}
    for name, once in rounds.items():
        for number in range(warm):
            _, cpu = _block(once, 1)
            if number and cpu > seconds:
                break
        counts[name] = max(1, min(200, round(seconds / max(cpu, 1e-6))))
    walls: dict[str, list[float]] = {name: [] for name in rounds}
    cpus: dict[str, list[float]] = {name: [] for name in rounds}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, once in rounds.items():
                wall, cpu = _block(once, counts[name])
                walls[name].append(wall)
                cpus[name].append(cpu)
            gc.collect()
    finally:
        gc.enable()
    return {
        name: Times(
            statistics.median(walls[name]),
            statistics.median(cpus[name]),
            {other: ratio_of(cpus[name], cpus[other]) for other in rounds if other != name},
        )
        for name in rounds
    }


def _block(once: Callable[[], object], count: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        once()
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def ratio_of(ours: Sequence[float], others: Sequence[float]) -> float:
    """Return the median ratio of the times of neighbouring blocks."""
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))


def peak_mb(once: Round) -> float:
    """Return the most memory that a training needs beyond its parameters and data, in MiB: what its
    first round leaves, and the peak of the next one beyond that.
    """
    gc.collect()
    _, kept = allocated_bytes(once, "cpu")
    gc.collect()
    peak, _ = allocated_bytes(once, "cpu")
    return (max(kept, 0) + peak) / 2**20
