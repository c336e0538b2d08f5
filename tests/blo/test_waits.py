"""How often an update waits for its device: each number that is read from a tensor drains the queue
of an accelerator, so that one wait an update, after its backward pass, is what it should take.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import blo
from blo import Engine, Problem, ProblemGraph
from blo.passes import Evaluation

# What reads a number, an answer or a length that depends on values from a tensor.
READING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique"}


class Waits(TorchDispatchMode):
    """Counts the reads of tensors within the block."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        plain = torch.Tensor.tolist

        def tolist(tensor):  # dispatches nothing on the CPU
            self.count += 1
            return plain(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name.removeprefix("aten::") in READING
        return func(*args, **(kwargs or {}))


def engine_of(method, *, steps=1, **settings):
    """An engine with four weights above and a network of two layers below, strongly convex."""
    torch.manual_seed(0)
    x = nn.ParameterList([torch.zeros(4).double()])
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    inputs, targets = torch.randn(4, 3).double(), torch.randn(4, 1).double()

    def lower(_):
        size = sum(p.square().sum() for p in net.parameters())
        return (x[0].sigmoid() * (net(inputs) - targets).square().squeeze(1)).mean() + size

    upper = lambda _: (net(inputs + 0.1) - targets).square().mean()
    above = torch.optim.SGD(x.parameters(), 0.1)
    below = torch.optim.SGD(net.parameters(), 0.05)
    problems = [
        Problem("upper", upper, [x, net], above, [None]),
        Problem("lower", lower, [x, net], below, [None], steps=steps, method=method, **settings),
    ]
    return Engine(ProblemGraph(problems))


def waits_of(monkeypatch, method, **settings):
    """The waits of a lower and of an upper update, in the third round: what is done once is done
    then.
    """
    engine = engine_of(method, **settings)
    engine.run(2)
    counts = {}
    for name in ("lower", "upper"):
        with Waits(monkeypatch) as waits:
            engine.step(name)
        counts[name] = waits.count
    return counts["lower"], counts["upper"]


# Waits of a lower and of an upper update, that of the engine included. One-step methods need the
# radius of their difference, or Adam's derivative; steps taken again are compared with where the
# optimizer went. A solver reads the size of its right-hand side, and its residual (with the
# curvature before the update: CG, MINRES, BiCGSTAB) in each iteration.
PINNED = {
    "alternating": (blo.alternating(), 1, 1),
    "t1t2": (blo.t1t2(), 1, 1),
    "darts": (blo.darts(), 1, 2),
    "darts, one-sided": (blo.darts(one_sided=True), 1, 2),
    "sama": (blo.sama(), 1, 3),
    "unrolled": (blo.unrolled(), 1, 2),
    "unrolled, checkpoints": (blo.unrolled(checkpoint=True), 1, 2),
    "forward mode": (blo.forward_mode(), 1, 2),
    "neumann, 4 products": (blo.neumann(4, scale=0.05, rtol=0.0), 1, 1 + 1 + 4),
    "cg, 4 products": (blo.cg(4, rtol=0.0), 1, 1 + 1 + 2 * 4),
    "minres, 4 products": (blo.minres(4, rtol=0.0), 1, 1 + 2 + 2 * 4),
    "gmres, 4 products": (blo.gmres(4, rtol=0.0), 1, 1 + 2 + 4),
    "bicgstab, 4 products": (blo.bicgstab(4, rtol=0.0), 1, 1 + 1 + 2 * 4),
    "nystrom": (blo.nystrom(2), 1, 8),
    "dense": (blo.dense(), 1, 1 + 1 + 2),
    "soba": (blo.soba(), 1, 1 + 2),
    "f2sa, 3 steps on two sides": (blo.f2sa(3), 1, 1 + 13),
    "pbgd, 3 steps": (blo.pbgd(num_steps=3), 1, 1 + 11),
}


@pytest.mark.parametrize("name", PINNED)
def test_an_update_waits_as_often_as_it_is_pinned_to(monkeypatch, name):
    method, *pinned = PINNED[name]
    assert waits_of(monkeypatch, method) == tuple(pinned)


def test_nothing_is_read_before_the_backward_pass(monkeypatch):
    engine = engine_of(blo.alternating())
    engine.run(2)
    plain, seen = torch.autograd.grad, []
    with Waits(monkeypatch) as waits:

        def grad(*args, **kwargs):
            found = plain(*args, **kwargs)
            seen.append(waits.count)
            return found

        monkeypatch.setattr(torch.autograd, "grad", grad)
        engine.step("lower")
    assert seen == [0]
    assert waits.count == 1


def test_a_loss_of_several_batches_with_metrics_is_read_once(monkeypatch):
    engine = engine_of(blo.t1t2(), accumulate=3)
    problem = engine.graph["lower"]
    plain = problem.loss

    def loss(batch):
        value = plain(batch)
        return {"loss": value, "half": value / 2, "doubled": 2 * value.detach().float()}

    problem.loss = loss
    engine.run(2)
    with Waits(monkeypatch) as waits:
        total = engine.step("lower")
    assert waits.count == 1
    assert total.metrics == pytest.approx({"half": total.loss / 2, "doubled": 2 * total.loss})


def test_the_numbers_of_an_evaluation_are_read_in_their_places():
    """Against numbers written by hand; types are mixed, rows of sparse gradients come twice."""
    rows, values = torch.tensor([[0, 2, 0]]), torch.tensor([[3.0], [4.0], [-6.0]])
    sparse = torch.sparse_coo_tensor(rows, values, (3, 1), check_invariants=True)
    exact = torch.tensor(1 + 2.0**-40, dtype=torch.float64)
    evaluation = Evaluation(
        losses=(torch.tensor(1.0), torch.tensor(5.0)),
        metrics={"first": exact, "counted": 7, "last": torch.tensor(0.25)},
        grads={"a": (torch.tensor([2.0]), None), "b": (sparse, torch.tensor([1.0, -4.0]).double())},
        random_states=(),
        buffers=(),
        buffers_after={},
        found=(),
    )
    loss, size, response, metrics = evaluation.read((torch.tensor([6.0]), None, torch.ones(64)))
    assert (loss, response) == (3.0, 10.0)
    assert size == pytest.approx((2**2 + 3**2 + 4**2 + 1 + 4**2) ** 0.5, rel=1e-12)
    assert list(metrics.items()) == [("first", 1 + 2.0**-40), ("counted", 7.0), ("last", 0.25)]


METHODS = [blo.darts(), blo.unrolled(), blo.cg(4), blo.cg(4, warm_start=True), blo.f2sa(3)]


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_not_finite_is_named_before_what_a_method_makes_of_it(method):
    engine = engine_of(method)
    engine.run(1)
    problem = engine.graph["upper"]
    plain, values = problem.loss, [p.detach().clone() for p in problem.parameters]
    states = dict(engine.method_states)
    problem.loss = lambda batch: plain(batch) * float("nan")
    with pytest.raises(FloatingPointError, match="loss of problem 'upper' is nan in round 2"):
        engine.run(1)
    assert all(map(torch.equal, values, problem.parameters))
    assert engine.method_states == states
