"""A round of `darts` with the lower network compiled by `torch.compile`, beside the same in eager
mode.

``python -m benchmarks.compiled`` runs rounds of both in turns and prints medians of process time
(wall time on a GPU), the median ratio of neighbours with its quartiles, the seconds that compiling
took, and how far the hypergradients of the first round are apart. Two problems: Meta-Weight-Net
on an MLP, and the same weights of examples above a small transformer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import blo
from blo import Engine, Problem, ProblemGraph


class Transformer(nn.Module):
    """A classifier of 32 tokens: embeddings, two encoder layers of width 128, the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encode(self.embed(tokens)).mean(1))
        return scores


def perceptron() -> tuple[nn.Module, Tensor]:
    """Return an MLP 64-512-512-512-10 and two batches of 100 rows."""
    sizes = [64, 512, 512, 512]
    layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(512, 10)), torch.randn(2, 100, 64)


def transformer() -> tuple[nn.Module, Tensor]:
    """Return a small transformer and two batches of 32 rows."""
    return Transformer(), torch.randint(1000, (2, 32, 32))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "Meta-Weight-Net": perceptron,
    "transformer": transformer,
}


def rounds(name: str, device: str, *, compiled: bool) -> tuple[Engine, list[Tensor]]:
    """Return an engine, and where the gradients of the first rounds above are put."""
    torch.manual_seed(0)
    net, inputs = NETWORKS[name]()
    weigh = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid())
    net, weigh, inputs = net.to(device), weigh.to(device), inputs.to(device)
    labels = torch.randint(10, inputs.shape[:2]).to(device)
    forward = torch.compile(net) if compiled else net

    def lower(_: None) -> Tensor:
        each = nn.functional.cross_entropy(forward(inputs[0]), labels[0], reduction="none")
        return (weigh(each.detach().unsqueeze(1)).squeeze(1) * each).mean()

    def upper(_: None) -> Tensor:
        return nn.functional.cross_entropy(forward(inputs[1]), labels[1])

    above = torch.optim.Adam(weigh.parameters(), 1e-3)
    below = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    seen: list[Tensor] = []
    above.register_step_pre_hook(
        lambda *_: (
            seen.append(torch.cat([p.grad.flatten() for p in weigh.parameters()]))
            if not seen
            else None
        )
    )
    modules = [net, weigh]
    graph = ProblemGraph(
        [
            Problem("upper", upper, modules, above, [None]),
            Problem("lower", lower, modules, below, [None], method=blo.darts()),
        ]
    )
    return Engine(graph), seen


def seconds(engine: Engine, device: str, num_rounds: int) -> float:
    """Return the seconds of a round: of the process, or on the wall where a GPU works."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    engine.run(num_rounds)
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - start) / num_rounds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--repeats", type=int, default=15, help="blocks of each")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in a block")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        found, grads, first = {}, {}, {}
        for compiled in (False, True):
            start = time.perf_counter()
            found[compiled], seen = rounds(name, options.device, compiled=compiled)
            found[compiled].run(3)
            first[compiled] = time.perf_counter() - start
            grads[compiled] = seen[0]
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.repeats):
            for compiled, engine in found.items():
                times[compiled].append(seconds(engine, options.device, options.rounds))
        ratios = [a / b for a, b in zip(times[True], times[False], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        apart = float((grads[True] - grads[False]).norm() / grads[False].norm())
        print(
            f"{name}: eager {1e3 * statistics.median(times[False]):.2f} ms, compiled "
            f"{1e3 * statistics.median(times[True]):.2f} ms, ratio {middle:.2f} "
            f"[{low:.2f}, {high:.2f}]; compiling {first[True] - first[False]:.0f} s; "
            f"hypergradients {apart:.1e} apart",
            flush=True,
        )


if __name__ == "__main__":
    main()
