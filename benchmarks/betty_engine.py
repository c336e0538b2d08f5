"""Betty's engine (0.2.1) on two levels, as all benchmarks drive it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any], Tensor]
    batches: Any
    own: Sequence[Tensor] | None = None
    begin: Callable[[], None] = lambda: None
    end: Callable[[], None] = lambda: None


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
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    class Problem(ImplicitProblem):
        """A level as Betty wants it: its hooks are found by their names."""

        def __init__(self, name: str, level: Level, config: Any) -> None:
            self.level = level
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
        above = Problem("upper", upper, Config(retain_graph=True))
        below = Problem("lower", lower, Config(unroll_steps=steps, **settings))
        strategy = "gpu" if device == "cuda" else "cpu"  # else it would choose a device by itself
        engine = Quiet(
            problems=[above, below],
            config=EngineConfig(train_iters=1, valid_step=10**9, strategy=strategy),
            dependencies={"u2l": {above: [below]}, "l2u": {below: [above]}},
        )
    finally:
        logging.disable(logging.NOTSET)
    engine.train()

    def once() -> None:
        for _ in range(steps):
            engine.global_step += 1
            engine.train_step()

    return once
