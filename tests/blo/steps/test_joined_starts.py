"""Joined steps that start where problems above say."""

import pytest
import torch
from test_joined import BY_HAND, STEPS, forbid_steps_one_by_one, sgd
from torch import nn

from blo import Engine, Problem, ProblemGraph, unrolled


class Started:
    """Two weights that start at functions of two numbers above; one is passed over below."""

    def __init__(self, make_optimizer) -> None:
        self.x = nn.ParameterList([torch.tensor([2.0, 3.0]).double()])
        self.y = nn.ParameterList([torch.zeros(1).double(), torch.zeros(1).double()])
        self.seen = []
        self.below = make_optimizer(list(self.y))
        above = torch.optim.SGD(self.x.parameters(), 0.5)
        above.register_step_pre_hook(lambda *_: self.seen.append(self.x[0].grad.clone()))
        upper = lambda _: upper_loss(*self.y)
        lower = lambda _: lower_loss(self.x[0], self.y[0])
        modules = [self.x, self.y]
        problems = [
            Problem("upper", upper, modules, above, [None]),
            Problem(
                "lower",
                lower,
                modules,
                self.below,
                [None],
                steps=STEPS,
                method=unrolled(),
                start=lambda: start(self.x[0]),
            ),
        ]
        self.engine = Engine(ProblemGraph(problems))


def start(x):
    return 2 * x[:1], x[1:].square()


def lower_loss(x, y):
    return ((y - x[1]).sin().square() * (1 + x[0].square())).sum()


def upper_loss(a, b):
    return a.pow(3).sum() + a.sum() * b.square().sum()


@pytest.mark.parametrize("name", BY_HAND)
def test_a_learned_start_is_differentiated_through_the_joined_steps(monkeypatch, name):
    forbid_steps_one_by_one(monkeypatch)
    make, step = BY_HAND[name]
    started = Started(make)
    for k in range(2):  # the optimizer begins anew at each start
        x = started.x[0].detach().clone().requires_grad_()
        started.engine.run(1)
        (y, idle), state = start(x), None
        for t in range(1, STEPS + 1):
            (g,) = torch.autograd.grad(lower_loss(x, y), y, create_graph=True)
            y, state = step(y, g, state, t)
        (expected,) = torch.autograd.grad(upper_loss(y, idle), x)
        torch.testing.assert_close(started.seen[k], expected, rtol=1e-12, atol=0)


def test_a_hook_that_scales_a_parameter_without_gradient_has_a_hand_in_the_step():
    """The scaling is a factor of the derivative."""
    started = Started(sgd)

    def halve(*_):
        with torch.no_grad():
            started.y[1].mul_(0.5)

    started.below.register_step_post_hook(halve)
    with pytest.raises(RuntimeError, match=r"taken again, ends .* away from where the optimizer"):
        started.engine.run(1)
