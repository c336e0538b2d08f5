"""Unrolling against differences of the trained result: a plain loop over torch's own optimizers."""

import gc
import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from oracles import relative_error
from torch import nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from trained import (
    LOWER_BATCHES,
    OPTIMIZERS,
    Lower,
    Run,
    adam,
    adamw,
    clipped,
    lower_loss,
    sgd,
    weighted_loss,
)

from blo import (
    Context,
    Engine,
    Info,
    Problem,
    ProblemGraph,
    Requirements,
    Response,
    hypergradient,
    t1t2,
    unrolled,
)
from blo.steps.optimizers import UpdateMap
from blo.steps.replay import replayed, segments

optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


@optimizers
def test_hypergradients_are_differences_of_the_trained_result(name):
    run = Run(unrolled(), OPTIMIZERS[name], steps=5).rounds(2)
    for k in range(2):
        assert relative_error(run.grads[k], run.differences(k)) < 1e-8


@optimizers
def test_the_last_steps_alone_are_differences_with_the_steps_before_them_fixed(name):
    run = Run(unrolled(2), OPTIMIZERS[name], steps=5).rounds(2)
    for k in range(2):
        assert relative_error(run.grads[k], run.differences(k, moving=2)) < 1e-8


def test_truncation_is_not_the_whole_and_beyond_all_steps_it_is():
    whole = Run(unrolled(), sgd(), steps=5).rounds(1).grads[0]
    assert relative_error(Run(unrolled(2), sgd(), steps=5).rounds(1).grads[0], whole) > 0.1
    assert torch.equal(Run(unrolled(9), sgd(), steps=5).rounds(1).grads[0], whole)


def test_one_step_of_sgd_is_t1t2():
    one = Run(unrolled(1), sgd(), steps=3).rounds(1)
    torch.testing.assert_close(
        one.grads[0], Run(t1t2(), sgd(), steps=3).rounds(1).grads[0], rtol=1e-12, atol=0
    )
    assert (one.infos[0].num_gradients, one.infos[0].num_products) == (0, 1)


@optimizers
def test_checkpoints_change_nothing(name):
    for steps in (None, 3):
        plain = Run(unrolled(steps), OPTIMIZERS[name], steps=7).rounds(2)
        spare = Run(unrolled(steps, checkpoint=True), OPTIMIZERS[name], steps=7).rounds(2)
        for a, b in zip(plain.grads, spare.grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


SCHEDULERS = {
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=20, base_momentum=0.5
    ),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adamw()], ids=["sgd", "adamw"])
def test_schedulers_of_rates_and_momenta_are_followed(optimizer, scheduler):
    run = Run(unrolled(), optimizer, SCHEDULERS[scheduler], steps=5).rounds(2)
    for k in range(2):
        assert relative_error(run.grads[k], run.differences(k)) < 1e-8


def test_a_learning_rate_in_a_tensor_is_recorded_as_it_was():
    # Schedulers fill such a tensor in place.
    optimizer = lambda module: torch.optim.Adam(module.parameters(), torch.tensor(0.05).double())
    run = Run(unrolled(), optimizer, SCHEDULERS["step"], steps=5).rounds(1)
    assert relative_error(run.grads[0], run.differences(0)) < 1e-8


@pytest.mark.parametrize("how", ["fused", "foreach"])
def test_steps_by_the_other_kernels_of_torch_are_followed(how):
    for optimizer in (sgd(momentum=0.9, weight_decay=0.1, **{how: True}), adam(**{how: True})):
        for method in (unrolled(), unrolled(checkpoint=True)):
            run = Run(method, optimizer, steps=5).rounds(2)
            for k in range(2):
                assert relative_error(run.grads[k], run.differences(k)) < 1e-8


def test_maximising_optimizers_and_accumulated_batches_are_followed():
    negative = lambda upper, lower, batch: -lower_loss(upper, lower, batch)
    run = Run(unrolled(), adam(maximize=True), steps=3, loss=negative, accumulate=2).rounds(2)
    for k in range(2):
        assert relative_error(run.grads[k], run.differences(k)) < 1e-8


class WithUnused(Lower):
    """A parameter that the loss does not reach comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("spare", [False, True])
def test_parameters_without_gradient_are_passed_over_as_the_optimizer_does(spare):
    def loss(upper, lower, batch):
        return weighted_loss(upper, lower(batch[0]), batch[1])

    optimizer = sgd(weight_decay=0.5, momentum=0.9)
    method = unrolled(checkpoint=spare)
    run = Run(method, optimizer, steps=4, loss=loss, make_lower=WithUnused).rounds(2)
    assert torch.equal(run.ends[1].idle, torch.ones(2, dtype=torch.float64))
    for k in range(2):
        assert relative_error(run.grads[k][:2], run.differences(k)[:2]) < 1e-8


class Masked(Lower):
    """Dropout on the lower batches, none on the upper ones."""

    def forward(self, inputs):
        training = any(inputs is batch[0] for batch in LOWER_BATCHES)
        return dropout(torch.tanh(inputs @ self.first.T), 0.5, training) @ self.second


@pytest.mark.parametrize("spare", [False, True])
def test_dropout_masks_are_those_of_training(spare):
    run = Run(unrolled(checkpoint=spare), adam(), steps=5, make_lower=Masked).rounds(2)
    for k in range(2):
        assert relative_error(run.grads[k], run.differences(k)) < 1e-8


class Attentive(Lower):
    def forward(self, inputs):
        hidden = torch.tanh(inputs @ self.first.T)[None, None]
        return scaled_dot_product_attention(hidden, hidden, hidden)[0, 0] @ self.second


class Recomputed(Lower):
    def forward(self, inputs):
        forward = super().forward
        return checkpoint(forward, inputs, use_reentrant=False)


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("network", [Attentive, Recomputed])
def test_attention_and_activation_checkpointing_are_differentiated_twice(network, spare):
    run = Run(unrolled(checkpoint=spare), adamw(), steps=3, make_lower=network).rounds(2)
    for k in range(2):
        assert relative_error(run.grads[k], run.differences(k)) < 1e-8


def gradient_through_a_transformer(dtype, precision, method):
    """What the upper optimizer receives after six lower steps with fused attention."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    lower = nn.Sequential(layer, nn.Linear(16, 1)).to(dtype)
    upper = nn.Linear(3, 1, bias=False).to(dtype)
    batches = [tuple(torch.randn(4, 6, n).to(dtype) for n in (16, 1, 3)) for _ in range(4)]
    received = []
    top = torch.optim.SGD(upper.parameters(), lr=0.1)
    top.register_step_pre_hook(lambda *_: received.append(upper.weight.grad.double()))
    errors = lambda b: (lower(b[0]) - b[1]).square()
    problems = [
        Problem("upper", lambda b: errors(b).mean(), upper, top, batches),
        Problem(
            "lower",
            lambda b: (torch.sigmoid(upper(b[2])) * errors(b)).mean(),
            lower,
            torch.optim.SGD(lower.parameters(), lr=0.1, momentum=0.9),
            batches,
            steps=6,
            method=method,
        ),
    ]
    Engine(ProblemGraph(problems), precision=precision).run(1)
    return received[0]


@pytest.mark.parametrize("spare", [False, True])
def test_low_precision_costs_no_more_than_its_rounding(spare):
    method = unrolled(checkpoint=spare)
    exact = gradient_through_a_transformer(torch.float64, None, method)
    single = gradient_through_a_transformer(torch.float32, None, method)
    assert relative_error(single, exact) < 1e-5
    half = gradient_through_a_transformer(torch.float32, torch.bfloat16, method)
    assert relative_error(half, exact) < 0.05


@dataclass(frozen=True)
class Listening:
    """Keeps what a method is given."""

    heard: list[Context] = field(default_factory=list)

    @property
    def requirements(self) -> Requirements:
        return Requirements(before=True, lower_gradient=True, history=None, stride=1)

    def response(self, context, cotangent, state):
        self.heard.append(context)
        zeros = tuple(torch.zeros_like(t) for t in context.after.upper)
        return Response(zeros, None, Info("listening", "after"))


@optimizers
def test_replayed_iterates_have_the_bits_of_training(name):
    method = Listening()
    Run(method, OPTIMIZERS[name], steps=6).rounds(2)
    for context in method.heard:
        update = UpdateMap(context.history.optimizer)
        forgotten = tuple(replace(s, lower=None, states=None) for s in context.history.steps)
        history = replace(context.history, steps=forgotten)
        (segment,) = segments(history, update)
        iterates = replayed(segment, context.before.upper, update)
        assert len(iterates) == 6
        for iterate, step in zip(iterates[1:], context.history.steps[1:], strict=True):
            assert all(map(torch.equal, iterate.lower, step.lower))
        assert all(map(torch.equal, iterates[-1].lower, context.before.lower))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9, 10, 16, 25, 30])
def test_costs_are_a_product_a_step_and_less_than_two_gradients_with_checkpoints(steps):
    plain = Run(unrolled(), sgd(), steps=steps).rounds(1).infos[0]
    assert (plain.num_gradients, plain.num_products) == (0, steps)
    spare = Run(unrolled(checkpoint=True), sgd(), steps=steps).rounds(1).infos[0]
    segments = math.ceil(steps / math.ceil(math.sqrt(steps)))
    assert (spare.num_gradients, spare.num_products) == (2 * steps - segments, steps)


class Wide(Lower):
    """A parameter whose copies are counted, by a size that nothing else has."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.cat([self.first.detach(), torch.ones(33, 3).double()]))
        self.second = nn.Parameter(torch.cat([self.second.detach(), torch.zeros(33).double()]))


def most_copies(method, steps: int) -> int:
    """The most tensors of the size of a lower parameter that live while the loss is evaluated."""
    most = 0

    def loss(upper, lower, batch):
        nonlocal most
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        alive = [t for t in tensors if t.shape == (37, 3)]
        most = max(most, len({t.data_ptr() for t in alive}))
        return lower_loss(upper, lower, batch)

    gc.freeze()  # what there is already is left out of the search
    try:
        # Without momentum, an iterate is the parameters alone.
        Run(method, sgd(lr=1e-3), steps=steps, loss=loss, make_lower=Wide).rounds(3)
    finally:
        gc.unfreeze()
    return most


def test_live_copies_grow_as_the_steps_and_with_checkpoints_as_their_square_root():
    constant = 14
    for steps in (9, 36):
        root = math.isqrt(steps)
        # An iterate and the gradient taken there, in the graph that is kept.
        assert steps <= most_copies(unrolled(), steps) <= 2 * steps + constant
        assert most_copies(unrolled(checkpoint=True), steps) <= 2 * root + constant


def projected(module):
    """SGD with parameters that a hook clamps after each step."""

    def clamp(optimizer, args, kwargs):
        for parameter in module.parameters():
            parameter.data.clamp_(-0.5, 0.5)

    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    optimizer.register_step_post_hook(clamp)
    return optimizer


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [clipped(sgd()), clipped(adam()), projected],
    ids=["sgd-clip", "adam-clip", "sgd-project"],
)
def test_hooks_that_change_the_step_are_detected(optimizer, spare):
    with pytest.raises(RuntimeError, match=r"recorded lower step .* ends .* away.*hook"):
        Run(unrolled(checkpoint=spare), optimizer, steps=4).rounds(1)


def test_a_hook_that_changes_the_only_step_is_detected():
    with pytest.raises(RuntimeError, match="recorded lower step 1, taken again, ends"):
        Run(unrolled(1), clipped(sgd(), max_norm=0.05), steps=3).rounds(1)


def test_hooks_that_change_nothing_are_let_through():
    run = Run(unrolled(), clipped(sgd(), max_norm=100.0), steps=4).rounds(1)
    assert relative_error(run.grads[0], run.differences(0)) < 1e-8


def test_other_optimizers_are_refused():
    optimizer = lambda module: torch.optim.Adadelta(module.parameters(), lr=0.01)
    with pytest.raises(TypeError, match=r"Adadelta cannot be taken again: only .*SGD"):
        Run(unrolled(), optimizer).rounds(1)


def test_plain_functions_are_refused_with_the_remedy():
    x, y = torch.ones(1), torch.ones(1)
    loss = lambda x, y: (x[0] * y[0]).sum()
    with pytest.raises(
        ValueError, match=r"unrolled\(\) .* none were recorded: .*Problem in an Eng"
    ):
        hypergradient(loss, loss, (x,), (y,), method=unrolled())


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_must_be_a_positive_integer(steps):
    with pytest.raises(ValueError, match="steps must be an integer of at least 1, or None"):
        unrolled(steps)


def test_a_lower_gradient_without_upper_parameters_is_an_error():
    def loss(upper, lower, batch):
        return (lower(batch[0]) - batch[1]).square().mean() + upper.x.square().sum()

    with pytest.raises(RuntimeError, match="does not depend on any upper parameter"):
        Run(unrolled(), sgd(), loss=loss).rounds(1)
