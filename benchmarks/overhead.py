"""What the engine adds to a plain training step, on a problem so small that nothing else counts.

``python -m benchmarks.overhead`` runs blocks of steps of a hand-written loop and of an engine with
one problem in turns and prints the fastest block of each, in microseconds a step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from blo import Engine, Problem, ProblemGraph


def network() -> tuple[nn.Module, torch.optim.Optimizer, list[tuple[Tensor, Tensor]]]:
    """A network of 121 weights with SGD, and four batches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1))
    batches = [(torch.randn(16, 10), torch.randn(16, 1)) for _ in range(4)]
    return net, torch.optim.SGD(net.parameters(), lr=0.1), batches


def by_hand(block: int) -> Iterator[float]:
    """Yield the seconds a step of each block of a plain loop."""
    net, optimizer, batches = network()
    parameters = list(net.parameters())
    while True:
        start = time.perf_counter()
        for i in range(block):
            x, y = batches[i % 4]
            loss = (net(x) - y).square().mean()
            grads = torch.autograd.grad(loss, parameters)
            for parameter, g in zip(parameters, grads, strict=True):
                parameter.grad = g
            optimizer.step()
            optimizer.zero_grad()
            float(loss.detach())
        yield (time.perf_counter() - start) / block


def by_engine(block: int) -> Iterator[float]:
    """Yield the seconds a round of each block of an engine."""
    net, optimizer, batches = network()

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return (net(batch[0]) - batch[1]).square().mean()

    engine = Engine(ProblemGraph([Problem("train", loss, net, optimizer, batches)]))
    while True:
        start = time.perf_counter()
        for _ in engine.rounds(block):
            pass
        yield (time.perf_counter() - start) / block


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = zip(by_hand(100), by_engine(100), strict=True)
    times = [next(pairs) for _ in range(options.blocks)]
    hand, engine = (1e6 * min(column) for column in zip(*times, strict=True))
    print(f"by hand {hand:.1f} us a step, engine {engine:.1f} us, added {engine - hand:.1f} us")


if __name__ == "__main__":
    main()
