"""Lower steps joined in one graph, beside full automatic differentiation and steps taken one by
one.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import blo
from blo import Engine, Problem, ProblemGraph, unrolled

STEPS, RATE = 4, 0.1


class Fitted:
    """Two weights below, pulled towards what two numbers above say, and a third that is idle."""

    def __init__(self, make_optimizer, *, through=lambda f, *args: f(*args), edits=False) -> None:
        self.x = nn.ParameterList([torch.tensor([0.4, -0.3]).double()])
        self.y = nn.ParameterList(
            [torch.tensor([1.0, -2.0]).double(), torch.tensor(0.5).double(), torch.ones(1).double()]
        )
        self.seen, self.stash = [], []
        above = torch.optim.SGD(self.x.parameters(), 0.5)
        above.register_step_pre_hook(lambda *_: self.seen.append(self.x[0].grad.clone()))

        def lower(_):
            if edits and len(self.stash) == 3:  # after the probe, two steps
                with torch.no_grad():
                    self.stash[2].mul_(2.0)
            self.stash.append(self.y[0])
            return through(lower_loss, self.x[0], self.y[0], self.y[1])

        modules = [self.x, self.y]
        upper = lambda _: upper_loss(self.y[0], self.y[1])
        self.engine = Engine(
            ProblemGraph(
                [
                    Problem("upper", upper, modules, above, [None]),
                    Problem(
                        "lower",
                        lower,
                        modules,
                        make_optimizer(list(self.y)),
                        [None],
                        steps=STEPS,
                        method=unrolled(),
                    ),
                ]
            )
        )

    def run(self, num_rounds=2):
        """The hypergradients of some rounds, and the number of gradients of the last response."""
        record = self.engine.run(num_rounds)
        return torch.stack(self.seen), record.responses["upper <- lower"].num_gradients


def lower_loss(x, a, b):
    return ((a - x).sin().square() * (1 + b.square())).sum() + (b - x.prod()).square()


def upper_loss(a, b):
    return a.square().sum() + b**3


def unrolled_by_autograd(x, step):
    """The hypergradient of the first round: all steps in one graph, written by hand."""
    x = x.detach().clone().requires_grad_()
    y = [
        torch.tensor([1.0, -2.0]).double().requires_grad_(),
        torch.tensor(0.5).double().requires_grad_(),
    ]
    states = [None, None]
    for t in range(1, STEPS + 1):
        grads = torch.autograd.grad(lower_loss(x, *y), y, create_graph=True)
        columns = zip(y, grads, states, strict=True)
        taken = [step(p, g, s, t) for p, g, s in columns]
        y, states = [p for p, _ in taken], [s for _, s in taken]
    return torch.autograd.grad(upper_loss(*y), x)[0]


def momentum_by_hand(p, g, buffer, t):
    g = g + 0.02 * p
    buffer = g if buffer is None else 0.9 * buffer + 0.75 * g
    return p - RATE * buffer, buffer


def adam_by_hand(p, g, moments, t):
    g = g + 0.02 * p
    m, v = (0.0, 0.0) if moments is None else moments
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
    root = (v / (1 - 0.99**t)).sqrt() + 1e-8
    return p - RATE * (m / (1 - 0.9**t)) / root, (m, v)


def nesterov_by_hand(p, g, buffer, t):
    g = 0.02 * p - g
    buffer = g if buffer is None else 0.9 * buffer + g
    return p - RATE * (g + 0.9 * buffer), buffer


def decoupled_by_hand(p, g, moments, t):
    m, v = (0.0, 0.0) if moments is None else moments
    m, v = 0.8 * m - 0.2 * g, 0.99 * v + 0.01 * g**2
    root = (v / (1 - 0.99**t)).sqrt() + 1e-8
    return p * (1 - RATE * 0.1) - RATE * (m / (1 - 0.8**t)) / root, (m, v)


def sgd(parameters):
    return torch.optim.SGD(parameters, RATE, momentum=0.9, dampening=0.25, weight_decay=0.02)


def adam(parameters):
    return torch.optim.Adam(parameters, RATE, betas=(0.9, 0.99), weight_decay=0.02)


def in_groups(parameters):
    first, second, idle = parameters
    groups = [{"params": [first], "lr": 0.2, "nesterov": True}, {"params": [second, idle]}]
    return torch.optim.SGD(groups, RATE, momentum=0.5)


def nesterov(parameters):
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02, "maximize": True}
    return torch.optim.SGD(parameters, RATE, **options)


def decoupled(parameters):
    options = {"betas": (0.8, 0.99), "weight_decay": 0.1, "maximize": True}
    return torch.optim.AdamW(parameters, RATE, **options)


def forbid_steps_one_by_one(monkeypatch):
    def refuse(*_):
        raise AssertionError("steps were taken one by one")

    monkeypatch.setattr(blo.methods.unrolling, "segments", refuse)


BY_HAND = {
    "sgd": (sgd, momentum_by_hand),
    "nesterov, maximised": (nesterov, nesterov_by_hand),
    "adam": (adam, adam_by_hand),
    "adamw, maximised": (decoupled, decoupled_by_hand),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_joined_steps_are_full_automatic_differentiation(monkeypatch, name):
    forbid_steps_one_by_one(monkeypatch)
    make, step = BY_HAND[name]
    fitted = Fitted(make)
    expected = unrolled_by_autograd(fitted.x[0], step)
    found, cost = fitted.run(1)
    assert cost == 0
    torch.testing.assert_close(found[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [sgd, adam, in_groups, decoupled])
def test_joined_steps_are_steps_taken_one_by_one(monkeypatch, make):
    one_by_one = Fitted(make)
    one_by_one.engine.recorder = blo.recording.Recorder(one_by_one.engine.graph, joins=False)
    expected, _ = one_by_one.run()
    forbid_steps_one_by_one(monkeypatch)
    found, _ = Fitted(make).run()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_a_parameter_of_an_earlier_step_may_be_edited():
    expected, _ = Fitted(sgd).run(1)
    found, _ = Fitted(sgd, edits=True).run(1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_steps_that_run_python_in_the_backward_pass_are_not_joined(monkeypatch):
    expected, _ = Fitted(sgd).run()
    through = lambda f, *args: checkpoint(f, *args, use_reentrant=False)
    found, cost = Fitted(sgd, through=through).run()
    assert cost == 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    forbid_steps_one_by_one(monkeypatch)
    with pytest.raises(AssertionError, match="one by one"):
        Fitted(sgd, through=through).run(1)


def test_the_loss_is_evaluated_where_a_hook_moved_a_parameter_without_gradient():
    fitted = Fitted(sgd)
    optimizer = fitted.engine.graph["lower"].optimizer
    values = []

    def move(*_):
        with torch.no_grad():
            fitted.y[2].add_(1e-6)

    optimizer.register_step_post_hook(move)
    problem = fitted.engine.graph["lower"]
    loss = problem.loss
    problem.loss = lambda batch: values.append(fitted.y[2].item()) or loss(batch)
    fitted.run(1)  # a move within the tolerance
    # Then the steps are taken again, to see what else the hook does.
    assert values[:STEPS] == pytest.approx([1.0, 1 + 1e-6, 1 + 2e-6, 1 + 3e-6], abs=1e-12)


@pytest.mark.parametrize("level, number", [("x", 1), ("x", STEPS), ("y", 1), ("y", STEPS)])
def test_what_an_optimizer_hook_moves_is_told_in_the_librarys_words(level, number):
    fitted = Fitted(sgd)
    moved, calls = getattr(fitted, level)[0], []

    def move(*_):
        calls.append(1)
        if len(calls) == number:
            with torch.no_grad():
                moved.add_(0.05)

    fitted.engine.graph["lower"].optimizer.register_step_post_hook(move)
    with pytest.raises(RuntimeError, match=r"taken again, ends .* away from where the optimizer"):
        fitted.run(1)
