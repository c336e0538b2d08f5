"""TorchOpt 0.7.3: its meta-optimizers for unrolled steps, ``custom_root`` for implicit
differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.library import Absent, Entry, Library, Round, Train, register
from benchmarks.peers.task import Task


def find() -> None:
    """Import TorchOpt."""
    import torchopt  # noqa: F401


def unrolled(task: Task) -> Round:
    """Return rounds that differentiate the lower steps."""
    import torchopt

    if task.is_shared:
        raise Absent("its meta-optimizers take all parameters of a module")
    above = task.upper_optimizer()
    net = task.upper if task.from_upper else task.lower
    kind = {"SGD": torchopt.MetaSGD, "Adam": torchopt.MetaAdam}[task.optimizer]
    optimizer = kind(net, lr=task.lr)

    def once() -> None:
        start = torchopt.extract_state_dict(net, by="reference") if task.from_upper else None
        fresh = torchopt.extract_state_dict(optimizer, by="reference") if task.from_upper else None
        for _ in range(task.steps):
            loss = task.lower_loss(task.upper, net)
            loss.item()
            optimizer.step(loss)
        loss = task.upper_loss(task.upper, net)
        loss.item()
        for p, g in zip(task.x, torch.autograd.grad(loss, task.x), strict=True):
            p.grad = g
        if start is None:
            torchopt.stop_gradient(net)
            torchopt.stop_gradient(optimizer)
        else:
            torchopt.recover_state_dict(net, start)
            torchopt.recover_state_dict(optimizer, fresh)
        above.step()

    return once


def implicit(solver: Callable[[Task], Any]) -> Train:
    """Return rounds of plain lower steps and ``custom_root``."""

    def begin(task: Task) -> Round:
        import torchopt

        if task.is_shared:
            raise Absent("not written for one module that holds both levels")
        above, below = task.upper_optimizer(), task.lower_optimizer()

        def stationary(y: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            grad = torch.func.grad(lambda w: task.at(task.lower_loss, list(x), list(w)))
            return grad(y)

        @torchopt.diff.implicit.custom_root(stationary, argnums=1, solve=solver(task))
        def solved(y: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            for _ in range(task.steps):
                with torch.enable_grad():
                    loss = task.g()
                    grads = torch.autograd.grad(loss, task.y)
                loss.item()
                for p, g in zip(task.y, grads, strict=True):
                    p.grad = g
                below.step()
            return tuple(p.detach() for p in task.y)

        def once() -> None:
            end = solved(tuple(p.detach() for p in task.y), tuple(task.x))
            loss = task.at(task.upper_loss, task.x, list(end))
            loss.item()
            grads = torch.autograd.grad(loss, task.x, allow_unused=True)
            for p, g in zip(task.x, grads, strict=True):
                p.grad = g
            above.step()

        return once

    return begin


def conjugate_gradients(number: int) -> Callable[[Task], Any]:
    """Return its conjugate gradients."""

    def make(task: Task) -> Any:
        import torchopt

        return torchopt.linear_solve.solve_cg(maxiter=number, rtol=0.0, atol=0.0)

    return make


def series(number: int) -> Callable[[Task], Any]:
    """Return its Neumann series."""

    def make(task: Task) -> Any:
        import torchopt

        return torchopt.linear_solve.solve_inv(ns=True, maxiter=number, alpha=task.lr)

    return make


TORCHOPT = register(
    Library(
        "TorchOpt",
        "torchopt",
        find,
        {
            "unrolled": Entry(unrolled),
            "cg(10)": Entry(implicit(conjugate_gradients(10))),
            "cg(20)": Entry(implicit(conjugate_gradients(20))),
            "neumann(10)": Entry(implicit(series(10))),
        },
    )
)
