"""This library: an engine on the modules, and `hypergradient` on plain functions."""

from __future__ import annotations

import torch

import blo
from benchmarks.peers.library import Entry, Library, Round, Train, register
from benchmarks.peers.task import Task
from blo import Engine, Method, Problem, ProblemGraph, hypergradient


def engine(method: Method) -> Train:
    """Return the rounds of an engine."""

    def train(task: Task) -> Round:
        modules = [task.lower] if task.is_shared else [task.upper, task.lower]
        above = Problem("upper", lambda _: task.f(), modules, task.upper_optimizer(), [None])
        below = Problem(
            "lower",
            lambda _: task.g(),
            modules,
            task.lower_optimizer(),
            [None],
            steps=task.steps,
            method=method,
            start=(lambda: list(task.upper.parameters())) if task.from_upper else None,
        )
        rounds = Engine(ProblemGraph([above, below])).rounds(10**9)
        return lambda: next(rounds)

    return train


def functions(method: Method) -> Train:
    """Return rounds of plain lower steps, `hypergradient` and a step above."""

    def train(task: Task) -> Round:
        above, below = task.upper_optimizer(), task.lower_optimizer()

        def once() -> None:
            for _ in range(task.steps):
                for p, g in zip(task.y, torch.autograd.grad(task.g(), task.y), strict=True):
                    p.grad = g
                below.step()
            found = hypergradient(
                lambda x, y: task.at(task.upper_loss, x, y),
                lambda x, y: task.at(task.lower_loss, x, y),
                task.x,
                task.y,
                method=method,
            )
            for p, g in zip(task.x, found.grads, strict=True):
                p.grad = g
            above.step()

        return once

    return train


METHODS = {
    "alternating": blo.alternating(),
    "t1t2": blo.t1t2(),
    "darts": blo.darts(),
    "darts, one-sided": blo.darts(one_sided=True),
    "sama": blo.sama(),
    "cg(10)": blo.cg(10, rtol=0.0),
    "cg(20)": blo.cg(20),
    "unrolled": blo.unrolled(),
    "unrolled, checkpoints": blo.unrolled(checkpoint=True),
}


def series(number: int) -> Train:
    """Return rounds with a Neumann series whose scale is the lower learning rate."""
    return lambda task: engine(blo.neumann(number, scale=task.lr, rtol=0.0))(task)


OURS = register(
    Library(
        "blo",
        "blo-torch",
        lambda: None,
        {
            **{name: Entry(engine(method)) for name, method in METHODS.items()},
            "neumann(10)": Entry(series(10)),
        },
    )
)
FUNCTIONS = register(
    Library(
        "blo.hypergradient",
        "blo-torch",
        lambda: None,
        {
            "cg(10)": Entry(functions(METHODS["cg(10)"])),
            "cg(20)": Entry(functions(METHODS["cg(20)"])),
        },
    )
)
