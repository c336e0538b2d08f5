"""The error of finite-difference mixed products against exact ones.

``python -m benchmarks.radius`` prints the table, by radius, type and problem, that
`blo.derivatives.differences.DEFAULT_RADIUS` was read from. The reference is the exact
product in float64 at the same weights, batch and masks.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from blo import Exact, FiniteDifference, Point
from blo.derivatives.lower import LowerObjective
from blo.derivatives.random_state import RandomState
from blo.evaluation import ModuleObjective, ParameterSpace
from blo.methods.context import Context

RADII = [3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7]
TYPES = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "bfloat16 autocast": (torch.float32, torch.bfloat16),
    "float16 autocast": (torch.float32, torch.float16),
}


class Upper(nn.Module):
    """A vector of upper variables."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size))


def multilayer_perceptron() -> tuple[nn.Module, Upper, object, tuple[Tensor, ...]]:
    """A 64-128-128-10 network with GELU; one weight an example above."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10)
    )
    upper, x, y = Upper(50), torch.randn(50, 64), torch.randint(10, (50,))

    def loss(_: object) -> Tensor:
        each = nn.functional.cross_entropy(net(x.to(net[0].weight.dtype)), y, reduction="none")
        return (upper.value.sigmoid() * each).mean()

    return net, upper, loss, tuple(net.parameters())


def adapted_transformer() -> tuple[nn.Module, Upper, object, tuple[Tensor, ...]]:
    """Four 256-wide transformer layers with dropout; low-rank factors below, their gains above."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        256, 4, 512, dropout=0.1, activation="gelu", batch_first=True
    )
    net = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).requires_grad_(False)
    net.factors = nn.ParameterList(
        [nn.Parameter(torch.randn(8, 256) / 16) for _ in range(4)]
        + [nn.Parameter(torch.randn(256, 8) / 30) for _ in range(4)]
    )
    net.head = nn.Linear(256, 3)
    upper, x, y = Upper(32), torch.randn(8, 16, 256), torch.randint(3, (8,))

    def loss(_: object) -> Tensor:
        h = x.to(net.factors[0].dtype)
        for i, block in enumerate(net.layers):
            gains = (1 + upper.value[8 * i : 8 * i + 8]).to(h.dtype)
            h = block(h) + ((h @ net.factors[i].T) * gains) @ net.factors[4 + i].T
        return nn.functional.cross_entropy(net.head(h.mean(1)), y)

    return net, upper, loss, (*net.factors, *net.head.parameters())


PROBLEMS = {"MLP": multilayer_perceptron, "transformer": adapted_transformer}


def context_of(problem: str, dtype: torch.dtype, precision: torch.dtype | None) -> Context:
    """Return the lower problem in the given types; the same weights and masks in all of them."""
    net, upper, loss, lower = PROBLEMS[problem]()
    for module in (net, upper):
        module.to(dtype)
    torch.manual_seed(1)
    objective = ModuleObjective(
        ParameterSpace([net, upper]),
        (upper.value,),
        lower,
        loss,
        None,
        RandomState.capture(),
        precision,
        "lower",
    )
    point = Point((upper.value.detach(),), tuple(p.detach() for p in lower))
    return Context(LowerObjective((objective,)), point, point)


def direction(context: Context) -> tuple[Tensor, ...]:
    """Return a fixed random direction in the shapes of the lower parameters."""
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(t.shape, generator=generator).to(t.dtype) for t in context.after.lower)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    for problem in PROBLEMS:
        # Dropout draws the same masks in double precision: Bernoulli draws ignore the type.
        exact = context_of(problem, torch.float64, None)
        reference = Exact().at(exact, exact.after).mixed(direction(exact))[0]
        print(f"\n{problem}: relative error of the mixed product")
        print("radius".rjust(27), *(f"{r:8.0e}" for r in RADII))
        for name, (dtype, precision) in TYPES.items():
            context = context_of(problem, dtype, precision)
            own = Exact().at(context.lower, context.after).mixed(direction(context))[0].double()
            for one_sided in (False, True):
                errors = []
                for radius in RADII:
                    rule = FiniteDifference(radius, one_sided)
                    value = (
                        rule.at(context.lower, context.after).mixed(direction(context))[0].double()
                    )
                    errors.append(float((value - reference).norm() / reference.norm()))
                side = "one-sided" if one_sided else "central"
                print(f"{name:>17} {side:>9}", *(f"{e:8.1e}" for e in errors))
            error = float((own - reference).norm() / reference.norm())
            print(f"{name:>17} {'exact':>9} {error:8.1e}")


if __name__ == "__main__":
    main()
