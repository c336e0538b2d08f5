"""Everything that a lower step read stands where it stood in that step, or is refused with the
remedy.
"""

import copy
import logging
import math
import random
import warnings

import numpy as np
import pytest
import torch
from oracles import relative_error
from torch import nn

from blo import (
    Engine,
    Problem,
    ProblemGraph,
    alternating,
    cg,
    darts,
    dense,
    f2sa,
    forward_mode,
    minres,
    sama,
    soba,
    t1t2,
    unrolled,
)

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def parameters(*values):
    return nn.ParameterList([nn.Parameter(torch.as_tensor(v).clone()) for v in values])


def sgd(module, lr):
    return torch.optim.SGD(module.parameters(), lr)


def received(optimizer):
    """Return a list that gets the gradients of the first parameter, as the optimizer has them."""
    seen = []

    def note(*_):
        seen.append(optimizer.param_groups[0]["params"][0].grad.clone())

    optimizer.register_step_pre_hook(note)
    return seen


@pytest.mark.parametrize("method", [unrolled(1), darts(), darts(one_sided=True), t1t2(), sama()])
def test_a_sibling_that_has_moved_stands_where_it_stood(method):
    x, p, r, q = (parameters([v]) for v in (0.1, 0.5, 0.7, 0.2))
    of_r = sgd(r, 0.01)
    seen = received(of_r)
    top = Problem("x", lambda _: (p[0] + r[0] - x[0]).square().sum(), x, sgd(x, 0.01), [None])
    loss = lambda _: (q[0] - 1).square().sum() + (p[0] - x[0]).square().sum()
    left = Problem("p", loss, p, sgd(p, 0.01), [None])
    loss = lambda _: (q[0] + 1).square().sum() + (r[0] - x[0]).square().sum()
    right = Problem("r", loss, r, of_r, [None])
    loss = lambda _: (q[0] - p[0].sin() * r[0]).square().sum()
    bottom = Problem("q", loss, q, sgd(q, 0.1), [None], method=method)
    Engine(ProblemGraph([top, (left, right), bottom])).run(1)
    stepped = 0.2 - 0.2 * (0.2 - math.sin(0.5) * 0.7)
    right_value = 2 * (stepped + 1) * 0.2 * math.sin(0.5) + 2 * 0.6
    assert seen[0].item() == pytest.approx(right_value, rel=1e-6)


@pytest.mark.parametrize("method", [unrolled(), forward_mode()])
def test_recorded_steps_see_a_sibling_where_it_stood_in_each(method):
    a, b, c, d = (parameters([v]) for v in (0.1, 0.5, 0.7, 0.3))
    of_a = sgd(a, 0.0)
    seen = received(of_a)
    top = Problem("a", lambda _: (b[0] - 1).square().sum(), a, of_a, [None])
    loss = lambda _: (b[0] - a[0]).square().sum() + d[0].square().sum()
    middle = Problem("b", loss, b, sgd(b, 0.1), [None], method=method, steps=2)
    loss = lambda _: (c[0] - 3).square().sum()
    beside = Problem("c", loss, c, sgd(c, 0.3), [None], method=alternating(), steps=2)
    loss = lambda _: (d[0] - (b[0] * c[0]).sin() - 0.2 * b[0]).square().sum()
    bottom = Problem("d", loss, d, sgd(d, 0.5), [None], method=dense())
    Engine(ProblemGraph([top, (middle, beside), bottom])).run(1)
    assert seen[0].item() == pytest.approx(-0.609521978651274, rel=1e-6)


@pytest.mark.parametrize("method", [unrolled(1), t1t2(), darts(), sama(), sama(one_sided=True)])
def test_solutions_below_move_with_a_perturbed_problem(method):
    x, y, z = parameters([0.5]), parameters([0.3]), parameters([0.0])
    of_x = sgd(x, 0.0)
    seen = received(of_x)
    top = Problem("x", lambda _: (y[0] - 2).square().sum(), x, of_x, [None])
    loss = lambda _: (y[0] - x[0]).square().sum() + (z[0] - 1).square().sum()
    middle = Problem("y", loss, y, sgd(y, 0.1), [None], method=method)
    loss = lambda _: ((z[0] - x[0] * y[0].square()) ** 2).sum()
    bottom = Problem("z", loss, z, sgd(z, 0.5), [None], method=cg(3))
    Engine(ProblemGraph([top, middle, bottom])).run(1)
    assert seen[0].item() == pytest.approx(-0.99110968, rel=1e-5)


def test_the_order_of_updates_is_derived_from_who_depends_on_whom():
    a, b, c, d = (parameters([v]) for v in (0.1, 0.2, 0.3, 0.4))
    top = Problem("a", lambda _: (b[0] - 1).square().sum(), a, sgd(a, 0.1), [None])
    loss = lambda _: (b[0] - a[0]).square().sum() + d[0].square().sum()
    second = Problem("b", loss, b, sgd(b, 0.1), [None], method=cg(5))
    loss = lambda _: (c[0] - d[0]).square().sum() + c[0].square().sum()
    third = Problem("c", loss, c, sgd(c, 0.1), [None], method=cg(5))
    loss = lambda _: (d[0] - b[0] - c[0]).square().sum()
    bottom = Problem("d", loss, d, sgd(d, 0.1), [None], method=cg(5))
    graph = ProblemGraph([top, second, third, bottom])
    assert [u.problem for u in graph.schedule()] == ["d", "c", "b", "a"]
    assert Engine(graph).run(1).round == 1


def test_a_read_that_appears_on_a_later_batch_is_found(caplog):
    x, y, z = (parameters([v]) for v in (0.5, 0.2, 0.1))
    of_x = sgd(x, 0.0)
    seen = received(of_x)
    loss = lambda _: ((z[0] - 1) ** 2).sum() + ((y[0] - 2) ** 2).sum()
    top = Problem("x", loss, x, of_x, [None])
    loss = lambda _: ((y[0] - x[0].sin()) ** 2).sum()
    middle = Problem("y", loss, y, sgd(y, 0.0), [None], method=cg(5))
    loss = lambda batch: ((z[0] - y[0] - 3 * batch * x[0]) ** 2).sum() if batch else (
        (z[0] - y[0]) ** 2
    ).sum()  # fmt: skip
    bottom = Problem("z", loss, z, sgd(z, 0.0), [0, 1], method=cg(5))
    graph = ProblemGraph([top, middle, bottom])
    assert graph.reads["z"] == ("y", "z")
    with caplog.at_level(logging.WARNING, logger="blo"):
        Engine(graph).run(2)
    assert graph.reads["z"] == ("x", "y", "z")
    assert "the loss of problem 'z' reads ['x']" in caplog.text
    slope = math.cos(0.5)  # of y at its solution
    above = lambda direct: 2 * (0.1 - 1) * (slope + direct) + 2 * (0.2 - 2) * slope
    assert [g.item() for g in seen] == pytest.approx([above(0.0), above(3.0)], rel=1e-9)


def test_a_declaration_may_be_wider_than_the_first_batch():
    x, y = parameters([0.5]), parameters([0.2])
    top = Problem("x", lambda _: (y[0] - 1).square().sum(), x, sgd(x, 0.0), [None])
    loss = lambda batch: (y[0] - batch * x[0]).square().sum() if batch else y[0].square().sum()
    bottom = Problem("y", loss, y, sgd(y, 0.1), [0, 1], reads=["x"], method=t1t2())
    assert ProblemGraph([top, bottom]).reads["y"] == ("x", "y")


METHODS = [darts(), darts(one_sided=True), t1t2(), sama(), unrolled(1), cg(20), f2sa(), soba()]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_loss_that_edits_its_batch_gets_a_copy_each_time(method):
    def run(in_place):
        torch.manual_seed(0)
        net, weight = nn.Linear(6, 2), parameters(torch.zeros(5))
        inputs, targets, held = torch.randn(5, 6), torch.randn(5, 2), torch.randn(7, 6)
        of_weight = sgd(weight, 0.1)
        seen = received(of_weight)

        def lower(batch):
            x = batch["x"].mul_(0.5) if in_place else batch["x"] * 0.5
            return (weight[0].exp() * (net(x) - targets).square().mean(1)).mean()

        upper = lambda _: net(held).square().mean()
        batches = [{"x": inputs.clone()}]
        top = Problem("up", upper, [net, weight], of_weight, [None])
        below = Problem("lo", lower, [net, weight], sgd(net, 0.1), batches, method=method)
        Engine(ProblemGraph([top, below])).run(2)
        assert torch.equal(batches[0]["x"], inputs)
        return torch.stack(seen)

    assert torch.equal(run(True), run(False))


def test_an_edit_that_the_first_batch_does_not_show_is_an_error_that_names_the_tensor():
    net = nn.Linear(2, 1)
    batches = [{"x": torch.ones(3, 2), "edit": edit} for edit in (False, True)]

    def loss(batch):
        x = batch["x"].mul_(0.5) if batch["edit"] else batch["x"]
        return net(x).square().mean()

    engine = Engine(ProblemGraph([Problem("p", loss, net, sgd(net, 0.1), batches)]))
    before = copy.deepcopy(net.state_dict())
    engine.run(1)
    after = copy.deepcopy(net.state_dict())
    assert not torch.equal(before["weight"], after["weight"])
    with pytest.raises(ValueError, match=r"problem 'p' changes batch\['x'\] in place"):
        engine.run(1)
    assert torch.equal(net.weight, after["weight"])


class Warming(nn.Module):
    """A scale that grows with every forward pass in training, by a buffer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -0.4]))
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, x):
        self.scale.mul_(1.5)
        return (x * self.weight * self.scale).sum(-1)


ONE_STEP = [darts(), darts(one_sided=True), t1t2(), sama(), unrolled(1), unrolled(), forward_mode()]


@pytest.mark.parametrize("method", ONE_STEP, ids=repr)
def test_buffers_stand_where_they_stood_in_the_step(method):
    net, weight = Warming(), parameters(torch.zeros(3))
    inputs, targets = torch.randn(3, 2), torch.randn(3)
    of_weight = sgd(weight, 0.0)
    seen = received(of_weight)
    lower = lambda _: (weight[0].exp() * (net(inputs) - targets).square()).mean()
    upper = lambda _: (net.weight - 1).square().sum()
    top = Problem("up", upper, [net, weight], of_weight, [None])
    below = Problem("lo", lower, [net, weight], sgd(net, 0.1), [None], method=method)
    start, scale = net.weight.detach().clone(), 1.5
    Engine(ProblemGraph([top, below])).run(1)
    w, logs = start.requires_grad_(), torch.zeros(3, requires_grad=True)
    loss = (logs.exp() * ((inputs * w * scale).sum(-1) - targets).square()).mean()
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    (right,) = torch.autograd.grad((w - 0.1 * g - 1).square().sum(), logs)
    assert relative_error(seen[0], right) < 1e-6
    assert net.scale.item() == 1.5


@pytest.mark.parametrize("source", ["torch", "numpy", "python", "generator", "numpy generator"])
@pytest.mark.parametrize(
    "method", [t1t2(), darts(), cg(2), unrolled(1), unrolled(checkpoint=True)], ids=repr
)
def test_every_source_of_noise_is_replayed(source, method):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    own, numbers = torch.Generator().manual_seed(0), np.random.default_rng(0)
    draw = {
        "torch": lambda: torch.randn(8, 4),
        "numpy": lambda: torch.from_numpy(np.random.randn(8, 4)),
        "python": lambda: torch.tensor([[random.gauss(0, 1) for _ in range(4)] for _ in range(8)]),
        "generator": lambda: torch.randn(8, 4, generator=own),
        "numpy generator": lambda: torch.from_numpy(numbers.standard_normal((8, 4))),
    }[source]
    net, weight, drawn = nn.Linear(4, 1), parameters(torch.zeros(8)), []
    inputs, targets = torch.randn(8, 4), torch.randn(8, 1)

    def lower(_):
        drawn.append(draw())
        errors = (net(inputs + 0.3 * drawn[-1]) - targets).square().squeeze(1)
        return (weight[0].sigmoid() * errors).mean() + 0.01 * net.weight.square().sum()

    upper = lambda _: (net(inputs) - targets).square().mean()
    top = Problem("u", upper, [net, weight], sgd(weight, 0.0), [None])
    below = Problem("l", lower, [net, weight], sgd(net, 0.1), [None], method=method)
    engine = Engine(ProblemGraph([top, below]))
    drawn.clear()
    engine.run(1)
    assert len(drawn) > 1 or method.requirements.graph  # or it is not evaluated again
    assert all(torch.equal(d, drawn[0]) for d in drawn)


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), lambda: random.random()])
def test_a_loss_that_begins_to_draw_late_meets_the_same_draws_again(draw):
    x, y = parameters(2.0), parameters(1.0)

    def lower(noisy):
        return 0.5 * (y[0] - x[0] * (1.0 + draw() if noisy else 1.0)) ** 2

    top, lr = sgd(x, 0.0), 0.1
    seen = received(top)
    upper = Problem("u", lambda _: y[0], [x, y], top, [None])
    below = Problem("l", lower, [x, y], sgd(y, lr), [False, True], method=t1t2())
    engine = Engine(ProblemGraph([upper, below]))
    engine.run(1)
    state = engine.recorder.moments["l"].draw.random_states[0]
    assert state.python is state.numpy is None
    before = y[0].item()
    engine.run(1)
    factor = ((y[0].item() - before) / lr + before) / x[0].item()  # of x, in the step that it took
    assert factor > 1.0
    assert seen[-1].item() == pytest.approx(lr * factor, rel=1e-12)


@pytest.mark.parametrize("method", [darts(), t1t2(), sama(), unrolled(1)], ids=repr)
def test_the_sign_is_that_of_each_parameter_one_step(method):
    got, x, y = mixed_signs(method)
    a = y[0] - 0.1 * 2 * (y[0] - x)
    b = y[1] + 0.1 * (-2 * (y[1] - x.sin()))
    (right,) = torch.autograd.grad(((a - 1) ** 2).sum() + ((b + 1) ** 2).sum(), x)
    assert relative_error(got, right) < 1e-8


@pytest.mark.parametrize("method", [dense(), minres(20)], ids=repr)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_sign_is_that_of_each_parameter_implicit(method, decay):
    got, x, y = mixed_signs(method, decay=decay, lr=0.0)
    # y0 minimises |y0 - x|^2 + decay/2 |y0|^2, y1 maximises -|y1 - sin x|^2 - decay/2 |y1|^2.
    factor = 2 / (2 + decay)
    right = factor * (2 * (y[0] - 1) + 2 * (y[1] + 1) * x.cos())
    assert relative_error(got, right.detach()) < 1e-8


def test_methods_that_descend_refuse_mixed_signs():
    with pytest.raises(ValueError, match="maximize=True in some parameter groups"):
        mixed_signs(f2sa())


def mixed_signs(method, *, decay=0.0, lr=0.1):
    """Return the hypergradient of a problem that minimises over one tensor and maximises over the
    other, with its point.
    """
    torch.manual_seed(0)
    x, y = parameters(torch.randn(3)), parameters(torch.randn(3), torch.randn(3))
    of_x = sgd(x, 0.0)
    seen = received(of_x)
    groups = [{"params": [y[0]]}, {"params": [y[1]], "maximize": True}]
    of_y = torch.optim.SGD(groups, lr, weight_decay=decay)
    lower = lambda _: ((y[0] - x[0]) ** 2).sum() - ((y[1] - x[0].sin()) ** 2).sum()
    upper = lambda _: ((y[0] - 1) ** 2).sum() + ((y[1] + 1) ** 2).sum()
    start = tuple(t.detach().clone() for t in y)
    top = Problem("x", upper, x, of_x, [None])
    Engine(ProblemGraph([top, Problem("y", lower, [x, y], of_y, [None], method=method)])).run(1)
    return seen[0], x[0].detach().clone().requires_grad_(), start


class Personal(nn.Module):
    """Two parameters that are added, so that they have one gradient tensor."""

    def __init__(self):
        super().__init__()
        self.shared, self.own = nn.Parameter(torch.ones(3) * 2), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x @ (self.shared + self.own)


@pytest.mark.parametrize("kind", ["clip", "nesterov", "expanded"])
def test_gradients_that_an_optimizer_gets_own_their_memory(kind):
    x, y = torch.randn(8, 3), torch.randn(8)

    def loss(net):
        if kind == "expanded":
            return net.shared.sum() + net.own.sum()
        return (net(x) - y).square().mean()

    def optimizer(net):
        momentum = (
            {"momentum": 0.9, "nesterov": True, "foreach": True} if kind == "nesterov" else {}
        )
        return torch.optim.SGD(net.parameters(), 0.1, **momentum)

    ours, plain = Personal(), Personal()
    made = optimizer(ours)
    if kind != "nesterov":

        def clip(*_):
            nn.utils.clip_grad_norm_(ours.parameters(), 0.5)

        made.register_step_pre_hook(clip)
    Engine(ProblemGraph([Problem("p", lambda _: loss(ours), ours, made, [None])])).run(1)
    step = optimizer(plain)
    loss(plain).backward()
    if kind != "nesterov":
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    step.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def hooked(method, kind):
    x, w = parameters(torch.tensor([1.0, 2.0])), parameters(torch.zeros(2))
    lower = sgd(w, 0.1)

    def clip(*_):
        nn.utils.clip_grad_norm_(w.parameters(), 0.1)

    def project(*_):
        w[0].data.clamp_(-0.1, 0.1)

    if kind == "clip":
        lower.register_step_pre_hook(clip)
    else:
        lower.register_step_post_hook(project)
    top = Problem("u", lambda _: (w[0] - 3).square().sum(), x, sgd(x, 0.0), [None])
    loss = lambda _: (w[0] - x[0]).square().sum()
    below = Problem("l", loss, [x, w], lower, [None], method=method)
    return Engine(ProblemGraph([top, below]))


@pytest.mark.parametrize("kind", ["clip", "project"])
@pytest.mark.parametrize("method", [darts(), t1t2(), cg(5), dense()], ids=repr)
def test_a_step_that_a_hook_has_a_hand_in_warns(method, kind):
    engine = hooked(method, kind)
    with pytest.warns(UserWarning, match=r"'l' ends .* away .*clipping, projection"):
        engine.run(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.run(1)  # said once


def test_a_hook_that_is_added_later_is_noticed():
    engine = hooked(darts(), "clip")
    lower = engine.graph["l"].optimizer
    (key,) = lower._optimizer_step_pre_hooks
    hook = lower._optimizer_step_pre_hooks.pop(key)
    engine.run(2)
    lower.register_step_pre_hook(hook)
    with pytest.warns(UserWarning, match="away from the plain update"):
        engine.run(1)


class Unknown(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * (p.grad + group["weight_decay"] * p)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_an_optimizer_of_which_nothing_is_known_warns_of_its_weight_decay(decay):
    x, w = parameters([1.0]), parameters([0.5])
    top = Problem("u", lambda _: w[0].square().sum(), x, sgd(x, 0.0), [None])
    loss = lambda _: (w[0] - x[0]).square().sum()
    optimizer = Unknown(w.parameters(), 0.1, decay)
    engine = Engine(ProblemGraph([top, Problem("l", loss, w, optimizer, [None], method=cg(2))]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.run(1)
    assert bool(caught) == bool(decay)
    assert all("register_update" in str(w.message) for w in caught)


@pytest.mark.parametrize("change", ["add", "freeze"])
def test_parameters_that_come_or_go_are_noticed(change):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = sgd(net[1], 0.1)
    problem = Problem("p", lambda _: net(torch.ones(3, 2)).square().mean(), net, optimizer, [None])
    engine = Engine(ProblemGraph([problem]))
    engine.run(1)
    if change == "add":
        optimizer.add_param_group({"params": list(net[0].parameters())})
    else:
        net[1].bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"optimizer of problem 'p' holds .*build the Problem"):
        engine.run(1)


def test_a_gradient_that_is_not_finite_stops_before_it_is_written():
    y = parameters([0.0, 1.0])
    loss = lambda _: y[0].square().sqrt().sum()  # 0, with the slope 0/0
    engine = Engine(ProblemGraph([Problem("p", loss, y, sgd(y, 0.1), [None])]))
    with pytest.raises(FloatingPointError, match="the gradient of the loss of problem 'p'"):
        engine.run(1)
    assert y[0].tolist() == [0.0, 1.0]


def test_a_hypergradient_that_is_not_finite_stops_before_it_is_written():
    class Broken:
        requirements = cg().requirements

        def response(self, context, cotangent, state):
            value, state, info = cg().response(context, cotangent, state)
            return type(cg().response(context, cotangent, None))(
                tuple(v * math.nan for v in value), state, info
            )

    x, y = parameters([1.0]), parameters([0.5])
    top = Problem("x", lambda _: y[0].square().sum(), x, sgd(x, 0.1), [None])
    loss = lambda _: (y[0] - x[0]).square().sum()
    engine = Engine(
        ProblemGraph([top, Problem("y", loss, y, sgd(y, 0.1), [None], method=Broken())])
    )
    with pytest.raises(FloatingPointError, match="the hypergradient of problem 'x' is not finite"):
        engine.run(1)
    assert x[0].item() == 1.0


@pytest.mark.parametrize("scale", [1e25, 1e-30])
@pytest.mark.parametrize("method", [darts(), darts(one_sided=True), sama(), cg(3)], ids=repr)
def test_upper_losses_of_any_size_have_the_same_direction(method, scale):
    def run(scale):
        x, y = parameters(torch.tensor([1.0]).float()), parameters(torch.tensor([0.5]).float())
        of_x = sgd(x, 0.0)
        seen = received(of_x)
        top = Problem("x", lambda _: scale * (y[0] - 3).square().sum(), x, of_x, [None])
        loss = lambda _: (y[0] - x[0].sin()).square().sum()
        below = Problem("y", loss, y, sgd(y, 0.1), [None], method=method)
        Engine(ProblemGraph([top, below])).run(1)
        return seen[0].double() / scale

    assert relative_error(run(scale), run(1.0)) < 1e-2


def test_gradients_are_taken_inside_no_grad():
    x, y = parameters([1.0]), parameters([0.5])
    top = Problem("x", lambda _: (y[0] - 3).square().sum(), x, sgd(x, 0.1), [None])
    loss = lambda _: (y[0] - x[0]).square().sum()
    with torch.no_grad():
        graph = ProblemGraph([top, Problem("y", loss, y, sgd(y, 0.1), [None], method=cg(3))])
        Engine(graph).run(2)
    assert x[0].item() != 1.0


def test_a_state_is_a_copy_in_and_out():
    def engine():
        torch.manual_seed(0)
        net, weight = nn.Linear(3, 1), parameters(torch.zeros(4))
        inputs, targets = torch.randn(4, 3), torch.randn(4, 1)
        upper = lambda _: (net(inputs) - targets).square().mean()
        lower = lambda _: (
            (weight[0].exp() * (net(inputs) - targets).square().squeeze(1)).mean()
            + net.weight.square().sum()
        )
        adam = lambda module: torch.optim.Adam(module.parameters(), 0.1)
        top = Problem("u", upper, [net, weight], adam(weight), [None])
        below = Problem("l", lower, [net, weight], adam(net), [None], method=cg(3, warm_start=True))
        return Engine(ProblemGraph([top, below])), weight

    made, weight = engine()
    made.run(2)
    state = made.state_dict()
    made.run(4)
    right = weight[0].detach().clone()
    for _ in range(2):
        made.load_state_dict(state)
        made.run(4)
        assert torch.equal(weight[0], right)


def test_a_state_of_another_version_is_refused():
    y = parameters([1.0])
    made = Engine(
        ProblemGraph([Problem("p", lambda _: y[0].square().sum(), y, sgd(y, 0.1), [None])])
    )
    with pytest.raises(ValueError, match="state has version 99"):
        made.load_state_dict({**made.state_dict(), "version": 99})
