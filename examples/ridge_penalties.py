"""Learn one ridge penalty for each feature on held-out data, by conjugate gradients."""

import torch
from torch import nn

from blo import Engine, Problem, ProblemGraph, cg

torch.manual_seed(0)
x, truth = torch.randn(230, 20), torch.cat([torch.randn(5), torch.zeros(15)])
y = x @ truth + torch.randn(230)
train, held_out, test = [(x[i:j], y[i:j]) for i, j in ((0, 30), (30, 130), (130, 230))]
net, penalty = nn.Linear(20, 1), nn.ParameterDict({"log": torch.full((20,), -3.0)})


def error(batch):
    return (net(batch[0]).squeeze(-1) - batch[1]).square().mean()


def fit(batch):
    return error(batch) + (penalty["log"].exp() * net.weight.square()).sum()


upper = torch.optim.Adam(penalty.parameters(), lr=0.1)
lower = torch.optim.SGD(net.parameters(), lr=0.1)
modules = [net, penalty]
graph = ProblemGraph(
    [
        Problem("penalty", error, modules, upper, [held_out]),
        Problem("weights", fit, modules, lower, [train], steps=20, method=cg(20)),
    ]
)
for record in Engine(graph).rounds(50):
    if record.round in (1, 50):
        print(f"round {record.round}: {record.losses}, test {float(error(test).detach()):.3f}")
useful, useless = penalty["log"].detach().exp().split([5, 15])
print(f"mean penalty: useful features {useful.mean():.3f}, useless ones {useless.mean():.3f}")
