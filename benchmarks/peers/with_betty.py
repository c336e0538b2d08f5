"""Betty 0.2.1."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import torch

from benchmarks.betty_engine import Level, betty_rounds, betty_steps
from benchmarks.peers.chains import Chain
from benchmarks.peers.library import Absent, Claim, Entry, Library, Round, Train, register
from benchmarks.peers.task import Task


def find() -> None:
    """Import Betty, whose code warns where it is compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import betty.engine
        import betty.problems  # noqa: F401


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


def train_chain(kind: str, **settings: Any) -> Train:
    """Return the rounds of a method on all levels of a chain."""

    def begin(chain: Chain) -> Round:
        own = {k: chain.lr if v is None else v for k, v in settings.items()}
        names = [f"level_{k}" for k in range(len(chain.modules))]
        levels = {
            name: Level(
                chain.modules[k],
                chain.optimizer_of(k),
                lambda _, k=k: chain.loss(k),
                [(torch.zeros(1),)],
                settings={"type": kind, **own} if k else {"retain_graph": True},
            )
            for k, name in enumerate(names)
        }
        # The level above enters each loss, so what is known of it below goes up from level 1 by
        # way of all others: the paths from there back to the top are those of the hypergradient.
        top, first, *_ = names
        awaited_by = {name: [following, top] for name, following in pairwise(names[1:])}
        return betty_steps(levels, {top: [first]}, awaited_by | {names[-1]: [top]})

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
        {
            "darts": Entry(train_chain("darts"), Claim("identity")),
            "neumann(3)": Entry(train_chain("neumann", neumann_iterations=3, neumann_alpha=None)),
            "cg(3)": Entry(train_chain("cg", cg_iterations=3)),
        },
    )
)
