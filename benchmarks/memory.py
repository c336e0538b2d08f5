"""The peak memory of a round of every method, above what stands before it.

``python -m benchmarks.memory`` counts every allocation of the tensors' allocator during one round
(torch's profiler on the CPU, the allocator's own counter on CUDA), which is exact and repeats; the
resident size of the process is neither.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of itself on stderr

import torch

from benchmarks.rounds import ROUNDS
from benchmarks.versions import version_of
from benchmarks.workloads import WORKLOADS


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Return the largest sum of allocations less frees since the beginning of the call."""
    return allocated_bytes(call, device)[0]


def allocated_bytes(call: Callable[[], object], device: str) -> tuple[int, int]:
    """Return the largest sum of allocations less frees since the beginning of the call, and the sum
    at its end.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak, live


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two small workloads")
    parser.add_argument("--workloads", nargs="*", choices=list(WORKLOADS))
    parser.add_argument("--methods", nargs="*", default=list(ROUNDS), choices=list(ROUNDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="append a line a measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.workloads or list(WORKLOADS)[: 2 if options.quick else None]
    for name in names:
        plain = None
        print(f"\n{name}: peak of a round")
        print(f"{'method':>18} {'MB':>9} {'to alternating':>15}")
        for method in dict.fromkeys(["alternating", *options.methods]):
            count = ROUNDS[method]
            workload = WORKLOADS[name](count.method, count.steps, options.device)
            workload.engine.run(2)
            peak = peak_bytes(lambda w=workload: w.engine.run(1), options.device) / 2**20
            plain = peak if plain is None else plain
            print(f"{method:>18} {peak:>9.2f} {peak / plain:>15.2f}", flush=True)
            if options.json:
                line = {
                    "library": "blo-torch",
                    "version": version_of("blo-torch"),
                    "method": method,
                    "problem": name,
                    "peak_memory_mb": peak,
                }
                with options.json.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
