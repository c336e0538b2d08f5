"""This library: an engine on the modules, and `hypergradient` on plain functions."""

from __future__ import annotations

from collections.abc import Callable

import torch

import blo
from benchmarks.peers.chains import Chain
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


def levels(method: Method) -> Train:
    """Return the rounds of an engine on a chain, all levels with the same method."""

    def train(chain: Chain) -> Round:
        rounds = chain_engine(chain, method).rounds(10**9)
        return lambda: next(rounds)

    return train


def chain_engine(chain: Chain, method: Method) -> Engine:
    """Return an engine on a chain, all levels with the same method."""
    problems = [
        Problem(
            f"level {k}",
            lambda _, k=k: chain.loss(k),
            list(chain.modules),
            chain.optimizer_of(k),
            [None],
            **({"method": method} if k else {}),
        )
        for k in range(len(chain.modules))
    ]
    return Engine(ProblemGraph(problems))


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
    "cg(20)": blo.cg(20, rtol=0.0),
    "unrolled": blo.unrolled(),
    "unrolled, checkpoints": blo.unrolled(checkpoint=True),
}


OF_CHAINS = {
    "t1t2": blo.t1t2(),
    "darts": blo.darts(),
    "cg(3)": blo.cg(3, rtol=0.0),
}


def series(number: int, rounds: Callable[[Method], Train] = engine) -> Train:
    """Return rounds with a Neumann series whose scale is the lower learning rate."""
    return lambda task: rounds(blo.neumann(number, scale=task.lr, rtol=0.0))(task)


OURS = register(
    Library(
        "blo",
        "blo-torch",
        lambda: None,
        {
            **{name: Entry(engine(method)) for name, method in METHODS.items()},
            "neumann(10)": Entry(series(10)),
        },
        {
            **{name: Entry(levels(method)) for name, method in OF_CHAINS.items()},
            "neumann(3)": Entry(series(3, levels)),
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
