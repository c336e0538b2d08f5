"""SAMA against the exact derivative of the lower optimizer's last step."""

import copy

import pytest
import torch
from oracles import relative_error
from torch import nn
from trained import (
    LOWER_BATCHES,
    OPTIMIZERS,
    UPPER_BATCHES,
    Lower,
    Run,
    Upper,
    adam,
    adamw,
    clipped,
    lower_loss,
    sgd,
    upper_loss,
    weighted_loss,
)

from blo import Exact, Sama, darts, hypergradient, sama, t1t2, unrolled

# With a larger eps the first step of Adam is not the sign of the gradient, which does not move.
ADAPTIVE = {
    "adam": adam(eps=1e-2),
    "adam-decay": adam(eps=1e-2, weight_decay=0.1),
    "adamw": adamw(eps=1e-2, weight_decay=0.2),
}
ONE_STEP = {name: make for name, make in OPTIMIZERS.items() if name.startswith("sgd")} | ADAPTIVE


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("name", ONE_STEP)
def test_exact_products_give_differences_of_the_last_step(name, steps):
    run = Run(Sama(Exact()), ONE_STEP[name], steps=steps).rounds(2)
    for k in range(2):
        assert relative_error(run.grads[k], run.differences(k, moving=1)) < 1e-8


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exact_products_give_one_unrolled_step(name, steps):
    run = Run(Sama(Exact()), OPTIMIZERS[name], steps=steps).rounds(2)
    reference = Run(unrolled(1), OPTIMIZERS[name], steps=steps).rounds(2)
    # Terms of the derivative of a first step of Adam cancel to 1e-8 of them, which automatic
    # differentiation leaves to rounding.
    rtol = 1e-7 if steps == 1 else 1e-10
    for a, b in zip(run.grads, reference.grads, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=0)


@pytest.mark.parametrize("name", ONE_STEP)
def test_finite_differences_come_close_to_exact_products(name):
    exact = Run(Sama(Exact()), ONE_STEP[name], steps=3).rounds(1).grads[0]
    assert relative_error(Run(sama(), ONE_STEP[name]).rounds(1).grads[0], exact) < 1e-7
    one_sided = Run(sama(one_sided=True), ONE_STEP[name]).rounds(1)
    assert relative_error(one_sided.grads[0], exact) < 1e-5


def without_bias_correction(run: Run, steps: int):
    """The response by the derivative of Adam's step as Betty has it.

    D = -lr ((1 - b1) b2 v - b1 (1 - b2) g m) / (sqrt(v+) + eps)^3, with the moments m and v before
    the step and v+ after it, none of them corrected for its start at zero.
    """
    upper, lower = Upper(), copy.deepcopy(run.starts[0].lower)
    optimizer = run.make_optimizer(lower)
    for t in range(steps):
        optimizer.zero_grad()
        loss = lower_loss(upper, lower, LOWER_BATCHES[t % len(LOWER_BATCHES)])
        if t < steps - 1:
            loss.backward()
            optimizer.step()
    parameters = tuple(lower.parameters())
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    cotangent = torch.autograd.grad(
        upper_loss(run.ends[0], UPPER_BATCHES[0]), tuple(run.ends[0].parameters())
    )
    options, weights = optimizer.param_groups[0], []
    (b1, b2), lr, eps = options["betas"], options["lr"], options["eps"]
    for p, g, c in zip(parameters, gradient, cotangent, strict=True):
        state, g = optimizer.state[p], g.detach()
        m, v = state["exp_avg"], state["exp_avg_sq"]
        root = (b2 * v + (1 - b2) * g**2).sqrt()
        weights.append(-lr * c * ((1 - b1) * b2 * v - b1 * (1 - b2) * g * m) / (root + eps) ** 3)
    (response,) = torch.autograd.grad(gradient, upper.x, weights)
    return response


@pytest.mark.parametrize("steps", [2, 10])
def test_without_bias_corrections_the_response_would_be_several_times_too_large(steps):
    run = Run(Sama(Exact()), adam(), steps=steps).rounds(1)
    expected = run.differences(0, moving=1)
    assert relative_error(run.grads[0], expected) < 1e-8
    factor = (1 - 0.9**steps) / (1 - 0.999**steps) ** 0.5
    betty = without_bias_correction(run, steps)
    assert factor > 4
    assert relative_error(betty, expected) > 3
    torch.testing.assert_close(betty, factor * expected, rtol=1e-4, atol=0)  # eps apart


def test_learning_rates_stand_for_plain_sgd_and_momentum_alone():
    def error(optimizer):
        run = Run(t1t2(), optimizer, steps=3).rounds(1)
        return relative_error(run.grads[0], run.differences(0, moving=1))

    assert error(sgd(weight_decay=0.1)) < 1e-8
    assert error(sgd(momentum=0.9)) < 1e-8
    assert error(sgd(momentum=0.9, dampening=0.3)) > 0.1
    assert error(sgd(momentum=0.9, nesterov=True)) > 0.1
    assert error(adam()) > 0.1


class Embedded(Lower):
    """Weights of which some are used by the upper examples alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.cat([self.first.detach(), torch.ones(4, 3).double()]))

    def forward(self, inputs):
        reached = any(inputs is batch[0] for batch in UPPER_BATCHES)
        first = self.first[4:] if reached else self.first[:4]
        return torch.tanh(inputs @ (first + 0.1 * self.first[:4]).T) @ self.second


def test_elements_that_adam_has_seen_no_gradient_of_do_not_drown_the_others():
    def loss(upper, lower, batch):
        return weighted_loss(upper, lower(batch[0]), batch[1])

    for steps in (1, 3):
        run = Run(sama(), adam(eps=1e-4), steps=steps, loss=loss, make_lower=Embedded).rounds(1)
        expected = run.differences(0, moving=1)[:2]
        assert relative_error(run.grads[0][:2], expected) < 1e-6


def test_maximising_optimizers_and_accumulated_batches_are_followed():
    negative = lambda upper, lower, batch: -lower_loss(upper, lower, batch)
    for optimizer in (sgd(momentum=0.9, maximize=True), adam(maximize=True)):
        run = Run(Sama(Exact()), optimizer, steps=2, loss=negative, accumulate=2).rounds(2)
        for k in range(2):
            assert relative_error(run.grads[k], run.differences(k, moving=1)) < 1e-8


def test_costs_are_those_of_darts():
    # The first response compares two difference steps as well.
    for optimizer in (sgd(), adam()):
        central = Run(sama(), optimizer).rounds(2).infos[1]
        assert (central.num_gradients, central.num_products) == (2, 0)
        one_sided = Run(sama(one_sided=True), optimizer).rounds(2).infos[1]
        assert (one_sided.num_gradients, one_sided.num_products) == (1, 0)
        exact = Run(Sama(Exact()), optimizer).rounds(2).infos[1]
        assert (exact.num_gradients, exact.num_products) == (1, 1)


def test_for_plain_sgd_it_is_darts():
    ours = Run(sama(), sgd()).rounds(2)
    for a, b in zip(ours.grads, Run(darts(), sgd()).rounds(2).grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    radius = Run(darts(), sgd()).rounds(1).infos[0].radius
    assert ours.infos[0].radius == pytest.approx(radius, rel=1e-12)


def test_hooks_that_change_the_step_are_detected():
    with pytest.raises(RuntimeError, match=r"recorded lower step 1, .*hook"):
        Run(sama(), clipped(sgd(), max_norm=0.05)).rounds(1)


def test_other_optimizers_are_refused():
    optimizer = lambda module: torch.optim.ASGD(module.parameters(), lr=0.01)
    with pytest.raises(TypeError, match=r"ASGD cannot be taken again: only .*SGD"):
        Run(sama(), optimizer).rounds(1)


def test_plain_functions_are_refused_with_the_remedy():
    x, y = torch.ones(1), torch.ones(1)
    loss = lambda x, y: (x[0] * y[0]).sum()
    with pytest.raises(ValueError, match=r"sama\(\) .* none were recorded: .*Problem in an Engine"):
        hypergradient(loss, loss, (x,), (y,), method=sama())
