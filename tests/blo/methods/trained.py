"""A small two-level problem trained by an engine, and the oracle: the same lower steps by a plain
loop over a torch optimizer, with differences of the upper loss that they lead to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from blo import Engine, Info, Method, Problem, ProblemGraph

MakeOptimizer = Callable[[nn.Module], Optimizer]
MakeScheduler = Callable[[Optimizer], Any]


class Upper(nn.Module):
    """Four hyperparameters: two weigh the examples, two are the logarithms of penalties."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.3, -0.5, -0.2, 0.4], dtype=torch.float64))


class Lower(nn.Module):
    """A network of two layers, three inputs and one output."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        draw = torch.randn(16, generator=generator, dtype=torch.float64)
        self.first = nn.Parameter(0.8 * draw[:12].view(4, 3))
        self.second = nn.Parameter(0.8 * draw[12:])

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(inputs @ self.first.T) @ self.second


Batch = tuple[Tensor, Tensor]
Loss = Callable[[Upper, nn.Module, Batch], Tensor]


def batches(n: int, seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(n)]
    return [(d[:, :3], d[:, 3]) for d in draws]


LOWER_BATCHES = batches(3, 11)
UPPER_BATCHES = batches(2, 12)


def weighted_loss(upper: Upper, predictions: Tensor, targets: Tensor) -> Tensor:
    weights = torch.sigmoid(upper.x[0] + upper.x[1] * targets)
    return (weights * (predictions - targets).square()).mean()


def lower_loss(upper: Upper, lower: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    first, second = (p.square().sum() for p in lower.parameters())
    penalty = upper.x[2].exp() * first + upper.x[3].exp() * second
    return weighted_loss(upper, lower(inputs), targets) + 0.05 * penalty


def upper_loss(lower: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return (lower(inputs) - targets).square().mean()


@dataclass
class Start:
    """All that a round starts from."""

    x: Tensor
    lower: nn.Module
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    random_state: Tensor
    first_batch: int


@dataclass
class Run:
    """Two-level training by an engine, and for each round: what it started from, the gradient that
    the upper optimizer received (all of it through the lower solution), how it was computed, and
    where the lower parameters ended.
    """

    method: Method
    make_optimizer: MakeOptimizer
    make_scheduler: MakeScheduler | None = None
    steps: int = 3
    loss: Loss = lower_loss
    make_lower: Callable[[], nn.Module] = Lower
    accumulate: int = 1
    starts: list[Start] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    infos: list[Info] = field(default_factory=list)
    ends: list[nn.Module] = field(default_factory=list)

    def rounds(self, n: int) -> Run:
        """Train for `n` rounds."""
        upper, lower = Upper(), self.make_lower()
        optimizer = self.make_optimizer(lower)
        scheduler = self.make_scheduler(optimizer) if self.make_scheduler else None
        top = torch.optim.SGD(upper.parameters(), lr=0.05)
        top.register_step_pre_hook(lambda *_: self.grads.append(upper.x.grad.clone()))
        problems = [
            Problem("upper", lambda b: upper_loss(lower, b), upper, top, UPPER_BATCHES),
            Problem(
                "lower",
                lambda b: self.loss(upper, lower, b),
                lower,
                optimizer,
                LOWER_BATCHES,
                steps=self.steps,
                method=self.method,
                scheduler=scheduler,
                accumulate=self.accumulate,
            ),
        ]
        engine = Engine(ProblemGraph(problems))
        for k in range(n):
            self.starts.append(
                Start(
                    upper.x.detach().clone(),
                    copy.deepcopy(lower),
                    copy.deepcopy(optimizer.state_dict()),
                    copy.deepcopy(scheduler.state_dict()) if scheduler else None,
                    torch.get_rng_state(),
                    k * self.steps * self.accumulate,
                )
            )
            record = engine.run(1)
            self.infos.append(record.responses["upper <- lower"])
            self.ends.append(copy.deepcopy(lower))
        return self

    def trained(self, k: int, x: Tensor, moving: int | None = None) -> nn.Module:
        """The lower network after round `k` by a plain loop, had the upper parameters been `x` in
        the last `moving` steps of it (in all if None).
        """
        start = self.starts[k]
        upper, lower = Upper(), copy.deepcopy(start.lower)
        optimizer = self.make_optimizer(lower)
        scheduler = self.make_scheduler(optimizer) if self.make_scheduler else None
        optimizer.load_state_dict(copy.deepcopy(start.optimizer))
        if scheduler:
            scheduler.load_state_dict(copy.deepcopy(start.scheduler))
        torch.set_rng_state(start.random_state)
        number = start.first_batch
        for t in range(self.steps):
            still = moving is not None and t < self.steps - moving
            upper.x.data = start.x if still else x
            optimizer.zero_grad()
            for _ in range(self.accumulate):
                batch = LOWER_BATCHES[number % len(LOWER_BATCHES)]
                (self.loss(upper, lower, batch) / self.accumulate).backward()
                number += 1
            optimizer.step()
            if scheduler:
                scheduler.step()
        return lower

    def differences(self, k: int, moving: int | None = None, h: float = 1e-3) -> Tensor:
        """The hypergradient of round `k`, by central differences of fourth order."""

        def value(x: Tensor) -> float:
            lower = self.trained(k, x, moving).eval()
            return upper_loss(lower, UPPER_BATCHES[k % len(UPPER_BATCHES)]).item()

        x = self.starts[k].x
        grads = []
        for e in torch.eye(len(x), dtype=x.dtype):
            near = value(x + h * e) - value(x - h * e)
            far = value(x + 2 * h * e) - value(x - 2 * h * e)
            grads.append((8 * near - far) / (12 * h))
        return torch.tensor(grads, dtype=x.dtype)


def sgd(**options: Any) -> MakeOptimizer:
    return lambda module: torch.optim.SGD(module.parameters(), **{"lr": 0.3, **options})


def adam(**options: Any) -> MakeOptimizer:
    return lambda module: torch.optim.Adam(module.parameters(), **{"lr": 0.05, **options})


def adamw(**options: Any) -> MakeOptimizer:
    return lambda module: torch.optim.AdamW(module.parameters(), **{"lr": 0.05, **options})


def clipped(make: MakeOptimizer, max_norm: float = 0.2) -> MakeOptimizer:
    """The same optimizer, with the gradient clipped by a hook of it."""

    def clip(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm)

    def make_clipped(module: nn.Module) -> Optimizer:
        optimizer = make(module)
        optimizer.register_step_pre_hook(clip)
        return optimizer

    return make_clipped


def grouped_sgd(module: nn.Module) -> Optimizer:
    """Groups that differ in every option."""
    first, second = module.parameters()
    return torch.optim.SGD(
        [
            {"params": [second], "lr": 0.4, "weight_decay": 0.1},
            {"params": [first], "lr": 0.2, "momentum": 0.9, "nesterov": True},
        ]
    )


def grouped_adam(module: nn.Module) -> Optimizer:
    """Groups that differ in every option."""
    first, second = module.parameters()
    return torch.optim.Adam(
        [
            {"params": [second], "lr": 0.1, "weight_decay": 0.1, "betas": (0.5, 0.9)},
            {"params": [first], "amsgrad": True, "weight_decay": 0.2, "eps": 1e-3},
        ],
        lr=0.02,
    )


OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": sgd(),
    "sgd-decay": sgd(weight_decay=0.1),
    "sgd-momentum": sgd(momentum=0.9),
    "sgd-momentum-dampening-decay": sgd(momentum=0.8, dampening=0.3, weight_decay=0.1),
    "sgd-nesterov-decay": sgd(momentum=0.9, nesterov=True, weight_decay=0.05),
    "sgd-groups": grouped_sgd,
    "adam": adam(),
    "adam-decay": adam(weight_decay=0.1),
    "adam-decoupled-decay": adam(weight_decay=0.1, decoupled_weight_decay=True),
    "adam-amsgrad": adam(eps=1e-2, amsgrad=True, betas=(0.5, 0.6)),
    "adam-groups": grouped_adam,
    "adamw": adamw(eps=1e-2, weight_decay=0.2),
    "adamw-amsgrad": adamw(weight_decay=0.2, amsgrad=True, betas=(0.5, 0.6)),
    "rmsprop": lambda module: torch.optim.RMSprop(
        module.parameters(), lr=0.05, weight_decay=0.1, eps=1e-2, momentum=0.5, centered=True
    ),
    "nadam": lambda module: torch.optim.NAdam(
        module.parameters(), lr=0.05, weight_decay=0.1, eps=1e-2
    ),
}
