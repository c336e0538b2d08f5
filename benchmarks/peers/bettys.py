"""Betty's own problems: the logistic regression of its tests, Meta-Weight-Net of its examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from benchmarks.betty_engine import Level, betty_rounds
from benchmarks.peers.library import Round
from benchmarks.peers.modules import Layers, Linear
from blo import Engine, Method, Problem, ProblemGraph

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


def regression(seed: int) -> Example:
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
        measured=lambda: float(loss(held)),
        from_zero=True,
        least=1e-8,
        exact=exact,
    )


def weighting(seed: int) -> Example:
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
        measured=lambda: float(cross_entropy(net(x[test]), y[test])),
    )


def with_blo(example: Example, method: Method) -> Round:
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


def with_betty(example: Example, **settings: Any) -> Round:
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


def last_error(example: Example, once: Round) -> float:
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
