"""Unrolling between other problems, against differences of the updates written out by hand.

Three problems: z reads y (and x), y reads x (and z, where coupled), x reads all. What a response
stands for is fixed by the engine's rounds: the steps of a block begin where the parameters and the
optimizer's state are then, as constants, and the loss above is taken after them.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from oracles import Vector, relative_error
from torch import Tensor

from blo import Engine, Exact, Problem, ProblemGraph, Sama, forward_mode, unrolled

LR_MIDDLE, LR_LOWER, MOMENTUM = 0.15, 0.2, 0.6


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


START = {"x": double(0.3, -0.5), "y": double(0.4, 0.1), "z": double(-0.2, 0.6)}
MIX = double(0.4, -0.3, 0.2, 0.5).view(2, 2)


@dataclass(frozen=True)
class Losses:
    """Smooth, not quadratic. With `coupled`, y reads z; with `skip`, z reads x too."""

    coupled: bool
    skip: bool = True
    answering: bool = True

    def x(self, x, y, z):
        return y.square().sum() + (z * x).sum() + (z**3).sum()

    def y(self, x, y, z):
        loss = y.cosh().sum() + (y**4).sum()
        loss = loss + (y - x).square().sum() + (x * y).sin().sum() if self.answering else loss
        return loss + y @ MIX @ z + (z - y).sin().sum() if self.coupled else loss

    def z(self, x, y, z):
        loss = z.cosh().sum() + z.square().sum() + (z * (y @ MIX)).sum()
        return loss + (x * z).sin().sum() if self.skip else loss


def trained(losses, middle, lower, *, middle_steps, lower_steps, rounds):
    """The gradients that x received, and what every update began with, as (name, values,
    momenta).
    """
    modules = {name: Vector(value.clone()) for name, value in START.items()}
    optimizers = {
        "x": torch.optim.SGD(modules["x"].parameters(), lr=0.1),
        "y": torch.optim.SGD(modules["y"].parameters(), LR_MIDDLE, momentum=MOMENTUM),
        "z": torch.optim.SGD(modules["z"].parameters(), LR_LOWER, momentum=MOMENTUM),
    }
    grads, log = [], []

    def before(name):
        def hook(*_):
            if name == "x":
                grads.append(modules["x"].value.grad.clone())
            momenta = {}
            for n, optimizer in optimizers.items():
                state = optimizer.state.get(modules[n].value, {})
                momenta[n] = copy.deepcopy(state.get("momentum_buffer"))
            log.append((name, {n: m.value.detach().clone() for n, m in modules.items()}, momenta))

        return hook

    for name, optimizer in optimizers.items():
        optimizer.register_step_pre_hook(before(name))

    def problem(name, **options):
        loss = getattr(losses, name)
        closure = lambda _: loss(*(modules[n].value for n in "xyz"))
        return Problem(name, closure, modules[name], optimizers[name], [None], **options)

    graph = ProblemGraph(
        [
            problem("x"),
            problem("y", method=middle, steps=middle_steps),
            problem("z", method=lower, steps=lower_steps),
        ]
    )
    Engine(graph).run(rounds)
    return grads, log


def momentum_step(value, momentum, gradient, lr):
    momentum = gradient if momentum is None else MOMENTUM * momentum + gradient
    return value - lr * momentum, momentum


def lower_end(losses, block, x, y, moving=None):
    """z after a block of its steps, in the graph of x and y; constant but in the last `moving`."""
    z, momentum = block[0][1]["z"], block[0][2]["z"]
    for i, (_, values, momenta) in enumerate(block):
        if moving is not None and i == len(block) - moving:
            z, momentum = values["z"], momenta["z"]
        z = z.detach().requires_grad_() if not z.requires_grad else z
        (g,) = torch.autograd.grad(losses.z(x, y, z), z, create_graph=True)
        z, momentum = momentum_step(z, momentum, g, LR_LOWER)
    return z


def reference(losses, updates, lower_moving=None, h=1e-3):
    """The total gradient of x in one round, given what its updates began with."""
    blocks, block = [], []
    for entry in updates:
        if entry[0] == "z":
            block.append(entry)
        elif entry[0] == "y":
            blocks.append((block, entry))
            block = []
    last = updates[-1]
    x0, y_end = last[1]["x"], last[1]["y"]
    last_block, last_middle = blocks[-1]
    shift = y_end - last_middle[1]["y"]

    def value(x):
        y, momentum = last_start["y"], momenta["y"]
        for lower_block, entry in blocks:
            y = y.detach().requires_grad_()
            z = lower_end(losses, lower_block, x, y, lower_moving)
            z = z if losses.coupled else entry[1]["z"]
            (g,) = torch.autograd.grad(losses.y(x, y, z), y)
            y, momentum = momentum_step(y.detach(), momentum, g, LR_MIDDLE)
        # The last block of z was solved at the y before its last step.
        z = lower_end(losses, last_block, x, y.detach() - shift, lower_moving)
        return losses.x(x, y, z).item()

    last_start, momenta = blocks[0][1][1], blocks[0][1][2]
    grads = []
    for e in torch.eye(2, dtype=torch.float64):
        near = value(x0 + h * e) - value(x0 - h * e)
        far = value(x0 + 2 * h * e) - value(x0 - 2 * h * e)
        grads.append((8 * near - far) / (12 * h))
    return double(*grads)


def rounds_of(log):
    updates, found = [], []
    for entry in log:
        updates.append(entry)
        if entry[0] == "x":
            found.append(updates)
            updates = []
    return found


LOWER = {
    "unrolled": (unrolled(), None),
    "unrolled, checkpoints": (unrolled(checkpoint=True), None),
    "unrolled, last step": (unrolled(1), 1),
    "forward": (forward_mode(), None),
    "sama": (Sama(Exact()), 1),
}
MIDDLE = {
    "unrolled": unrolled(),
    "unrolled, checkpoints": unrolled(checkpoint=True),
    "forward": forward_mode(),
}


@pytest.mark.parametrize("coupled", [False, True], ids=["chain", "coupled"])
@pytest.mark.parametrize("middle", MIDDLE)
@pytest.mark.parametrize("lower", LOWER)
def test_a_middle_problem_is_unrolled_whatever_is_below_it(middle, lower, coupled):
    losses = Losses(coupled)
    method, moving = LOWER[lower]
    grads, log = trained(losses, MIDDLE[middle], method, middle_steps=3, lower_steps=2, rounds=2)
    for found, updates in zip(grads, rounds_of(log), strict=True):
        assert relative_error(found, reference(losses, updates, moving)) < 1e-8


def test_a_problem_that_moved_without_responding_is_taken_where_it_was():
    # z reads y, which moved after z did and does not depend on x.
    losses = Losses(coupled=False, answering=False)
    for method in (unrolled(), unrolled(checkpoint=True), forward_mode(), Sama(Exact())):
        moving = 1 if isinstance(method, Sama) else None
        grads, log = trained(losses, unrolled(), method, middle_steps=2, lower_steps=3, rounds=2)
        for found, updates in zip(grads, rounds_of(log), strict=True):
            assert relative_error(found, reference(losses, updates, moving)) < 1e-8


@pytest.mark.parametrize("middle", MIDDLE)
def test_a_middle_problem_responds_to_what_reaches_it_from_below_alone(middle):
    losses = Losses(coupled=True, answering=False)
    grads, log = trained(
        losses, MIDDLE[middle], unrolled(), middle_steps=2, lower_steps=3, rounds=2
    )
    for found, updates in zip(grads, rounds_of(log), strict=True):
        assert relative_error(found, reference(losses, updates)) < 1e-8
