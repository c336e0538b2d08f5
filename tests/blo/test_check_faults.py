"""Faults of the engine, planted again, are named by the check; correct problems pass, and where no
comparison is possible the report says why.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

import blo.adjoints
from blo import (
    Engine,
    Problem,
    ProblemGraph,
    cg,
    check_hypergradient,
    darts,
    dense,
    sama,
    t1t2,
    unrolled,
)
from blo.adjoints import Sight, Standing


def tensors(*values):
    return nn.ParameterList([nn.Parameter(torch.as_tensor(v).double().clone()) for v in values])


def sgd(module, lr=0.1):
    return torch.optim.SGD(module.parameters(), lr)


def siblings(method):
    """`p` and `r` side by side above `q`: `p` has moved when `r` asks for the response."""
    x, p, r, q = (tensors([v]) for v in (0.1, 0.5, 0.7, 0.2))
    f = lambda _: (p[0] + r[0] - x[0]).square().sum()
    of_p = lambda _: (q[0] - 1).square().sum() + (p[0] - x[0]).square().sum()
    of_r = lambda _: (q[0] + 1).square().sum() + (r[0] - x[0]).square().sum()
    of_q = lambda _: (q[0] - p[0].sin() * r[0]).square().sum()
    middle = (Problem("p", of_p, p, sgd(p), [None]), Problem("r", of_r, r, sgd(r), [None]))
    top, bottom = (
        Problem("x", f, x, sgd(x), [None]),
        Problem("q", of_q, q, sgd(q), [None], method=method),
    )
    return Engine(ProblemGraph([top, middle, bottom]))


class Warming(nn.Linear):
    """A layer whose output grows with every call, as its buffer says."""

    def __init__(self):
        super().__init__(6, 2)
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x):
        self.factor += 0.3
        return self.factor * super().forward(x)


def weighted(method, *, edits=False, warming=False):
    """A network below one weight an example; its loss edits its batch, or has buffers it uses."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator).double()
    net = (Warming() if warming else nn.Linear(6, 2)).double()
    weights = tensors(torch.zeros(5))
    inputs, targets, held, answers = normal(5, 6), normal(5, 2), normal(7, 6), normal(7, 2)

    def g(batch):
        x = batch["x"].mul_(0.5) if edits else batch["x"]
        return (weights[0].exp() * ((net(x) - targets) ** 2).mean(1)).mean()

    f = lambda _: ((net(held) - answers) ** 2).mean()
    top = Problem("up", f, [net, weights], sgd(weights), [None])
    low = Problem("lo", g, [net, weights], sgd(net), [{"x": inputs}], method=method)
    return Engine(ProblemGraph([top, low]))


def mixed(method):
    """A lower problem minimised over one tensor, maximised over the other."""
    x, y = tensors([0.3, -0.5, 1.0]), tensors([0.2, 0.1, 0.4], [1.0, -1.0, 0.5])
    f = lambda _: ((y[0] - 1) ** 2).sum() + ((y[1] + 1) ** 2).sum()
    g = lambda _: ((y[0] - x[0]) ** 2).sum() - ((y[1] - x[0].sin()) ** 2).sum()
    below = torch.optim.SGD([{"params": [y[0]]}, {"params": [y[1]], "maximize": True}], lr=0.1)
    top = Problem("x", f, x, sgd(x), [None])
    return Engine(ProblemGraph([top, Problem("y", g, [x, y], below, [None], method=method)]))


STEPPED = [darts(), darts(one_sided=True), t1t2(), sama(), unrolled(1)]


@pytest.mark.parametrize("method", STEPPED, ids=repr)
def test_siblings_that_move_are_no_fault(method):
    report = check_hypergradient(siblings(method), problem="r", to_solution=False)
    assert report.passed, str(report)


@pytest.mark.parametrize("method", STEPPED, ids=repr)
def test_mixed_signs_and_edited_batches_are_no_fault(method):
    for engine in (mixed(method), weighted(method, edits=True)):
        report = check_hypergradient(engine, to_solution=False)
        assert report.passed, str(report)


def test_values_of_siblings_that_are_dropped_are_named(monkeypatch):
    during = lambda self, moment, *, moves: Standing(dict(self.values), moment.below, moves)
    monkeypatch.setattr(Standing, "during", during)
    report = check_hypergradient(siblings(darts()), problem="r", to_solution=False)
    assert not report.passed
    assert "the problems ['p'], which have moved" in report.seen[0]


def test_an_edited_batch_that_the_engine_does_not_know_of_is_named():
    engine = weighted(darts(), edits=True)
    engine.graph["lo"].edits_batch = False
    report = check_hypergradient(engine, to_solution=False)
    assert not report.passed
    assert "the loss of 'lo' changes batch['x'] in place" in report.seen[0]


def test_buffers_that_are_not_put_back_are_named(monkeypatch):
    right = check_hypergradient(weighted(darts(), warming=True), to_solution=False)
    assert right.passed, str(right)
    losses = Sight.losses
    planted = lambda *a, **k: tuple(replace(loss, buffers=None) for loss in losses(*a, **k))
    monkeypatch.setattr(blo.adjoints.Sight, "losses", planted)
    report = check_hypergradient(weighted(darts(), warming=True), to_solution=False)
    assert not report.passed
    assert "the buffers that the losses of" in report.seen[0]


def test_one_sign_for_all_groups_is_named(monkeypatch):
    engine = mixed(darts())
    monkeypatch.setattr(blo.derivatives.lower.LowerObjective, "directed", lambda self, v: v)
    report = check_hypergradient(engine, to_solution=False)
    assert not report.passed
    assert "leaves out the signs of ['y']" in report.seen[0]


@pytest.mark.filterwarnings("ignore:a step of the optimizer")
def test_a_step_that_a_hook_has_changed_is_named():
    x, w = tensors([1.0, 2.0]), tensors([0.0, 0.0])
    below = sgd(w)
    below.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(w.parameters(), 0.1) and None)
    f, g = lambda _: (w[0] - 3).square().sum(), lambda _: (w[0] - x[0]).square().sum()
    top = Problem("u", f, [x, w], sgd(x, 0.0), [None])
    engine = Engine(ProblemGraph([top, Problem("l", g, [x, w], below, [None], method=darts())]))
    before = check_hypergradient(engine, to_solution=False)
    assert any("has hooks, which the check does not run" in note for note in before.notes)
    engine.run(1)
    report = check_hypergradient(engine, to_solution=False)
    assert not report.passed
    assert "the optimizer of 'l' did something besides its update" in report.symptoms()[0]


@pytest.mark.parametrize("x", [1.0, 0.0, -2.5])
def test_an_exact_minimiser_is_no_fault(x):
    f, g = lambda x, y: (y[0] - 1) ** 2, lambda x, y: (y[0] - 3 * x[0]) ** 2
    upper, lower = (torch.tensor(x).double(),), (torch.tensor(3 * x).double(),)
    report = check_hypergradient(f, g, upper, lower, method=cg(3))
    assert report.passed, str(report)


@pytest.mark.parametrize(
    "g, why",
    [
        (lambda x, y: (y[0] - 30 * x[0]).sqrt().sum(), "the loss of 'lower' is nan"),
        (lambda x, y: (y[0] * x[0]).sum(), "is inf where the lower problems were put"),
    ],
    ids=["nan", "no minimum"],
)
def test_where_nothing_can_be_compared_the_report_says_why(g, why):
    f = lambda x, y: ((y[0] - 1) ** 2).sum()
    x, y = (torch.tensor(1.0).double(),), (torch.ones(2).double(),)
    report = check_hypergradient(f, g, x, y, method=dense())
    assert not report
    assert why in report.reason
    assert why in str(report)


def test_terms_that_are_detached_on_purpose_are_a_note():
    f = lambda x, y: ((y[0] - 1) ** 2).sum()
    g = lambda x, y: ((y[0] - x[0]) ** 2).sum() + x[0].detach().square().sum()
    x, y = (torch.tensor([0.5, 1.0]).double(),), (torch.zeros(2).double(),)
    assert "'lower' is" in check_hypergradient(f, g, x, y, method=dense()).symptoms()[0]
    report = check_hypergradient(f, g, x, y, method=dense(), detached=["lower"])
    assert report.passed, str(report)
    assert "as was declared" in str(report)
