"""Runs of small problem graphs in one process and in several, for test_distributed.py."""

import io
import os
import runpy
import socket
import traceback
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import nn

from blo import (
    Clip,
    Engine,
    GaussNewton,
    Problem,
    ProblemGraph,
    SplitLoss,
    alternating,
    cg,
    check_hypergradient,
    darts,
    dense,
    evolution,
    f2sa,
    forward_mode,
    minres,
    neumann,
    nystrom,
    pbgd,
    sama,
    soba,
    t1t2,
    unrolled,
)
from blo import FiniteDifference as Differences

ROWS, FEATURES = 8, 2

# Those of README's table, and what takes another way through the derivatives.
METHODS = {
    "darts": darts(),
    "t1t2": t1t2(),
    "sama": sama(),
    "neumann": neumann(4),
    "cg": cg(3),
    "minres": minres(3),
    "nystrom": nystrom(2),
    "dense": dense(),
    "soba": soba(),
    "unrolled": unrolled(3),
    "f2sa": f2sa(3, delta=1e-3),
    "pbgd": pbgd(num_steps=2),
    "evolution": evolution(2),
    "alternating": alternating(),
    "forward_mode": forward_mode(),
    "checkpointed": unrolled(checkpoint=True),
    "one_sided": darts(one_sided=True),
    "gauss_newton": cg(3, products=GaussNewton()),
    "differences": cg(2, products=Differences()),
    "whole_f2sa": f2sa(2, linearised=False, symmetric=True),
}
TABLE = tuple(METHODS)[:14]
SEEN = ("darts", "t1t2", "sama", "neumann", "cg", "minres", "nystrom", "dense", "unrolled")


def batches(seed, rank, num_ranks):
    """Four batches, of which each rank has every `num_ranks`-th row."""
    drawn = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(4):
        x = torch.randn(ROWS, FEATURES, generator=drawn, dtype=torch.float64)
        noise = torch.randn(ROWS, generator=drawn, dtype=torch.float64)
        found.append((x[rank::num_ranks], (x[:, 0] + noise > 0)[rank::num_ranks]))
    return found


def graph_of(name, levels, rank=0, num_ranks=1):
    """Logistic regression below a penalty for each feature, below a balance of the classes."""
    torch.manual_seed(0)
    net = nn.Linear(FEATURES, 2, dtype=torch.float64)
    penalty = nn.ParameterDict({"log": torch.full((FEATURES,), -2.0, dtype=torch.float64)})
    balance = nn.ParameterDict({"logit": torch.zeros(2, dtype=torch.float64)})
    method = METHODS[name]

    def error(batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1].long())

    def balanced(batch):
        each = nn.functional.cross_entropy(net(batch[0]), batch[1].long(), reduction="none")
        return (2 * balance["logit"].softmax(0)[batch[1].long()] * each).mean()

    def settled(batch):
        return balanced(batch) + 0.1 * (penalty["log"] + 2 + balance["logit"][0]).square().sum()

    def fitted(outputs, batch):
        logits, weight, bias = outputs
        each = nn.functional.cross_entropy(logits, batch[1].long(), reduction="none")
        weighed = (2 * balance["logit"].softmax(0)[batch[1].long()] * each).mean()
        return weighed + (penalty["log"].exp() * weight.square()).sum() + bias.square().sum()

    def outputs(batch):  # so that the mixed product depends on the batch
        return net(batch[0] * (3 + penalty["log"])), net.weight, net.bias

    fit = SplitLoss(outputs, fitted)
    kind = torch.optim.Adam if name == "sama" else torch.optim.SGD
    given = {"lr": 0.1} if name == "sama" else {"lr": 0.1, "momentum": 0.5}
    modules = [net, penalty, balance]

    def problem(name, loss, module, kind=torch.optim.SGD, given=None, **options):
        optimizer = kind(module.parameters(), **(given or {"lr": 0.5}))
        data = batches(len(name), rank, num_ranks)
        return Problem(name, loss, modules, optimizer, data, accumulate=2, **options)

    lower = problem("classifier", fit, net, kind, given, steps=5 - levels, method=method)
    if levels == 2:
        return ProblemGraph([problem("penalty", error, penalty), lower])
    through = name in SEEN
    middle = problem(
        "penalty", settled, penalty, method=cg(2, damping=0.1), through_response=through
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of through_response=False
        return ProblemGraph([problem("balance", error, balance), middle, lower])


def trained(name, levels, rank=0, num_ranks=1):
    """What a few rounds lead to: parameters, losses, statuses, the responses' cost, bytes."""
    torch.set_num_threads(1)
    graph = graph_of(name, levels, rank, num_ranks)
    engine = Engine(graph)
    record = engine.run(4 - levels)
    ends = torch.cat([t.detach().flatten() for p in graph.problems for t in p.parameters])
    losses = [record.losses[p.name] for p in graph.problems]
    return {
        "value": torch.cat([ends, torch.tensor(losses, dtype=torch.float64)]).tolist(),
        "statuses": [str(info.status) for info in record.responses.values()],
        "cost": (record.num_gradients, record.num_products),
        "bytes": record.num_bytes,
        "reductions": engine.reduction.num_reductions,
        "radius": [info.radius for info in record.responses.values()],
    }


def every_run(rank, num_ranks):
    """All methods on two and three levels."""
    return {
        (name, levels): trained(name, levels, rank, num_ranks)
        for levels in (2, 3)
        for name in METHODS
        if levels == 2 or (name in TABLE if num_ranks == 2 else name in ("darts", "cg", "unrolled"))
    }


def refusals(rank, num_ranks):
    """What several processes are told: the message by what was done."""
    said = {}

    def tell(key, act):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                act()
            said[key] = " | ".join(str(w.message) for w in caught)
        except (ValueError, TypeError, FloatingPointError) as error:
            said[key] = str(error)

    def one(scale=1.0, start=0.0, rate=0.1, data=None, distributed=None):
        weight = nn.Linear(2, 1, bias=False)
        nn.init.constant_(weight.weight, start)
        data = torch.full((3, 2), float(rank)) if data is None else data

        def loss(batch):
            return scale * (weight(batch) - 1).square().mean()

        sgd = torch.optim.SGD(weight.parameters(), rate)
        graph = ProblemGraph([Problem("fit", loss, weight, sgd, [data])])
        return Engine(graph, distributed=distributed)

    tell("different batches", lambda: one().run(2))
    tell("identical batches", lambda: one(data=torch.ones(3, 2)).run(2))
    tell("alone", lambda: one(data=torch.ones(3, 2), distributed=False).run(2))
    tell("nan", lambda: one(scale=float("nan") if rank == 1 else 1.0).run(1))
    tell("parameters", lambda: one(start=float(rank)))
    tell("rates", lambda: one(rate=0.1 * (1 + rank)))
    tell("group", lambda: one(distributed=True))
    tell("check", lambda: check_hypergradient(one()))
    return said


def wrapped(rank, num_ranks):
    """What is said of modules that are wrapped or sharded, by wrapper."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.nn.parallel import DistributedDataParallel

    def parallel():
        module = nn.Linear(2, 2)
        mesh = init_device_mesh("cpu", (num_ranks,))
        module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh, [Shard(0)]))
        return module

    made = {
        "DistributedDataParallel": lambda: DistributedDataParallel(nn.Linear(2, 2)),
        "FullyShardedDataParallel": lambda: FullyShardedDataParallel(
            nn.Linear(2, 2), device_id=torch.device("cpu"), use_orig_params=True
        ),
        "DTensor": parallel,
    }
    said = {}
    for key, make in made.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = make()
        sgd = torch.optim.SGD(module.parameters(), 0.1)
        try:
            Problem("fit", lambda batch, module=module: module(batch).sum(), module, sgd, [None])
        except TypeError as error:
            said[key] = str(error)
    return said


FIRST_ORDER = {
    "darts": darts(),
    "one_sided": darts(one_sided=True),
    "f2sa": f2sa(2, delta=1e-3),
    "whole_f2sa": f2sa(2, delta=1e-3, linearised=False, symmetric=True),
    "pbgd": pbgd(num_steps=2),
    "alternating": alternating(),
    "inside": darts(),
}


def sharded_graph(name, num_ranks, rank, *, shard):
    """A network below weights of its features, which are whole, or ("inside") below its own first
    layer; `shard`: by fully_shard, layer by layer, or not.
    """
    method = FIRST_ORDER.get(name) or METHODS[name]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    weights = nn.ParameterDict({"log": torch.zeros(3, dtype=torch.float64)})
    if shard:
        mesh = init_device_mesh("cpu", (num_ranks,))
        for part in (net[0], net[2], net):
            fully_shard(part, mesh=mesh)

    def error(batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    def fit(batch):
        return error((batch[0] * weights["log"].exp(), batch[1]))

    def data(seed):
        drawn = torch.Generator().manual_seed(seed)
        x = [torch.randn(8, 3, generator=drawn, dtype=torch.float64) for _ in range(3)]
        return [(x[rank::num_ranks], (x[:, 0] > 0).long()[rank::num_ranks]) for x in x]

    def problem(name, loss, module, rate, **options):
        sgd = torch.optim.SGD(module.parameters(), rate, momentum=0.5)
        return Problem(name, loss, [net, weights], sgd, data(len(name)), accumulate=2, **options)

    above, below = (net[0], net[2]) if name == "inside" else (weights, net)
    lower = problem("lower", fit, below, 0.2, steps=2, method=method, clip=Clip(norm=0.3))
    return net, weights, ProblemGraph([problem("weights", error, above, 0.5), lower])


def sharded(rank, num_ranks):
    """What sharded and whole parameters lead to, method by method, and what is refused."""
    found = {}
    for name in FIRST_ORDER:
        ends = []
        for shard in (True, False):
            net, weights, graph = sharded_graph(name, num_ranks, rank, shard=shard)
            record = Engine(graph).run(3)
            whole = [p.full_tensor() if shard else p for p in net.parameters()]
            losses = torch.tensor(list(record.losses.values()), dtype=torch.float64)
            ends.append(torch.cat([t.detach().flatten() for t in (*whole, weights["log"], losses)]))
        found[name] = (ends[0] - ends[1]).abs().max().item()
    said = {}
    for name in ("cg", "sama", "unrolled", "evolution", "t1t2", "nystrom"):
        try:
            sharded_graph(name, num_ranks, rank, shard=True)
        except NotImplementedError as error:
            said[name] = str(error)
    return {"off": found, "refused": said}


def example(rank, num_ranks):
    """What examples/distributed.py prints, which makes a group of its own as under torchrun."""
    port = [free_port()]
    torch.distributed.broadcast_object_list(port)
    torch.distributed.destroy_process_group()
    os.environ.update(MASTER_PORT=str(port[0]), RANK=str(rank), WORLD_SIZE=str(num_ranks))
    path = Path(__file__).resolve().parents[2] / "examples" / "distributed.py"
    with redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(path))
    return printed.getvalue()


def work(rank, num_ranks, port, tasks, answers):
    """Take part as `rank`, and answer with what each task returned."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=num_ranks)
    try:
        answers.put((rank, {task.__name__: task(rank, num_ranks) for task in tasks}))
    except Exception:  # raised where the answer is awaited
        answers.put((rank, traceback.format_exc()))
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answered(num_ranks, tasks):
    """Return what each of `num_ranks` processes answers, in the order of their ranks.

    They are forked from a server that has imported torch once.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["processes"])
    answers, port = context.Queue(), free_port()
    running = [
        context.Process(target=work, args=(rank, num_ranks, port, tasks, answers), daemon=True)
        for rank in range(num_ranks)
    ]
    for process in running:
        process.start()
    found = {}
    try:
        while len(found) < num_ranks:
            rank, answer = answers.get(timeout=600)
            if isinstance(answer, str):
                raise RuntimeError(f"process {rank} of {num_ranks} failed:\n{answer}")
            found[rank] = answer
    finally:
        for process in running:
            if len(found) < num_ranks:
                process.kill()
            process.join()
    return [found[rank] for rank in range(num_ranks)]
