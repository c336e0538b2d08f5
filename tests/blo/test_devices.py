"""The same numbers on every device: batches are moved, random states replayed, vectors stay put."""

import pytest
import torch
from oracles import logistic, relative_error
from torch import nn

from blo import Engine, Problem, ProblemGraph, cg, darts, dense, hypergradient, neumann, t1t2


def received(method, device, dropout=0.0):
    """The hypergradients of two rounds of example reweighting, on the CPU."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)).double()
    gains = nn.ParameterDict({"value": torch.ones(6, dtype=torch.float64)})
    batches = [{"x": torch.randn(9, 6).double(), "y": torch.randint(3, (9,))} for _ in range(4)]
    net, gains = net.to(device), gains.to(device)

    def loss(batch):
        return nn.functional.cross_entropy(net(batch["x"] * gains["value"]), batch["y"])

    optimizer = torch.optim.SGD(gains.parameters(), lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(gains["value"].grad.cpu()))
    lower = torch.optim.AdamW(net.parameters(), lr=0.05)
    graph = ProblemGraph(
        [
            Problem("upper", loss, [net, gains], optimizer, batches[:2]),
            Problem("lower", loss, [net, gains], lower, batches[2:], method=method, steps=2),
        ]
    )
    torch.manual_seed(1)
    Engine(graph).run(2)
    return torch.cat(seen)


@pytest.mark.parametrize(
    "method", [darts(), t1t2(), cg(4, damping=1.0), neumann(3), dense(damping=1.0)], ids=repr
)
def test_hypergradients_do_not_depend_on_the_device(method, device):
    assert relative_error(received(method, device), received(method, "cpu")) < 1e-8


def test_dropout_masks_are_replayed_on_the_device(device):
    exact, value = received(t1t2(), device, dropout=0.3), received(darts(), device, dropout=0.3)
    assert relative_error(value, exact) < 1e-6


def test_plain_functions_work_on_the_device(device):
    problem = logistic()
    x, y = problem.upper.to(device), problem.lower.to(device)

    def moved(loss):
        return lambda u, w: loss(tuple(t.cpu() for t in u), tuple(t.cpu() for t in w))

    value = hypergradient(
        moved(problem.upper_loss), moved(problem.lower_loss), (x,), (y,), method=cg(40)
    ).grads[0]
    assert value.device.type == device.type
    assert relative_error(value.cpu(), problem.hypergradient) < 1e-8
