"""Faults of the engine's first version, planted again, each named by the check."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import blo.adjoints
import blo.derivatives.composed
import blo.derivatives.differences
import blo.derivatives.random_state
import blo.passes
import blo.problem
from blo import (
    Engine,
    Problem,
    ProblemGraph,
    cg,
    check_hypergradient,
    darts,
    dense,
    minres,
    sama,
    t1t2,
    unrolled,
)


def tensors(*values):
    return nn.ParameterList([nn.Parameter(torch.as_tensor(v).double().clone()) for v in values])


def sgd(module, lr=0.1, **options):
    return torch.optim.SGD(module.parameters(), lr, **options)


def fitted(method, *, optimizer=sgd, f=None, g=None, y=(0.2, -0.1), batches=(None,), **problem):
    """A quadratic below two numbers, which do not move; the engine and the lower tensors."""
    x, y = tensors([0.5, -1.0]), tensors(list(y))
    f = f or (lambda _: (y[0] - 1).square().sum())
    g = g or (lambda _, x, y: (y[0] - x[0].sin()).square().sum())
    top = Problem("x", f, [x, y], sgd(x, 0.0), [None])
    loss = lambda batch: g(batch, x, y)
    low = Problem("y", loss, [x, y], optimizer(y), batches, method=method, **problem)
    return Engine(ProblemGraph([top, low])), y


def named(engine, words, **settings):
    """Whether the check fails and says so in these words."""
    report = check_hypergradient(engine, **settings)
    assert not report.passed
    assert any(words in symptom for symptom in report.symptoms()), str(report)


def passes(engine, **settings):
    report = check_hypergradient(engine, **settings)
    assert report.passed, str(report)
    return report


class Boxed(torch.optim.SGD):
    """Keeps its parameters in a box, in its own step."""

    def __init__(self, params, lr, bound):
        super().__init__(params, lr)
        self.bound = bound

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.clamp_(-self.bound, self.bound)


def test_optimizers_with_attributes_of_their_own_and_schedulers_are_copied():
    for method, make in (
        (darts(), lambda y: Boxed(y.parameters(), 0.1, 0.05)),
        (unrolled(), sgd),
    ):
        engine, _ = fitted(method, steps=2, optimizer=make)
        low = engine.graph["y"]
        low.scheduler = torch.optim.lr_scheduler.StepLR(low.optimizer, 1)  # patches its step
        passes(engine, to_solution=False)


def late(method):
    """`z` reads `x` on its second batch alone, and `y` on both."""
    x, y, z = tensors([0.5]), tensors([0.2]), tensors([0.1])
    f = lambda _: (z[0] - 1).square().sum() + (y[0] - 2).square().sum()
    of_y = lambda _: (y[0] - x[0].sin()).square().sum()
    of_z = lambda batch: (z[0] - y[0] - (3 * x[0] if batch else 0)).square().sum()
    problems = [
        Problem("x", f, x, sgd(x, 0.0), [None]),
        Problem("y", of_y, y, sgd(y), [None], method=cg(5)),
        Problem("z", of_z, z, sgd(z), [0, 1], method=method),
    ]
    return Engine(ProblemGraph(problems))


@pytest.mark.parametrize("method", [cg(5), t1t2()], ids=repr)
def test_reads_on_later_batches(method, monkeypatch):
    words = "the loss of 'z' reads ['x'] on later batches"
    report = passes(late(method))
    assert any(words in note for note in report.notes)
    monkeypatch.setattr(blo.passes, "_leaves_of", lambda loss, ends: set())
    named(late(method), words)


def test_a_start_from_the_upper(monkeypatch):
    x = tensors([0.5, -1.0])

    def engine():
        y = tensors([0.2, -0.1])
        f = lambda _: (y[0] - 1).square().sum()
        g = lambda _: (y[0] - x[0]).square().sum()
        top = Problem("x", f, [x, y], sgd(x, 0.0), [None])
        start = lambda: [2 * x[0]]
        low = Problem("y", g, [x, y], sgd(y), [None], method=unrolled(), steps=3, start=start)
        return Engine(ProblemGraph([top, low]))

    passes(engine())
    right = blo.adjoints.Sight.history
    planted = lambda *args: replace(right(*args), start_of=None)
    monkeypatch.setattr(blo.adjoints.Sight, "history", planted)
    named(engine(), "leaves out the start of ['y']")


class Wrapped(torch.optim.Optimizer):
    """An optimizer around another, as accelerate makes them."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    step = lambda self: self.optimizer.step()


@pytest.mark.filterwarnings("ignore:nothing is known of")
def test_a_wrapper_that_hides_a_weight_decay(monkeypatch):
    make = lambda: fitted(dense(), optimizer=lambda y: Wrapped(sgd(y, weight_decay=0.7)))[0]
    passes(make())
    monkeypatch.setattr(blo.problem, "unwrapped", lambda optimizer: optimizer)
    named(make(), "the optimizer of 'y' did something besides its update: nothing is known of")


@pytest.mark.filterwarnings("ignore:a step of the optimizer")
@pytest.mark.parametrize(
    "kind, method", [("clip", cg(5)), ("projection", cg(5)), ("projection", darts())], ids=repr
)
def test_hooks(kind, method):
    engine, y = fitted(method)
    optimizer = engine.graph["y"].optimizer
    if kind == "clip":
        clip = lambda *_: nn.utils.clip_grad_norm_(y.parameters(), 0.1) and None
        optimizer.register_step_pre_hook(clip)
    else:
        clamp = lambda *_: y[0].data.clamp_(-0.01, 0.01) is None and None
        optimizer.register_step_post_hook(clamp)
    engine.run(1)
    named(engine, "the optimizer of 'y' did something besides its update", to_solution=False)


@pytest.mark.filterwarnings("ignore:a step of the optimizer")
def test_gradients_that_share_memory(monkeypatch):
    def engine():
        x, y = tensors([0.5, -1.0]), tensors([0.2, -0.1], [0.3, 0.4])
        f = lambda _: (y[0] + y[1] - 1).square().sum()
        g = lambda _: (y[0] + y[1] - x[0]).square().sum()
        optimizer = sgd(y, momentum=0.9, nesterov=True, foreach=True)
        top = Problem("x", f, [x, y], sgd(x, 0.0), [None])
        return Engine(
            ProblemGraph([top, Problem("y", g, [x, y], optimizer, [None], method=darts())])
        )

    right = engine()
    right.run(1)
    passes(right, to_solution=False)
    monkeypatch.setattr(blo.problem, "owned", list)
    wrong = engine()
    wrong.run(1)
    named(wrong, "the optimizer of 'y' did something besides its update", to_solution=False)


def test_noise_of_numpy_that_is_not_replayed(monkeypatch):
    noisy = lambda _, x, y: (y[0] - x[0].sin() * torch.from_numpy(np.random.rand(2))).square().sum()
    passes(fitted(t1t2(), g=noisy)[0])
    monkeypatch.setattr(blo.derivatives.random_state, "_numpy", lambda: None)
    named(fitted(t1t2(), g=noisy)[0], "draws from a generator that is not replayed")


def saddle(method, decay=0.0):
    """Minimised over one tensor, maximised over the other, short of the saddle."""
    x, y = tensors([0.3, -0.5]), tensors([0.2, 0.1], [1.0, -1.0])
    f = lambda _: (y[0] - 1).square().sum() + (y[1] + 1).square().sum()
    g = lambda _: (
        (y[0] - x[0]).square().sum() - (y[1] - x[0].sin()).square().sum() + y[0] @ y[1].sin()
    )
    groups = [{"params": [y[0]]}, {"params": [y[1]], "maximize": True}]
    below = torch.optim.SGD(groups, lr=0.1, weight_decay=decay)
    top = Problem("x", f, x, sgd(x), [None])
    return Engine(ProblemGraph([top, Problem("y", g, [x, y], below, [None], method=method)]))


@pytest.mark.parametrize("method", [dense(), minres(20)], ids=["dense", "minres"])
def test_saddles_are_solved_again(method):
    assert not check_hypergradient(saddle(method, decay=0.3)).symptoms(1e-6)


def test_a_second_derivative_that_torch_has_wrong(monkeypatch):
    inputs, targets = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0)).double()
    scale, centre = torch.tensor([[0.7], [1.2]]).double(), torch.tensor([0.3, -0.7, 0.5, 0.2])

    def g(_, x, y):
        weight = torch._weight_norm(y[0].view(2, 2), scale, 0)
        fit = (x[0].exp() * (torch.tanh(inputs @ weight.T) - targets).square().mean(0)).sum()
        return fit + (y[0] - centre).square().sum()

    make = lambda: fitted(dense(), g=g, y=(0.3, -0.7, 0.5, 0.2))[0]
    passes(make())
    composed = blo.derivatives.composed
    monkeypatch.setattr(composed, "_table", lambda order: {})
    monkeypatch.setattr(composed, "_nodes", lambda order: {})
    named(make(), "the second derivatives of 'y' that its method takes")


def test_a_third_derivative_that_torch_has_wrong(monkeypatch):
    # The middle problem's second derivatives hold third ones of the normalised loss below it.
    shift = torch.tensor([[0.5, -0.3, 1.1]]).double()

    def engine():
        x, y, z = tensors([0.4]), tensors([0.2]), tensors(shift.cos())
        f = lambda _: z[0].square().sum() + (y[0] - 1).square().sum()
        above = lambda: 0.3 * z[0].sin().sum() * y[0].cos().sum()
        of_y = lambda _: 3 * (y[0] - x[0]).square().sum() + above()
        normed = lambda: torch.instance_norm(
            (z[0] + shift * y[0])[None], None, None, None, None, True, 0.0, 1e-5, False
        )
        pulled = lambda: 3 * (z[0] - y[0] - x[0]).square().sum()
        of_z = lambda _: (normed()[0] - shift.sin()).square().sum() + pulled()
        problems = [
            Problem("x", f, x, sgd(x, 0.0), [None]),
            Problem("y", of_y, y, sgd(y, 0.0), [None], method=dense()),
            Problem("z", of_z, z, sgd(z, 0.0), [None], method=dense()),
        ]
        return Engine(ProblemGraph(problems))

    passes(engine())
    composed = blo.derivatives.composed
    monkeypatch.setattr(composed, "_table", lambda order: {})
    monkeypatch.setattr(composed, "_nodes", lambda order: {})
    named(engine(), "the second derivatives of 'y' that its method takes")


def test_a_radius_that_does_not_fit(monkeypatch):
    g = lambda _, x, y: (x[0] * y[0].sin()).square().sum()
    passes(fitted(darts(), g=g)[0], to_solution=False)
    rules = {torch.float64: (5.0, 5.0)}
    monkeypatch.setattr(blo.derivatives.differences, "DEFAULT_RADIUS", rules)
    named(
        fitted(darts(), g=g)[0],
        "the second derivatives of 'y' that its method takes",
        to_solution=False,
    )


def test_parameters_that_were_added_later():
    engine = fitted(cg(5))[0]
    engine.graph["y"].optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    named(engine, "the optimizer of 'y' holds other parameters than when")


def middle(method):
    """`y` reads `z` below it, whose solution is x y^2."""
    x, y, z = tensors([0.5]), tensors([0.3]), tensors([0.0])
    f = lambda _: (y[0] - 2).square().sum()
    of_y = lambda _: ((y[0] - x[0]).square() + (z[0] - 1).square()).sum()
    of_z = lambda _: (z[0] - x[0] * y[0].square()).square().sum()
    problems = [
        Problem("x", f, x, sgd(x, 0.0), [None]),
        Problem("y", of_y, y, sgd(y), [None], method=method),
        Problem("z", of_z, z, sgd(z), [None], method=cg(3)),
    ]
    return Engine(ProblemGraph(problems))


@pytest.mark.parametrize("method", [sama(), t1t2()], ids=repr)
def test_solutions_below_that_stay_where_the_middle_moves(method, monkeypatch):
    passes(middle(method), to_solution=False)
    right = blo.adjoints.Standing.during
    planted = lambda *args, moves: right(*args, moves=False)
    monkeypatch.setattr(blo.adjoints.Standing, "during", planted)
    report = check_hypergradient(middle(sama()), to_solution=False)
    assert report.relative_error > 1e-3, str(report)
