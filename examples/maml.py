"""MAML: learn the start from which three steps of SGD fit a new sine wave, by `unrolled`."""

import torch
from torch import nn

from blo import Engine, Problem, ProblemGraph, unrolled

torch.manual_seed(0)
TASKS, STEPS, LR, ROUNDS = 8, 3, 0.05, 20


def waves():
    """Return a task for each net: ten points of a wave to adapt to, and ten to be judged on."""
    x = 10 * torch.rand(TASKS, 20, 1) - 5
    y = (0.5 + 2 * torch.rand(TASKS, 1, 1)) * torch.sin(x + 3 * torch.rand(TASKS, 1, 1))
    return (x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:])


def error(weights, points):
    """Return the sum over the tasks, so that each net has the gradient that it has alone."""
    (x, y), (w1, b1, w2, b2, w3, b3) = points, weights
    hidden = torch.tanh(torch.tanh(x @ w1 + b1) @ w2 + b2)
    return (hidden @ w3 + b3 - y).square().mean((1, 2)).sum()


shapes = (1, 32), (1, 32), (32, 32), (1, 32), (32, 1), (1, 1)
start = nn.ParameterList(torch.randn(s) / s[0] ** 0.5 for s in shapes)
nets = nn.ParameterList(torch.zeros(TASKS, *s) for s in shapes)
tasks = [waves() for _ in range(ROUNDS)]
adam, sgd = torch.optim.Adam(start.parameters(), 0.02), torch.optim.SGD(nets.parameters(), LR)


def copies():
    """Return what the nets begin each round with."""
    return [p.expand(TASKS, *p.shape) for p in start]


upper = Problem("start", lambda task: error(nets, task[1]) / TASKS, [start, nets], adam, tasks)
lower = Problem(
    "nets",
    lambda task: error(nets, task[0]),
    [start, nets],
    sgd,
    [task for task in tasks for _ in range(STEPS)],  # the same task in each step of a round
    steps=STEPS,
    start=copies,
    method=unrolled(),
)


def adapted(task):
    """Return the error after the same steps, written by hand, and its gradient for the start."""
    weights = copies()
    for _ in range(STEPS):
        gradient = torch.autograd.grad(error(weights, task[0]), weights, create_graph=True)
        weights = [w - LR * g for w, g in zip(weights, gradient, strict=True)]
    loss = error(weights, task[1]) / TASKS
    return loss.item(), torch.autograd.grad(loss, list(start))


unseen, by_hand, seen = waves(), adapted(tasks[0])[1], []
before = adapted(unseen)[0]
adam.register_step_pre_hook(lambda *_: seen.append([p.grad.clone() for p in start]))
Engine(ProblemGraph([upper, lower])).run(ROUNDS)
off = max(float((a - b).norm() / b.norm()) for a, b in zip(seen[0], by_hand, strict=True))
print(f"hypergradient of the first round: {off:.1e} off the one written by hand")
print(f"error on new waves after {STEPS} steps: from a random start {before:.3f}")
print(f"error on new waves after {STEPS} steps: from the learned one {adapted(unseen)[0]:.3f}")
