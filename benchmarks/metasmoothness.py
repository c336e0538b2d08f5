"""Metasmoothness beside what a hypergradient is worth: whether the one foretells the other.

``python -m benchmarks.metasmoothness`` trains networks on digits for so many steps, with a weight
for each example above. For random directions `v` of the weights it compares the change of the loss
above that the exact (unrolled) hypergradient foretells, ``h <g, v>``, with what training again
gives, ``f(x + h v) - f(x)``, and takes `metasmoothness` along the same directions. A line a setting
goes to ``benchmarks/results/metasmoothness.jsonl``; ``--markdown FILE`` writes the table between
the marks "metasmoothness" of a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results/metasmoothness.jsonl")
SIZES, ROWS, STEP = (64, 32, 32, 10), 200, 0.3
HORIZONS = (1, 10, 100, 400)
RATES = (0.1, 1.0, 4.0)


@dataclass(frozen=True)
class Line:
    """One training; means over directions, with their standard deviation."""

    activation: str
    learning_rate: float
    steps: int
    agreement: float
    agreement_sd: float
    curvature: float
    prediction_error: float
    same_sign: float
    num_directions: int
    loss: float


def lines(activation: str, rate: float, steps: int, num_directions: int) -> Line:
    """Return what was found of one training."""
    import torch
    from torch.nn.functional import cross_entropy

    from blo.check import metasmoothness

    (inputs, labels), (more, others) = digits()
    start = network()
    act: Callable[[Any], Any] = {"relu": torch.relu, "tanh": torch.tanh}[activation]

    def scores(y: Any, rows: Any) -> Any:
        for w, b in zip(y[:-2:2], y[1:-2:2], strict=True):
            rows = act(rows @ w + b)
        return rows @ y[-2] + y[-1]

    def train(x: Any) -> Any:
        y = start
        for _ in range(steps):
            y = [t.requires_grad_() if not t.requires_grad else t for t in y]
            each = cross_entropy(scores(y, inputs), labels, reduction="none")
            g = torch.autograd.grad(
                (x[0].sigmoid() * each).mean(), y, create_graph=x[0].requires_grad
            )
            y = [t - rate * d for t, d in zip(y, g, strict=True)]
            y = y if x[0].requires_grad else [t.detach() for t in y]
        return y

    def loss(x: Any, y: Any) -> Any:
        return cross_entropy(scores(y, more), others)

    x = torch.zeros(ROWS, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    value = loss(None, train((leaf,)))
    (gradient,) = torch.autograd.grad(value, leaf)
    smooth, signs, foretold, found = [], [], [], []
    for seed in range(num_directions):
        v = torch.randn(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        smooth.append(metasmoothness(train, (x,), direction=(v,), step=STEP, loss=loss))
        foretold.append(STEP * float(gradient @ v))
        found.append(float(loss(None, train((x + STEP * v,))) - value.detach()))
        signs.append(foretold[-1] * found[-1] > 0)
    apart = [a - b for a, b in zip(foretold, found, strict=True)]
    errors = sum(a * a for a in apart) ** 0.5 / sum(b * b for b in found) ** 0.5
    agreements = [s.agreement for s in smooth]
    return Line(
        activation,
        rate,
        steps,
        statistics.mean(agreements),
        statistics.stdev(agreements),
        statistics.mean(s.curvature or 0.0 for s in smooth),
        errors,
        statistics.mean(signs),
        num_directions,
        float(value.detach()),
    )


def digits() -> Any:
    """Return two batches of images and labels; 40 % of the labels of the first are drawn anew."""
    import torch
    from sklearn.datasets import load_digits

    generator = torch.Generator().manual_seed(0)
    data, target = load_digits(return_X_y=True)
    order = torch.randperm(len(data), generator=generator)[: 2 * ROWS]
    inputs, labels = torch.tensor(data)[order] / 16, torch.tensor(target)[order]
    anew = torch.randint(10, (ROWS,), generator=generator)
    noisy = torch.rand(ROWS, generator=generator) < 0.4
    first = torch.where(noisy, anew, labels[:ROWS])
    return (inputs[:ROWS], first), (inputs[ROWS:], labels[ROWS:])


def network() -> list[Any]:
    """Return weights of variance two over the inputs, and zero biases."""
    import torch

    generator = torch.Generator().manual_seed(1)
    found = []
    for i, o in pairwise(SIZES):
        w = torch.randn(i, o, generator=generator, dtype=torch.float64) * (2 / i) ** 0.5
        found += [w, torch.zeros(o, dtype=torch.float64)]
    return found


def table(found: list[Line]) -> str:
    """Return a Markdown table, a row a training."""
    rows = [
        "| activation | rate | steps | metasmoothness | error of the forecast | right sign |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| {x.activation} | {x.learning_rate:g} | {x.steps} | {x.agreement:.2f} ± "
        f"{x.agreement_sd:.2f} | {x.prediction_error:.1e} | {x.same_sign:.0%} |"
        for x in found
    ]
    return "\n".join(rows)


def measured(num_directions: int, quick: bool) -> Iterator[Line]:
    """Yield a line a setting."""
    for activation in ("tanh", "relu"):
        for rate in RATES[:1] if quick else RATES:
            for steps in HORIZONS[:2] if quick else HORIZONS:
                yield lines(activation, rate, steps, num_directions)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metasmoothness", description=__doc__
    )
    parser.add_argument("--directions", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="one rate, short horizons")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines; written anew")
    parser.add_argument("--markdown", type=Path, help="write the table into this file")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = []
    with options.out.open("w", encoding="utf-8") as file:
        for line in measured(options.directions, options.quick):
            found.append(line)
            print(table([line]).splitlines()[-1], flush=True)
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
    if options.markdown:
        from benchmarks.accuracy import write_between

        write_between(options.markdown, "metasmoothness", table(found))


if __name__ == "__main__":
    main()
