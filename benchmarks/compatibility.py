"""Which method works with which feature of torch, found by trying.

``python -m benchmarks.compatibility`` trains a small transformer for two rounds with every method
and feature and compares the hypergradients with those of the same run without the feature. A cell
says "yes" where they agree (to 1e-6 in float64, to 20 % under bfloat16 autocast), "no" where torch
or the method refuses with an error, and "differs" where the numbers are others. ``--markdown FILE``
writes the table between the file's compatibility marks.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import blo
from benchmarks.accuracy import write_between
from benchmarks.nested import GRAPHS, nested_gradient
from benchmarks.rounds import ROUNDS, Count
from blo import Engine, Problem, ProblemGraph

MORE: dict[str, Count] = {
    "unrolled, checkpointed": Count(blo.unrolled(checkpoint=True), 0, 0, steps=4),
    "forward_mode": Count(blo.forward_mode(), 0, 0, steps=2),
    "bicgstab(5)": Count(blo.bicgstab(5, damping=1.0), 0, 0),
    "normal_cg(6)": Count(blo.normal_cg(6, damping=1.0), 0, 0),
    "pbgd(5)": Count(blo.pbgd(10.0, num_steps=5, lr=0.1), 0, 0),
    "evolution": Count(blo.evolution(2), 0, 0),
}


@dataclass(frozen=True)
class Feature:
    """A way to run the same training."""

    checkpointing: str = "none"
    compiled: bool = False
    fused: bool = False
    accumulate: int = 1
    dropout: float = 0.0
    precision: torch.dtype | None = None
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-6


FEATURES: dict[str, tuple[Feature, Feature]] = {
    "fused attention": (Feature(fused=True), Feature()),
    "checkpointing, non-reentrant": (
        Feature(checkpointing="non-reentrant", dropout=0.1),
        Feature(dropout=0.1),
    ),
    "checkpointing, reentrant": (Feature(checkpointing="reentrant"), Feature()),
    "torch.compile": (Feature(compiled=True), Feature()),
    "bfloat16 autocast": (
        Feature(precision=torch.bfloat16, dtype=torch.float32, tolerance=0.2),
        Feature(dtype=torch.float32),
    ),
    "accumulation": (Feature(accumulate=2), Feature(accumulate=2, fused=True)),
}


class Block(nn.Module):
    """A transformer block of 16 dimensions with adapter-like lower weights."""

    def __init__(self, feature: Feature) -> None:
        super().__init__()
        self.feature = feature
        self.query, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)

    def inside(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x).unflatten(-1, (3, 2, 8)).movedim(-3, 0).transpose(2, 3)
        if self.feature.fused:
            a = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            a = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        h = x + nn.functional.dropout(self.out(a.transpose(1, 2).flatten(2)), self.feature.dropout)
        return torch.tanh(self.norm(h))

    def forward(self, x: Tensor) -> Tensor:
        if self.feature.checkpointing == "none":
            return self.inside(x)
        reentrant = self.feature.checkpointing == "reentrant"
        return checkpoint(self.inside, x, use_reentrant=reentrant)


def hypergradients(count: Count, feature: Feature) -> Tensor:
    """Return what the upper optimizer receives in two rounds."""
    torch.manual_seed(0)
    net = nn.Sequential(Block(feature), Block(feature)).to(feature.dtype)
    head = nn.Linear(16, 3).to(feature.dtype)
    gains = nn.ParameterDict({"value": torch.ones(16, dtype=feature.dtype)})
    batches = [(torch.randn(8, 5, 16).to(feature.dtype), torch.randint(3, (8,))) for _ in range(4)]
    forward = torch.compile(net, backend="aot_eager") if feature.compiled else net

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        features = forward(batch[0] * gains["value"])
        return nn.functional.cross_entropy(head(features.mean(1)), batch[1])

    modules = [net, head, gains]
    optimizer = torch.optim.SGD(gains.parameters(), lr=0.1)
    seen: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(gains["value"].grad.double()))
    lower = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.05)
    graph = ProblemGraph(
        [
            Problem("upper", loss, modules, optimizer, batches[:2], accumulate=feature.accumulate),
            Problem(
                "lower",
                loss,
                modules,
                lower,
                batches[2:],
                method=count.method,
                steps=count.steps,
                accumulate=feature.accumulate,
            ),
        ]
    )
    torch.manual_seed(1)
    Engine(graph, precision=feature.precision).run(2)
    return torch.cat(seen)


def tried(count: Count, feature: Feature, reference: Feature) -> str:
    """Return whether the method gives the same numbers with the feature."""
    try:
        value = hypergradients(count, feature)
    except Exception as error:
        if not isinstance(error, (RuntimeError, TypeError, ValueError, AssertionError)):
            raise
        return "no"
    same = hypergradients(count, reference)
    return "yes" if float((value - same).norm() / same.norm()) < feature.tolerance else "differs"


def below_a_middle_problem(count: Count) -> str:
    """Return whether a middle problem can see a solution below that responds by the method."""
    try:
        nested_gradient(GRAPHS["3, middle reads below"], count.method, lr=0.01, steps=count.steps)
    except (RuntimeError, TypeError, ValueError):
        return "no"
    return "yes"


def main() -> None:
    """Try everything and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markdown", type=Path, help="write the table into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    heads = ["method", *FEATURES, "below a middle problem that reads it"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, count in {**ROUNDS, **MORE}.items():
        if name == "alternating":
            continue
        cells = [tried(count, *pair) for pair in FEATURES.values()]
        cells.append(below_a_middle_problem(count))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    if options.markdown:
        write_between(options.markdown, "compatibility", "\n".join(lines))


if __name__ == "__main__":
    main()
