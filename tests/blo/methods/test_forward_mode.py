"""Forward mode against reverse mode, and against differences of the trained result."""

import gc

import pytest
import torch
from oracles import relative_error
from torch import nn
from torch.nn.functional import layer_norm
from torch.utils.checkpoint import checkpoint
from trained import LOWER_BATCHES, OPTIMIZERS, Lower, Run, adam, adamw, clipped, lower_loss, sgd

from blo import Engine, Problem, ProblemGraph, forward_mode, hypergradient, unrolled

optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


@optimizers
def test_forward_mode_is_reverse_mode(name):
    for steps in (None, 2):
        forward = Run(forward_mode(steps), OPTIMIZERS[name], steps=5).rounds(2)
        reverse = Run(unrolled(steps), OPTIMIZERS[name], steps=5).rounds(2)
        for a, b in zip(forward.grads, reverse.grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adamw()], ids=["sgd", "adamw"])
def test_hypergradients_are_differences_of_the_trained_result(optimizer):
    run = Run(forward_mode(), optimizer, steps=5, accumulate=2).rounds(2)
    for k in range(2):
        assert relative_error(run.grads[k], run.differences(k)) < 1e-8


class Recomputed(Lower):
    """Activation checkpointing and layer normalisation: torch.func takes neither, or wrongly."""

    def forward(self, inputs):
        hidden = lambda t: layer_norm(torch.tanh(t @ self.first.T), (4,))
        return checkpoint(hidden, inputs, use_reentrant=False) @ self.second


def test_activation_checkpointing_and_layer_normalisation_are_taken_in_their_stride():
    run = Run(forward_mode(), adam(), steps=4, make_lower=Recomputed).rounds(2)
    for k in range(2):
        assert relative_error(run.grads[k], run.differences(k)) < 1e-8


def test_costs_are_a_gradient_and_a_product_for_each_number_a_step():
    info = Run(forward_mode(), sgd(), steps=7).rounds(1).infos[0]
    assert (info.num_gradients, info.num_products) == (7, 7 * 4)


def most_numbers(steps: int) -> int:
    """The most numbers in tensors of float64 while the lower loss is evaluated."""
    most = 0

    def loss(upper, lower, batch):
        nonlocal most
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        sizes = {t.data_ptr(): t.numel() for t in tensors if t.dtype == torch.float64}
        most = max(most, sum(sizes.values()))
        return lower_loss(upper, lower, batch)

    gc.freeze()
    try:
        Run(forward_mode(), adam(), steps=steps, loss=loss).rounds(2)
    finally:
        gc.unfreeze()
    return most


def test_memory_does_not_grow_with_the_number_of_steps():
    few = most_numbers(4)
    assert few == most_numbers(8) == most_numbers(40)


def test_more_upper_numbers_than_allowed_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"each of the 4 upper numbers.*max_size=3; use unrolled"):
        Run(forward_mode(max_size=3), sgd()).rounds(1)
    with pytest.raises(ValueError, match="max_size must be an integer of at least 1, got 0"):
        forward_mode(max_size=0)
    with pytest.raises(ValueError, match="steps must be an integer of at least 1"):
        forward_mode(0)


def test_plain_functions_are_refused_with_the_remedy():
    x, y = torch.ones(1), torch.ones(1)
    loss = lambda x, y: (x[0] * y[0]).sum()
    with pytest.raises(ValueError, match=r"forward_mode\(\) .* none were recorded"):
        hypergradient(loss, loss, (x,), (y,), method=forward_mode())


def test_hooks_that_change_the_step_are_detected():
    with pytest.raises(RuntimeError, match=r"recorded lower step 1 to 4.*hook"):
        Run(forward_mode(), clipped(sgd()), steps=4).rounds(1)


def test_a_lower_gradient_without_upper_parameters_is_an_error():
    def loss(upper, lower, batch):
        return (lower(batch[0]) - batch[1]).square().mean() + upper.x.square().sum()

    with pytest.raises(RuntimeError, match="does not depend on any upper parameter"):
        Run(forward_mode(), sgd(), loss=loss).rounds(1)


def test_upper_parameters_that_enter_late_are_found():
    def loss(upper, lower, batch):
        inputs, targets = batch
        if inputs is LOWER_BATCHES[1][0]:
            return (lower(inputs) - targets).square().mean()
        return lower_loss(upper, lower, batch)

    run = Run(forward_mode(), sgd(momentum=0.5), steps=2, loss=loss).rounds(3)
    for k in range(3):
        assert relative_error(run.grads[k], run.differences(k)) < 1e-8


@pytest.mark.parametrize("method", [forward_mode(), unrolled()], ids=["forward", "reverse"])
def test_numbers_without_dimensions_are_parameters_like_others(method):
    """Two steps of SGD on ``(y - x)^2 / 2`` with lr 0.5: ``dy/dx = 1 - 0.5^2``."""
    x, y = (nn.ParameterDict({"v": torch.tensor(v).double()}) for v in (1.0, 3.0))
    seen = []
    top = torch.optim.SGD(x.parameters(), lr=0.0)
    top.register_step_pre_hook(lambda *_: seen.append(x["v"].grad.clone()))
    bottom = torch.optim.SGD(y.parameters(), lr=0.5)
    graph = ProblemGraph(
        [
            Problem("x", lambda _: 2 * y["v"], [x, y], top, [None]),
            Problem(
                "y",
                lambda _: (y["v"] - x["v"]).square() / 2,
                [x, y],
                bottom,
                [None],
                steps=2,
                method=method,
            ),
        ]
    )
    Engine(graph).run(1)
    torch.testing.assert_close(seen[0], torch.tensor(1.5).double())


def test_upper_and_lower_parameters_may_be_of_several_types():
    def moved(method):
        generator = torch.Generator().manual_seed(0)
        types = ((torch.float64, torch.float32), (torch.float32, torch.float64))
        draw = lambda t: torch.randn(2, dtype=t, generator=generator)
        x, y = (nn.ParameterList(draw(t) for t in level) for level in types)
        fit = lambda _: (y[0] - x[0].sin()).square().sum() + (y[1] - x[0] * x[1]).square().sum()
        error = lambda _: y[0].square().sum() + y[1].square().sum()
        above, below = (torch.optim.SGD(level.parameters(), 0.1) for level in (x, y))
        upper = Problem("upper", error, x, above, [None])
        lower = Problem("lower", fit, y, below, [None], method=method, steps=2)
        Engine(ProblemGraph([upper, lower])).run(2)
        return [t.detach() for t in x]

    for a, b in zip(moved(forward_mode()), moved(unrolled()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
