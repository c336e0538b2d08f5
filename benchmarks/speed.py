"""The time of a round of every method, in gradient units measured in the same run.

``python -m benchmarks.speed`` prints, for each workload and method: gradients and products of a
round, beside their theoretical count; the seconds of a round; the same in units of one lower
gradient; and the units that the counts predict (lower steps + upper gradient + response, a product
taken as what it measured on this workload). Units and rounds are timed in turns, so that a noisy
machine slows both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.rounds import ROUNDS, Count
from benchmarks.versions import version_of
from benchmarks.workloads import WORKLOADS, Workload
from blo import Exact


def seconds(call: Callable[[], object], device: str) -> float:
    """Return the seconds of one call, the device's queue drained."""
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def product_ratio(workload: Workload, device: str, repeats: int) -> float:
    """Return the cost of one Hessian product on a kept graph in gradients, median over repeats."""
    context = workload.context()
    products = Exact().at(context.lower, context.after)
    v = tuple(torch.randn_like(t) for t in context.after.lower)
    products.hvp(v)
    pairs = [
        (seconds(lambda: products.hvp(v), device), seconds(workload.gradient, device))
        for _ in range(repeats)
    ]
    return statistics.median(p / g for p, g in pairs)


def measure(make: Callable[..., Workload], count: Count, device: str, repeats: int) -> dict:
    """Return counts and times of a round of one method."""
    workload = make(count.method, count.steps, device)
    engine = workload.engine
    engine.run(2)
    workload.gradient()
    before = (engine.num_gradients, engine.num_products)
    rounds, units = [], []
    for _ in range(repeats):
        units.append(seconds(workload.gradient, device))
        rounds.append(seconds(lambda: engine.run(1), device))
    return {
        "num_gradients": (engine.num_gradients - before[0]) / repeats,
        "num_hvps": (engine.num_products - before[1]) / repeats,
        "seconds": statistics.median(rounds),
        "seconds_per_gradient_unit": statistics.median(units),
        "units": statistics.median(r / u for r, u in zip(rounds, units, strict=True)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--methods", nargs="*", default=list(ROUNDS), choices=list(ROUNDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="append a line a measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.workloads:
        repeats = {"200-weight MLP": 200, "Meta-Weight-Net": 30}.get(name, 5)
        repeats = max(3, repeats // 5) if options.quick else repeats
        first = WORKLOADS[name](ROUNDS["t1t2"].method, 1, options.device)
        first.engine.run(1)
        ratio = product_ratio(first, options.device, repeats)
        print(f"\n{name}: a product costs {ratio:.2f} gradients, {repeats} repeats")
        print(
            f"{'method':>18} {'gradients':>14} {'products':>14} {'ms a round':>11} {'units':>7} "
            f"{'predicted':>9} {'ratio':>6}"
        )
        for method in options.methods:
            count = ROUNDS[method]
            found = measure(WORKLOADS[name], count, options.device, repeats)
            theory = (count.steps + 1 + count.num_gradients, count.num_products)
            predicted = theory[0] + ratio * theory[1]
            print(
                f"{method:>18} {found['num_gradients']:>8.3g} of {theory[0]:<2} "
                f"{found['num_hvps']:>8.3g} of {theory[1]:<2} {1e3 * found['seconds']:>11.2f} "
                f"{found['units']:>7.2f} {predicted:>9.2f} {found['units'] / predicted:>6.2f}",
                flush=True,
            )
            if options.json:
                line = {
                    "library": "blo-torch",
                    "version": version_of("blo-torch"),
                    "method": method,
                    "problem": name,
                    "error": None,
                    "peak_memory_mb": None,
                    "predicted_units": predicted,
                    **found,
                }
                with options.json.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
