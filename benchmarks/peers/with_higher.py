"""higher 0.2.1."""

from __future__ import annotations

import warnings

import torch

from benchmarks.peers.library import Absent, Claim, Entry, Library, Round, register
from benchmarks.peers.task import Task


def find() -> None:
    """Import higher, whose code warns where it is compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import higher  # noqa: F401


def unrolled(task: Task) -> Round:
    """Return rounds that differentiate the lower steps."""
    import higher

    if task.is_shared:
        raise Absent("not written for one module that holds both levels")
    above = task.upper_optimizer()
    net = task.upper if task.from_upper else task.lower
    if task.from_upper:
        below: torch.optim.Optimizer = torch.optim.SGD(task.x, task.lr)
    else:
        below = task.lower_optimizer()

    def once() -> None:
        with higher.innerloop_ctx(net, below, copy_initial_weights=False) as (patched, optimizer):
            for _ in range(task.steps):
                loss = task.lower_loss(task.upper, patched)
                loss.item()
                optimizer.step(loss)
            loss = task.upper_loss(task.upper, patched)
            loss.item()
            for p, g in zip(task.x, torch.autograd.grad(loss, task.x), strict=True):
                p.grad = g
            if not task.from_upper:
                with torch.no_grad():
                    torch._foreach_copy_(task.y, list(patched.parameters()))
        above.step()

    return once


def claim(task: Task) -> Claim:
    """Return what its unrolled steps are: its Adam is the one of torch's time before 1.3."""
    return Claim("steps, earlier Adam" if task.optimizer == "Adam" else "steps")


HIGHER = register(Library("higher", "higher", find, {"unrolled": Entry(unrolled, claim)}))
