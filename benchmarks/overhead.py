"""What the engine adds to loops written by hand, on problems so small that nothing else counts.

``python -m benchmarks.overhead`` runs blocks of rounds of a hand-written loop and of an engine in
turns: plain steps of one problem, and rounds of `darts`, `t1t2` and ``cg(5)`` on a network of 286
weights. It prints microseconds of process time a round, medians over the blocks, with the median of
the ratios of neighbouring blocks, and writes a line each.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn

import blo
from benchmarks.peers import by_hand, ours, tasks
from benchmarks.peers.library import Round
from benchmarks.peers.measuring import timed
from benchmarks.peers.task import Task
from benchmarks.versions import version_of
from blo import Engine, Problem, ProblemGraph

RESULTS = Path("benchmarks/results/overhead.jsonl")


def network() -> tuple[nn.Module, torch.optim.Optimizer, list[tuple[Tensor, Tensor]]]:
    """A network of 121 weights with SGD, and four batches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1))
    batches = [(torch.randn(16, 10), torch.randn(16, 1)) for _ in range(4)]
    return net, torch.optim.SGD(net.parameters(), lr=0.1), batches


def steps_by_hand() -> Round:
    """Return the step of a plain loop."""
    net, optimizer, batches = network()
    parameters, stream = list(net.parameters()), cycle(batches)

    def once() -> None:
        x, y = next(stream)
        loss = (net(x) - y).square().mean()
        by_hand.step(optimizer, parameters, list(torch.autograd.grad(loss, parameters)))
        float(loss.detach())

    return once


def steps_by_engine() -> Round:
    """Return the round of an engine with one problem."""
    net, optimizer, batches = network()

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (net(batch[0]) - batch[1]).square().mean()

    rounds = Engine(ProblemGraph([Problem("train", loss, net, optimizer, batches)])).rounds(10**9)
    return lambda: next(rounds)


def weighting() -> Task:
    """Return Meta-Weight-Net on a network of 286 weights, strongly convex below."""
    return tasks.meta_weight_net(torch.float32, layers=(12, 12, 10), rows=32, decay=1.0)


def rounds_of(method: blo.Method, response: Callable[..., list[Tensor]]) -> Mapping[str, Round]:
    """Return the rounds of a method by hand and by an engine."""
    loop = by_hand.Loop(weighting(), "alternating")
    loop.response, loop.keeps = response, True
    return {"by hand": loop.round, "blo": ours.engine(method)(weighting())}


WORK: Mapping[str, Callable[[], Mapping[str, Round]]] = {
    "plain step": lambda: {"by hand": steps_by_hand(), "blo": steps_by_engine()},
    "darts": partial(rounds_of, blo.darts(), by_hand.darts),
    "t1t2": partial(rounds_of, blo.t1t2(), by_hand.t1t2),
    "cg(5)": partial(rounds_of, blo.cg(5, rtol=0.0), by_hand.cg(5)),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a block, about")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines; written anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with options.out.open("w", encoding="utf-8") as file:
        for name, make in WORK.items():
            times = timed(make(), repeats=options.blocks, seconds=options.seconds, warm=6)
            hand, engine = (1e6 * times[key].cpu_seconds for key in ("by hand", "blo"))
            ratio = times["blo"].ratios["by hand"]
            print(
                f"{name:>12}: by hand {hand:.0f} us a round, engine {engine:.0f} us, "
                f"added {engine - hand:.0f} us, ratio {ratio:.2f}",
                flush=True,
            )
            line = {
                "library": "blo-torch",
                "version": version_of("blo-torch"),
                "work": name,
                "cpu_microseconds": round(engine, 1),
                "cpu_microseconds_by_hand": round(hand, 1),
                "ratio": round(ratio, 3),
                "blocks": options.blocks,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "python": platform.python_version(),
            }
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
