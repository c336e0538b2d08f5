"""Graphs of lower steps that are kept until their derivative is asked for."""

from __future__ import annotations

import pytest
import torch
from oracles import relative_error
from torch import nn
from torch.utils.checkpoint import checkpoint

import blo
from blo import Engine, Problem, ProblemGraph, t1t2, unrolled
from blo.derivatives.composed import composing
from blo.derivatives.graphs import GradientGraph
from blo.derivatives.kept import KeptGraph, Pieces
from blo.derivatives.reduction import LOCAL

METHODS = {"t1t2": t1t2(), "unrolled": unrolled()}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Weighted:
    """A network of two layers, with an example weight each above."""

    def __init__(
        self,
        method,
        *,
        through=lambda f, x: f(x),
        norm=None,
        dropout=0.0,
        make_optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.5),
        batches=(range(8),),
    ) -> None:
        torch.manual_seed(0)
        self.weights = nn.ParameterList([torch.zeros(8).double()])
        parts = [nn.Linear(3, 4), nn.Tanh(), *([] if norm is None else [norm]), nn.Linear(4, 1)]
        self.net = nn.Sequential(*parts, nn.Dropout(dropout)).double()
        inputs, targets = torch.randn(8, 3).double(), torch.randn(8, 1).double()
        self.seen = []

        def lower(rows):
            found = through(self.net, inputs[rows])
            errors = (found - targets[rows]).square().squeeze(1)
            return (self.weights[0][rows].sigmoid() * errors).mean()

        above = torch.optim.SGD(self.weights.parameters(), 1.0)
        above.register_step_pre_hook(lambda *_: self.seen.append(self.weights[0].grad.clone()))
        below = make_optimizer(self.net.parameters())
        given = [torch.tensor(rows) for rows in batches]
        share = {"steps": 3, "accumulate": len(given), "method": method}
        modules = [self.net, self.weights]
        upper = lambda batch: self.net(inputs + 0.1).square().mean()
        self.engine = Engine(
            ProblemGraph(
                [
                    Problem("upper", upper, modules, above, [None]),
                    Problem("lower", lower, modules, below, given, **share),
                ]
            )
        )

    def run(self, num_rounds=2):
        """The hypergradients of some rounds, and the number of gradients of the last response."""
        record = self.engine.run(num_rounds)
        return torch.stack(self.seen), record.responses["upper <- lower"].num_gradients


def forgetful(monkeypatch):
    """Keep no graph."""
    monkeypatch.setattr(blo.recording.Recorder, "graph_for", lambda *_: None)


@methods
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_kept_graph_gives_what_one_built_anew_does(monkeypatch, method, dropout):
    kept, cost = Weighted(method, dropout=dropout).run()
    assert cost == 0
    forgetful(monkeypatch)
    anew, cost = Weighted(method, dropout=dropout).run()
    assert cost == (1 if method == t1t2() else 3)
    torch.testing.assert_close(kept, anew, rtol=1e-12, atol=1e-14)


@methods
def test_a_checkpointed_module_is_evaluated_again_at_the_parameters_of_the_step(method):
    through = lambda net, x: checkpoint(net, x, use_reentrant=False)
    found, cost = Weighted(method, through=through).run()
    expected, _ = Weighted(method).run()
    assert cost == 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.RMSprop])
def test_the_graphs_of_accumulated_batches_are_kept_together(monkeypatch, optimizer, recomputed):
    def through(net, x):  # Python runs in the backward pass of the first batch alone
        again = recomputed and len(x) == 5
        return checkpoint(net, x, use_reentrant=False) if again else net(x)

    settings = {
        "through": through,
        "batches": (range(5), range(5, 8)),
        "make_optimizer": lambda parameters: optimizer(parameters, 0.05),
    }
    found, cost = Weighted(unrolled(), **settings).run()
    assert cost == 0
    forgetful(monkeypatch)
    expected, _ = Weighted(unrolled(), **settings).run()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@methods
def test_no_graph_is_kept_of_a_loss_that_changes_buffers(method):
    found, cost = Weighted(method, norm=nn.BatchNorm1d(4)).run()
    assert cost == (1 if method == t1t2() else 3)
    assert torch.isfinite(found).all()


def test_no_graph_is_kept_of_an_embedding_with_sparse_gradients():
    x, table = nn.ParameterList([torch.tensor(0.5)]), nn.Embedding(4, 2, sparse=True)
    rows = torch.tensor([1, 3])
    upper = Problem(
        "upper", lambda _: table(rows).sum(), [x, table], torch.optim.SGD(x.parameters(), 0.1), [0]
    )
    lower = Problem(
        "lower",
        lambda _: (table(rows) - x[0]).square().sum(),
        [x, table],
        torch.optim.SparseAdam(list(table.parameters())),
        [0],
        method=t1t2(scale=0.1),
    )
    record = Engine(ProblemGraph([upper, lower])).run(1)
    assert record.responses["upper <- lower"].num_gradients == 1


def test_hooks_that_edit_the_gradient_do_not_reach_the_graph():
    def build(*, hook):
        built = Weighted(t1t2())
        optimizer = built.engine.graph["lower"].optimizer

        def zero(*_):
            for parameter in built.net.parameters():
                parameter.grad.zero_()

        if hook:
            optimizer.register_step_pre_hook(zero)
        return built

    with pytest.warns(UserWarning, match="ends .* away from the plain update"):
        found, _ = build(hook=True).run(1)
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0


def kept_of(x, y):
    """The gradient of ``(x y)^2 / 2`` for y, kept."""
    graph = KeptGraph.begin(
        {"x": (x.detach().requires_grad_(),), "y": (y.clone().requires_grad_(),)}
    )
    mode = composing(2)
    with mode:
        loss = 0.5 * (graph.leaves["x"][0] * graph.leaves["y"][0]) ** 2
    (handed,) = graph.pieces.add(loss, graph.leaves["y"], mode)
    assert not handed.requires_grad
    return graph.of(["x"], "y")


def test_the_first_to_ask_gets_the_graph():
    x, y = torch.tensor(3.0), torch.tensor(2.0)
    kept = kept_of(x, y)
    graph, upper, lower = kept.taken((None,), LOCAL)
    assert isinstance(graph, GradientGraph)
    (mixed,) = graph.product((torch.tensor(1.0),), upper)
    assert relative_error(mixed, torch.tensor(12.0)) < 1e-6  # 2 x y
    assert torch.equal(lower[0], y)
    assert kept.taken((None,), LOCAL) is None


def test_a_graph_is_not_given_out_when_a_leaf_was_edited():
    x, y = torch.tensor(3.0), torch.tensor(2.0)
    kept = kept_of(x, y)
    x.mul_(2.0)
    assert kept.taken((None,), LOCAL) is None


def test_a_gradient_that_is_edited_leaves_its_graph_as_it_was():
    """An optimizer's hook may clip what it is handed in place."""
    leaf = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    pieces, mode = Pieces(), composing(2)
    with mode:
        loss = leaf.pow(3).sum()
    (handed,) = pieces.add(loss, (leaf,), mode)
    assert handed is not None
    handed.zero_()
    ((graph,),) = pieces.graphs
    assert graph is not None
    torch.testing.assert_close(graph.detach(), 3 * leaf.detach() ** 2)
