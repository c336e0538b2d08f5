"""Ridge penalties on several processes: torchrun --nproc_per_node=2 examples/distributed.py."""

import torch
from torch import distributed, nn

from blo import Engine, Problem, ProblemGraph, cg

distributed.init_process_group("gloo")  # "nccl" with a device for each process
rank, size = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)  # the same model and the same data set on all
x = torch.randn(140, 20)
y = x @ torch.cat([torch.randn(5), torch.zeros(15)]) + torch.randn(140)
net, penalty = nn.Linear(20, 1), nn.ParameterDict({"log": torch.full((20,), -3.0)})
train, held_out, test = [(x[p][rank::size], y[p][rank::size])  # this process's part
                         for p in (slice(0, 40), slice(40, 90), slice(90, 140))]  # fmt: skip


def error(batch):
    return (net(batch[0]).squeeze(-1) - batch[1]).square().mean()


def fit(batch):
    return error(batch) + (penalty["log"].exp() * net.weight.square()).sum()


adam, sgd = torch.optim.Adam(penalty.parameters(), 0.1), torch.optim.SGD(net.parameters(), 0.1)
upper = Problem("penalty", error, [net, penalty], adam, [held_out])
lower = Problem("weights", fit, [net, penalty], sgd, [train], steps=20, method=cg(20))
record = Engine(ProblemGraph([upper, lower])).run(50)  # averages over the processes
if rank == 0:
    off, kept = penalty["log"].exp()[5:].mean(), penalty["log"].exp()[:5].mean()
    print(f"round {record.round}: mean penalty {kept:.3f} of used, {off:.3f} of unused features")
    print(f"held-out error {record.losses['penalty']:.3f}, {record.num_bytes} bytes sent")
distributed.destroy_process_group()
