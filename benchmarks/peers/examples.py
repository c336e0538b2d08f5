"""Betty's own problems, trained by both libraries from the same start on the same batches.

``python -m benchmarks.peers.examples`` trains the logistic regression of Betty's three tests
(darts, neumann, cg) and a Meta-Weight-Net as in its examples (the weighted loss detached), here on
scikit-learn's digits with 40 % wrong labels, and writes the loss that was reached, time, memory and
how far the last hypergradient was from that of an exact solve (regression) to
``benchmarks/results/examples.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import blo
from benchmarks.betty_engine import Level, betty_rounds
from benchmarks.peers.measuring import peak_mb
from benchmarks.peers.tasks import Layers, Linear
from benchmarks.versions import version_of
from blo import Engine, Method, Problem, ProblemGraph

RESULTS = Path("benchmarks/results/examples.jsonl")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Example:
    """A problem with the optimizers and batches that it is trained with.

    Attributes:
        problem: its name.
        upper: the module above.
        lower: the module below.
        losses: of the upper and the lower problem, on a batch.
        optimizers: of both.
        batches: of both.
        steps: lower steps a round.
        rounds: of a run.
        from_zero: the lower parameters start from zero in every round.
        least: the upper parameters stay above it.
        measured: what is reported of a trained problem.
        exact: the hypergradient of an exact solve, where there is one.
    """

    problem: str
    upper: nn.Module
    lower: nn.Module
    losses: tuple[Callable[[Batch], Tensor], Callable[[Batch], Tensor]]
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    batches: tuple[list[Batch], list[Batch]]
    steps: int
    rounds: int
    measured: Callable[[], float]
    from_zero: bool = False
    least: float | None = None
    exact: Callable[[], Tensor] | None = None


class Own(nn.Module):
    """Penalties themselves, not their logarithms, as Betty's tests have them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(size))

    def forward(self) -> Tensor:
        return self.w


def regression(seed: int, rounds: int) -> Example:
    """Logistic regression on 500 rows with 20 penalties above, 100 lower steps from zero."""
    torch.manual_seed(seed)
    truth, x = torch.randn(20), torch.randn(1000, 20)
    y = ((x @ truth + 0.1 * torch.randn(1000)) > 0).float()
    fit, held = (x[:500], y[:500]), (x[500:], y[500:])
    upper, lower = Own(20), Linear(20)
    with torch.no_grad():
        lower.w.zero_()

    def loss(batch: Batch) -> Tensor:
        return binary_cross_entropy_with_logits(lower(batch[0])[0], batch[1])

    def penalised(batch: Batch) -> Tensor:
        return loss(batch) + 0.5 * (upper() * lower.w.square()).sum()

    def exact() -> Tensor:
        w, penalties = (p.detach().double() for p in (lower.w, upper.w))
        a, (c, d) = fit[0].double(), (t.double() for t in held)
        p, q = (a @ w).sigmoid(), (c @ w).sigmoid()
        hessian = (a.T * (p * (1 - p))) @ a / len(a) + penalties.diag()
        return -w * torch.linalg.solve(hessian, c.T @ (q - d) / len(c))

    return Example(
        "logistic regression of Betty's tests",
        upper,
        lower,
        (loss, penalised),
        (
            torch.optim.SGD(upper.parameters(), lr=1.0, momentum=0.9),
            torch.optim.SGD(lower.parameters(), lr=0.1),
        ),
        ([held], [fit]),
        steps=100,
        rounds=rounds,
        measured=lambda: float(loss(held)),
        from_zero=True,
        least=1e-8,
        exact=exact,
    )


def weighting(seed: int, rounds: int) -> Example:
    """Meta-Weight-Net on digits, 40 % of the training labels drawn at random."""
    from sklearn.datasets import load_digits

    torch.manual_seed(seed)
    data, target = load_digits(return_X_y=True)
    order = torch.randperm(len(target))
    x, y = torch.tensor(data).float()[order] / 16, torch.tensor(target)[order]
    noisy = y.clone()
    wrong = torch.rand(len(y)) < 0.4
    noisy[wrong] = torch.randint(10, (int(wrong.sum()),))
    net = Layers(64, 512, 512, 10)
    weigh = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid())

    def loss(batch: Batch) -> Tensor:
        return cross_entropy(net(batch[0]), batch[1])

    def weighted(batch: Batch) -> Tensor:
        each = cross_entropy(net(batch[0]), batch[1], reduction="none").unsqueeze(1)
        return (weigh(each.detach()) * each).mean()

    def batches(start: int, number: int, labels: Tensor) -> list[Batch]:
        places = [slice(start + 100 * i, start + 100 * (i + 1)) for i in range(number)]
        return [(x[place], labels[place]) for place in places]

    test = slice(1300, None)
    return Example(
        "Meta-Weight-Net, 64-512-512-10, digits",
        weigh,
        net,
        (loss, weighted),
        (
            torch.optim.Adam(weigh.parameters(), 1e-3),
            torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        ),
        (batches(1000, 3, y), batches(0, 10, noisy)),
        steps=1,
        rounds=rounds,
        measured=lambda: float(cross_entropy(net(x[test]), y[test])),
    )


def with_blo(example: Example, method: Method) -> Callable[[], object]:
    """Return the rounds of this library."""
    modules = [example.upper, example.lower]
    names = ("upper", "lower")
    zeros = [torch.zeros_like(p) for p in example.lower.parameters()]
    upper, lower = (
        Problem(
            name,
            loss,
            modules,
            optimizer,
            batches,
            **({} if name == "upper" else {"steps": example.steps, "method": method}),
            **({"start": lambda: zeros} if name == "lower" and example.from_zero else {}),
        )
        for name, loss, optimizer, batches in zip(
            names, example.losses, example.optimizers, example.batches, strict=True
        )
    )
    if example.least is not None:

        def clamp(*_: object) -> None:
            with torch.no_grad():
                for p in example.upper.parameters():
                    p.clamp_(min=example.least)

        example.optimizers[0].register_step_post_hook(clamp)
    rounds = Engine(ProblemGraph([upper, lower])).rounds(10**9)
    return lambda: next(rounds)


def with_betty(example: Example, **settings: Any) -> Callable[[], object]:
    """Return the rounds of Betty."""

    def begin() -> None:
        if example.from_zero:
            for p in example.lower.parameters():
                p.data.zero_()

    def end() -> None:
        if example.least is not None:
            for p in example.upper.parameters():
                p.data.clamp_(min=example.least)

    modules = example.upper, example.lower
    above, below = zip(modules, example.optimizers, example.losses, example.batches, strict=True)
    return betty_rounds(
        Level(*above, end=end), Level(*below, begin=begin), steps=example.steps, **settings
    )


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


def lines(seeds: int, rounds: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Yield what each library reached, over some seeds."""
    for make, cases, number in (
        (regression, REGRESSION, rounds[0]),
        (weighting, WEIGHTING, rounds[1]),
    ):
        for method, own, betty in cases:
            starts = {
                "blo": None if own is None else lambda e, own=own: with_blo(e, own),
                "Betty": None if betty is None else lambda e, betty=betty: with_betty(e, **betty),
            }
            for library, start in starts.items():
                if start is not None:
                    yield trained(library, method, make, start, seeds, number)


def trained(
    library: str,
    method: str,
    make: Callable[[int, int], Example],
    start: Callable[[Example], Callable[[], object]],
    seeds: int,
    rounds: int,
) -> dict[str, Any]:
    """Return what a library reached: the mean over the seeds, and their spread."""
    losses, walls, cpus, errors, memory = [], [], [], [], 0.0
    problem = ""
    for seed in range(seeds):
        example = make(seed, rounds)
        problem = example.problem
        try:
            once = start(example)
        except ImportError as reason:
            return {"library": library, "method": method, "problem": problem, "status": f"{reason}"}
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            once()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        losses.append(example.measured())
        if example.exact is not None:
            errors.append(last_error(example, once))
        memory = peak_mb(once)
    return {
        "library": library,
        "version": version_of("betty-ml" if library == "Betty" else "blo-torch"),
        "method": method,
        "problem": problem,
        "setting": f"{rounds} rounds, {seeds} seeds",
        "status": "ok",
        "seconds": statistics.mean(walls),
        "cpu_seconds": statistics.mean(cpus),
        "error": statistics.mean(errors) if errors else None,
        "peak_memory_mb": memory,
        "loss": statistics.mean(losses),
        "spread": statistics.stdev(losses) if seeds > 1 else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def last_error(example: Example, once: Callable[[], object]) -> float:
    """Return the relative error of one more hypergradient."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    found: list[float] = []
    (own,) = example.upper.parameters()

    def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if optimizer.param_groups[0]["params"][0] is own and own.grad is not None:
            assert example.exact is not None
            exact = example.exact()
            found.append(float((own.grad.double() - exact).norm() / exact.norm()))

    handle = register_optimizer_step_pre_hook(look)
    once()
    handle.remove()
    return found[-1]


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
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8") as file:
        for line in lines(options.seeds, tuple(options.rounds)):
            file.write(json.dumps(line) + "\n")
            file.flush()
            if line["status"] != "ok":
                print(f"{line['library']}, {line['method']}: {line['status']}")
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
