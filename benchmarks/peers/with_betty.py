"""Betty 0.2.1."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.betty_engine import Level, betty_rounds
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
        scaled = {k: task.lr if v is None else v for k, v in settings.items()}
        batches = [(torch.zeros(1),)]
        return betty_rounds(
            Level(task.upper, task.upper_optimizer(), lambda _: task.f(), batches, task.x),
            Level(task.lower, task.lower_optimizer(), lambda _: task.g(), batches, task.y),
            steps=task.steps,
            type=kind,
            **scaled,
        )

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
