"""Find wrong labels: a weight for each training example above a classifier below."""

import torch
from torch import nn

from blo import Engine, Problem, ProblemGraph, neumann

torch.manual_seed(0)
x = torch.randn(400, 10)
y = (x @ torch.randn(10, 3)).argmax(1)
noisy = torch.arange(400) < 60
labels = torch.where(noisy, (y + 1) % 3, y)
train, held_out = slice(0, 200), slice(200, 300)
net, weights = nn.Linear(10, 3), nn.ParameterDict({"logits": torch.zeros(200)})


def fit(_):
    each = nn.functional.cross_entropy(net(x[train]), labels[train], reduction="none")
    return (weights["logits"].sigmoid() * each).mean() + 1e-3 * net.weight.square().sum()


def validate(_):
    return nn.functional.cross_entropy(net(x[held_out]), labels[held_out])


modules = [net, weights]
graph = ProblemGraph(
    [
        Problem(
            "weights", validate, modules, torch.optim.Adam(weights.parameters(), 0.1), [None]
        ),
        Problem(
            "classifier", fit, modules, torch.optim.SGD(net.parameters(), 1.0), [None],
            steps=10, method=neumann(10),
        ),
    ]
)  # fmt: skip
Engine(graph).run(60)
learned = weights["logits"].detach().sigmoid()
print(f"mean weight: wrong labels {learned[noisy[train]].mean():.2f}, ", end="")
print(f"right labels {learned[~noisy[train]].mean():.2f}")
