"""Three levels: a loss weight above a penalty above a classifier; the engine merges all paths."""

import torch
from torch import nn

from blo import Engine, Problem, ProblemGraph, cg

torch.manual_seed(0)
x = torch.randn(300, 8)
y = (x[:, 0] + 0.5 * torch.randn(300) > 0).long()
bottom, middle, top = [(x[i : i + 100], y[i : i + 100]) for i in (0, 100, 200)]
net = nn.Linear(8, 2)
penalty = nn.ParameterDict({"log": torch.full((8,), -3.0)})
balance = nn.ParameterDict({"logit": torch.zeros(2)})
modules = [net, penalty, balance]


def error(batch):
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def balanced(batch):
    each = nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")
    return (2 * balance["logit"].softmax(0)[batch[1]] * each).mean()


def fit(batch):
    return balanced(batch) + (penalty["log"].exp() * net.weight.square()).sum()


def sgd(module, lr):
    return torch.optim.SGD(module.parameters(), lr=lr)


graph = ProblemGraph(
    [
        Problem("balance", error, modules, sgd(balance, 1.0), [top]),
        Problem(
            "penalty", balanced, modules, sgd(penalty, 1.0), [middle], method=cg(8, damping=0.1)
        ),
        Problem("classifier", fit, modules, sgd(net, 0.5), [bottom], steps=5, method=cg(18)),
    ]
)
print(graph)
record = Engine(graph).run(50)
print({name: round(loss, 4) for name, loss in record.losses.items()})
for path, info in record.responses.items():
    how = "no solve" if info.status is None else info.status.value
    print(f"{path}: {how}, {info.num_products} products")
