"""Betty's engine (0.2.1) on two levels and more, as all benchmarks drive it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Level:
    """One level.

    Args:
        module: that holds the parameters.
        optimizer: rebuilt by Betty for the parameters `own`.
        loss: of a batch.
        batches: what Betty draws from.
        own: the parameters of this level; None for all of the module's.
        begin: called before the lower steps of a round.
        end: called after each step of the level.
        settings: of Betty's `Config`: the method by which this level responds, and its options.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any], Tensor]
    batches: Any
    own: Sequence[Tensor] | None = None
    begin: Callable[[], None] = lambda: None
    end: Callable[[], None] = lambda: None
    settings: Mapping[str, Any] = field(default_factory=dict)


def betty_rounds(
    upper: Level, lower: Level, *, steps: int = 1, device: str = "cpu", **settings: Any
) -> Callable[[], None]:
    """Return a function that takes `steps` lower steps and one above.

    Args:
        upper: the level above.
        lower: the level below.
        steps: lower steps a round.
        device: its type.
        settings: of Betty's `Config` for the lower level, its method among them.

    Raises:
        ImportError: Betty is not installed.
    """
    levels = {
        "upper": replace(upper, settings={"retain_graph": True}),
        "lower": replace(lower, settings={"unroll_steps": steps, **settings}),
    }
    step = betty_steps(levels, {"upper": ["lower"]}, {"lower": ["upper"]}, device=device)

    def once() -> None:
        for _ in range(steps):
            step()

    return once


def betty_steps(
    levels: Mapping[str, Level],
    read_by: Mapping[str, Sequence[str]],
    awaited_by: Mapping[str, Sequence[str]],
    *,
    device: str = "cpu",
) -> Callable[[], None]:
    """Return a function that takes one step of the lowest levels, and those above as they are due.

    Args:
        levels: by name.
        read_by: whose losses read the parameters of a level above them (Betty's "u2l").
        awaited_by: whose losses read the solution of a level, and step after it (its "l2u").
        device: its type.

    Raises:
        ImportError: Betty is not installed.
    """
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    class Problem(ImplicitProblem):
        """A level as Betty wants it: its hooks are found by their names."""

        def __init__(self, name: str, level: Level) -> None:
            self.level = level
            config = Config(**level.settings)
            super().__init__(
                name, config, level.module, level.optimizer, train_data_loader=level.batches
            )

        def training_step(self, batch: Any) -> Tensor:
            return self.level.loss(batch)

        def trainable_parameters(self) -> list[Tensor]:
            own = self.level.own
            return list(self.level.module.parameters()) if own is None else list(own)

        def parameters(self) -> list[Tensor]:
            return self.trainable_parameters()

        def on_inner_loop_start(self) -> None:
            self.level.begin()

        def param_callback(self) -> None:
            self.level.end()

    class Quiet(Engine):
        """An engine that does not validate."""

        def validation(self) -> None:
            """Nothing."""

    logging.disable(logging.INFO)
    try:
        problems = {name: Problem(name, level) for name, level in levels.items()}

        def edges(named: Mapping[str, Sequence[str]]) -> dict[Problem, list[Problem]]:
            return {problems[k]: [problems[name] for name in v] for k, v in named.items()}

        strategy = "gpu" if device == "cuda" else "cpu"  # else it would choose a device by itself
        engine = Quiet(
            problems=list(problems.values()),
            config=EngineConfig(train_iters=1, valid_step=10**9, strategy=strategy),
            dependencies={"u2l": edges(read_by), "l2u": edges(awaited_by)},
        )
    finally:
        logging.disable(logging.NOTSET)
    engine.train()

    def step() -> None:
        engine.global_step += 1
        engine.train_step()

    return step
