"""A loop of your own: the engine fills the gradients, you take the steps."""

import torch

from blo import Clip, Engine, Problem, ProblemGraph

torch.manual_seed(0)
x, held_out, truth = torch.randn(256, 8), torch.randn(64, 8), torch.randn(8, 1)
source = torch.arange(256) % 2
y = torch.where(source[:, None] == 0, x @ truth, 3 * torch.randn(256, 1))  # the second is noise

model, trust = torch.nn.Linear(8, 1), torch.nn.ParameterList([torch.zeros(2)])
sgd, adam = torch.optim.SGD(model.parameters(), 0.1), torch.optim.Adam(trust.parameters(), 0.1)


def lower_loss(rows):
    errors = (model(x[rows]) - y[rows]).square().squeeze(1)
    return (2 * trust[0].softmax(0)[source[rows]] * errors).mean()


def upper_loss(_):
    return (model(held_out) - held_out @ truth).square().mean()


upper = Problem("trust", upper_loss, trust, adam, [None])
clip = Clip(norm=1.0)  # says that the loop clips: the hypergradient is that of the clipped step
lower = Problem("model", lower_loss, model, sgd, None, reads=["trust"], steps=2, clip=clip)
engine = Engine(ProblemGraph([upper, lower]))
for _ in range(200):
    engine.backward("model", [torch.randint(256, (32,))])  # in place of loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    sgd.step()
    if engine.turn.problem == "trust":  # after every second step
        engine.step("trust")
print("trust in the sources", *(f"{t:.3f}" for t in trust[0].softmax(0).tolist()))
