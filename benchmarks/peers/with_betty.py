"""Betty 0.2.1."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.library import Absent, Claim, Entry, Library, Round, Train, register
from benchmarks.peers.task import Task


def find() -> None:
    """Import Betty."""
    import betty.engine  # noqa: F401


def train(kind: str, **settings: Any) -> Train:
    """Return the rounds of a method, by Betty's name for it."""

    def begin(task: Task) -> Round:
        if task.from_upper:
            raise Absent("its differentiable optimizers (IterativeProblem) fail in 0.2.1")
        from betty.configs import Config, EngineConfig
        from betty.engine import Engine
        from betty.problems import ImplicitProblem

        class Level(ImplicitProblem):
            """One level: the parameters that its optimizer holds, as Betty rebuilds optimizers."""

            own: list[Tensor]

            def training_step(self, batch: Any) -> Tensor:
                return task.f() if self.name == "upper" else task.g()

            def trainable_parameters(self) -> list[Tensor]:
                return self.own

            def parameters(self) -> list[Tensor]:
                return self.own

        class Quiet(Engine):
            """An engine that does not validate."""

            def validation(self) -> None:
                """Nothing."""

        def level(name: str, own: list[Any], optimizer: torch.optim.Optimizer, config: Any) -> Any:
            module = task.upper if name == "upper" else task.lower
            Level.own = own
            batches = [(torch.zeros(1),)]
            made = Level(name, config, module, optimizer, train_data_loader=batches)
            made.own = own
            return made

        logging.disable(logging.INFO)
        try:
            above = Config(retain_graph=True)
            upper = level("upper", task.x, task.upper_optimizer(), above)
            scaled = {k: task.lr if v is None else v for k, v in settings.items()}
            below = Config(type=kind, unroll_steps=task.steps, **scaled)
            lower = level("lower", task.y, task.lower_optimizer(), below)
            engine = Quiet(
                problems=[upper, lower],
                config=EngineConfig(train_iters=1, valid_step=10**9, strategy="cpu"),
                dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
            )
        finally:
            logging.disable(logging.NOTSET)
        engine.train()

        def once() -> None:
            for _ in range(task.steps):
                engine.global_step += 1
                engine.train_step()

        return once

    return begin


# Its DARTS and SAMA take the response at the weights after the step; the step of DARTS is 1, not
# the learning rate.
BETTY = register(
    Library(
        "Betty",
        "betty-ml",
        find,
        {
            "darts": Entry(train("darts"), Claim("identity")),
            "sama": Entry(train("sama")),
            "neumann(10)": Entry(train("neumann", neumann_iterations=10, neumann_alpha=None)),
            "cg(10)": Entry(train("cg", cg_iterations=10)),
            "cg(20)": Entry(train("cg", cg_iterations=20)),
        },
    )
)
