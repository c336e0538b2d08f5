"""iMAML: learn the point that linear regressions on five points are pulled to, by `cg`."""

import torch
from torch import nn

from blo import Engine, Problem, ProblemGraph, cg

torch.manual_seed(0)
TASKS, SIZE, PULL, STEPS, ROUNDS = 8, 10, 1.0, 50, 15
common = torch.randn(SIZE, 1)


def regressions():
    """Return a task for each row of weights: five points to adapt to, and five to be judged on."""
    x = torch.randn(TASKS, 10, SIZE)
    y = x @ (common + 0.1 * torch.randn(TASKS, SIZE, 1)) + 0.1 * torch.randn(TASKS, 10, 1)
    return (x[:, :5], y[:, :5]), (x[:, 5:], y[:, 5:])


def error(weights, points):
    """Return the sum over the tasks, so that each has the gradient that it has alone."""
    return (points[0] @ weights - points[1]).square().mean((1, 2)).sum()


start, nets = (
    nn.ParameterList([torch.zeros(SIZE, 1)]),
    nn.ParameterList([torch.zeros(TASKS, SIZE, 1)]),
)
tasks = [regressions() for _ in range(ROUNDS)]
adam, sgd = torch.optim.Adam(start.parameters(), 0.3), torch.optim.SGD(nets.parameters(), 0.1)


def pulled(task):
    """Return the loss of the adaptation, with its proximal term."""
    return error(nets[0], task[0]) + 0.5 * PULL * (nets[0] - start[0]).square().sum()


upper = Problem("start", lambda task: error(nets[0], task[1]) / TASKS, [start, nets], adam, tasks)
lower = Problem(
    "nets",
    pulled,
    [start, nets],
    sgd,
    [task for task in tasks for _ in range(STEPS)],  # the same task in each step of a round
    steps=STEPS,
    start=lambda: [start[0].expand(TASKS, SIZE, 1)],  # near the solution; its derivative is not
    method=cg(40),  # needed where the solution is reached
)


def adapted(task):
    """Return the error at the solution in closed form, and its gradient for the start."""
    (x, y), (z, t) = task
    hessian = 2 / 5 * x.mT @ x + PULL * torch.eye(SIZE)
    weights = torch.linalg.solve(hessian, 2 / 5 * x.mT @ y + PULL * start[0])
    loss = (z @ weights - t).square().mean()
    return loss.item(), torch.autograd.grad(loss, list(start))[0]


unseen, by_hand, seen = regressions(), adapted(tasks[0])[1], []
before = adapted(unseen)[0]
adam.register_step_pre_hook(lambda *_: seen.append(start[0].grad.clone()))
Engine(ProblemGraph([upper, lower])).run(ROUNDS)
off = float((seen[0] - by_hand).norm() / by_hand.norm())
print(f"hypergradient of the first round: {off:.1e} off the closed form")
print(f"error on new tasks of five points: pulled to zero {before:.3f}")
print(f"error on new tasks of five points: pulled to the learned point {adapted(unseen)[0]:.3f}")
