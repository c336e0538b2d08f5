"""A loop with accelerate: the problems take what it prepared, and the engine does the rest."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from blo import Engine, Problem, ProblemGraph

torch.manual_seed(0)
x, held_out, truth = torch.randn(256, 8), torch.randn(64, 8), torch.randn(8, 1)
source = torch.arange(256) % 2
y = torch.where(source[:, None] == 0, x @ truth, 3 * torch.randn(256, 1))  # the second is noise

accelerator = Accelerator(cpu=True)
model, trust = torch.nn.Linear(8, 1), torch.nn.ParameterList([torch.zeros(2)])
sgd, adam = torch.optim.SGD(model.parameters(), 0.1), torch.optim.Adam(trust.parameters(), 0.1)
loader = DataLoader(TensorDataset(x, y, source), batch_size=32, shuffle=True)
model, trust, sgd, adam, loader = accelerator.prepare(model, trust, sgd, adam, loader)


def lower_loss(batch):
    inputs, targets, sources = batch
    errors = (model(inputs) - targets).square().squeeze(1)
    return (2 * trust[0].softmax(0)[sources] * errors).mean()


def upper_loss(_):
    return (model(held_out) - held_out @ truth).square().mean()


upper = Problem("trust", upper_loss, trust, adam, [None])
lower = Problem("model", lower_loss, model, sgd, None, reads=["trust"])
engine = Engine(ProblemGraph([upper, lower]))
for _ in range(12):
    for batch in loader:
        engine.backward("model", [batch])  # in place of accelerator.backward(loss)
        sgd.step()
        engine.step("trust")
accelerator.print("trust in the sources", *(f"{t:.3f}" for t in trust[0].softmax(0).tolist()))
