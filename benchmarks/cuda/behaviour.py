"""Part 2: what a device does in its own way, held against the CPU: attention kernels, random
states, bfloat16 without a scaler, buffers, multi-tensor optimizers, checkpoints, waits.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of itself on stderr

import torch
from torch import Tensor, nn

from benchmarks.cuda.methods import LIMITS, within
from benchmarks.cuda.rows import Absent, Disagreement, Row, Setting, Values
from benchmarks.cuda.tiny import ADAM, METHODS, Run, Use, difference, received, tiny_graph
from blo import Engine, Method, Problem, ProblemGraph

CPU = torch.device("cpu")
FUSED = ("flash_attention", "efficient_attention", "cudnn_attention", "fused_attention")
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "Adam": (torch.optim.Adam, ADAM),
    "AdamW": (torch.optim.AdamW, {**ADAM, "weight_decay": 0.1}),
}
KINDS: dict[str, dict[str, Any]] = {"foreach": {"foreach": True}, "fused": {"fused": True}}
THROUGH = ("darts", "sama", "unrolled")


def rows(setting: Setting) -> Iterator[Row]:
    """Yield the rows of part 2, the most important first."""
    device = setting.device
    precisions = {"float32": None, "bfloat16": torch.bfloat16}
    for name, precision in precisions.items():
        yield Row(f"fused attention, darts, {name}", partial(stays_fused, device, precision))
        if setting.smallest:
            return
    yield Row("math attention, cg", partial(leaves_fused, device))
    for method in ("darts", "t1t2", "cg"):
        yield Row(f"sdpa as eager, {method}", partial(as_eager, device, method))
    yield Row("dropout replayed, perceptron", partial(replays, device, "BiLoRA", "perceptron"))
    yield Row("dropout replayed, BERT", partial(replays, device, "BiDoRA", "bert"))
    yield Row(
        "masks replayed, LoRA Dropout", partial(replays, device, "LoRA Dropout", "perceptron")
    )
    yield Row("dropout replayed inside fused attention", partial(replays_fused, device))
    yield Row("random state handed back", partial(hands_back, device))
    yield Row(
        "bfloat16 without a scaler", partial(trains_in_bfloat16, device, 10 if setting.dry else 30)
    )
    for method in ("darts", "cg", "unrolled"):
        yield Row(f"buffers, {method}", partial(keeps_buffers, device, method))
    for optimizer in OPTIMIZERS:
        for kind in KINDS:
            for method in THROUGH[:: 2 if setting.dry else 1]:
                name = f"{optimizer} {kind}, {method}"
                yield Row(name, partial(steps_as_on_cpu, device, optimizer, kind, method))
    yield Row("checkpoint", partial(resumes, device))
    for method in ("alternating", "darts, one-sided", "darts", "sama", "cg"):
        yield Row(f"host waits a round, {method}", partial(waits, device, method))


def kernels(call: Callable[[], object]) -> list[str]:
    """Return the names of the attention operators that a call dispatched, each once."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    names = {event.key for event in profile.key_averages()}
    return sorted(name for name in names if "attention" in name)


def rounds(method: str, device: torch.device, precision: torch.dtype | None = None) -> list[str]:
    """Return the attention operators of two rounds on a BERT with its default attention."""
    run = Run(device=device, base="bert", attention="sdpa", precision=precision, rounds=1)
    return kernels(lambda: received(METHODS[method], "BiLoRA", run))


def stays_fused(device: torch.device, precision: torch.dtype | None) -> Values:
    """Return the kernels of a first-order method.

    Raises:
        Disagreement: none of them is fused, or one is the math kernel.
    """
    found = rounds("darts", device, precision)
    fused = [name for name in found if any(word in name for word in FUSED)]
    if not fused or any("attention_math" in name for name in found):
        raise Disagreement("a first-order method left the fused kernels", kernels=found)
    return {"kernels": found}


def leaves_fused(device: torch.device) -> Values:
    """Return the kernels of a second-order method.

    Raises:
        Disagreement: the math kernel is not among them.
    """
    found = rounds("cg", device)
    if not any("attention_math" in name for name in found):
        raise Disagreement("products were not taken on the math kernel", kernels=found)
    return {"kernels": found}


def as_eager(device: torch.device, method: str) -> Values:
    """Return the distance of the default attention's hypergradients from eager attention's."""
    values = [
        received(METHODS[method], "BiLoRA", Run(device=device, base="bert", attention=attention))
        for attention in ("sdpa", "eager")
    ]
    return within(difference(*values), LIMITS[int(METHODS[method].difference)])


def replays(device: torch.device, adapter: str, base: str) -> Values:
    """Return the distance of central differences from exact products, both in float64.

    They agree where both evaluations of a difference see the masks of the lower step; with other
    masks the difference is of the order of one over its radius.
    """
    run = Run(device=device, base=base, dtype=torch.float64, dropout=0.3, rounds=1)
    exact, value = (received(METHODS[method], adapter, run) for method in ("t1t2", "darts"))
    return within(difference(value, exact), 1e-5)


def replays_fused(device: torch.device) -> Values:
    """Return how much dropout inside a fused kernel lengthens a hypergradient by differences.

    The kernels draw from their own counters, so that no other kernel gives the same masks: what can
    be asked is that a seed gives the numbers again and that no masks are compared with others,
    which would lengthen the difference by one over its radius.
    """
    run = Run(device=device, base="bert", attention="sdpa", rounds=1)
    plain = received(METHODS["darts"], "BiLoRA", run)
    noisy = replace(run, dropout=0.1)
    first, second = (received(METHODS["darts"], "BiLoRA", noisy) for _ in range(2))
    longer = float(first.norm() / plain.norm())
    if not longer < 10:
        raise Disagreement(f"dropout lengthens the hypergradient {longer:.3g} times")
    return within(difference(second, first), 1e-3, longer=longer)


def hands_back(device: torch.device) -> Values:
    """Return the distance of the numbers that are drawn behind a round from those that are drawn
    behind a round of the control, which evaluates nothing twice.
    """
    drawn = []
    for method in ("alternating", "cg"):
        graph, _ = tiny_graph(METHODS[method], "BiLoRA", Run(device=device, dropout=0.3))
        torch.manual_seed(3)
        Engine(graph).run(2)
        drawn.append(torch.rand(8, device=device, dtype=torch.float64).cpu())
    return within(difference(*drawn), 0.0)


def trains_in_bfloat16(device: torch.device, rounds: int) -> Values:
    """Return the losses after some rounds under bfloat16 autocast beside those in float32.

    Raises:
        Disagreement: a loss is not finite or far from float32's, or parameters, gradients or
            optimizer states are no longer float32.
    """
    ends: dict[str, float] = {}
    for name, precision in (("float32", None), ("bfloat16", torch.bfloat16)):
        run = Run(device=device, base="bert", attention="sdpa")
        graph, _ = tiny_graph(METHODS["darts"], "BiLoRA", run)
        types = set()
        for problem in graph.problems:
            problem.optimizer.register_step_pre_hook(
                lambda *_, p=problem, types=types: types.update(t.grad.dtype for t in p.parameters)
            )
        record = Engine(graph, precision=precision).run(rounds)
        types |= {t.dtype for p in graph.problems for t in p.parameters}
        types |= {
            value.dtype
            for p in graph.problems
            for state in p.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        }
        if types != {torch.float32}:
            raise Disagreement(f"types other than float32 are trained: {sorted(map(str, types))}")
        ends[name] = record.losses["lower"]
    distance = abs(ends["bfloat16"] - ends["float32"]) / ends["float32"]
    return within(distance, 0.2, loss=ends["bfloat16"], loss_in_float32=ends["float32"])


def normalised(method: Method, steps: int, device: torch.device) -> ProblemGraph:
    """Return a network with batch norm below, input gains above, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    gains = nn.ParameterDict({"value": torch.ones(6, dtype=torch.float64)})
    data = [{"x": torch.randn(9, 6).double(), "y": torch.randint(3, (9,))} for _ in range(4)]
    net, gains = net.to(device).train(), gains.to(device)

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(batch["x"] * gains["value"]), batch["y"])

    modules, sgd = [net, gains], torch.optim.SGD
    upper = Problem("upper", loss, modules, sgd(gains.parameters(), lr=0.1), data[:2])
    lower = Problem(
        "lower", loss, modules, sgd(net.parameters(), lr=0.05), data[2:], steps=steps, method=method
    )
    return ProblemGraph([upper, lower])


def keeps_buffers(device: torch.device, method: str) -> Values:
    """Return the distance of batch norm's buffers after two rounds from the CPU's.

    Raises:
        Disagreement: evaluations of the hypergradient were counted as batches.
    """
    use, found = METHODS[method], []
    for place in (device, CPU):
        graph = normalised(use.method, use.steps, place)
        Engine(graph).run(2)
        net = graph["lower"].modules[0]
        counted = int(net.get_buffer("1.num_batches_tracked"))
        if counted != 2 * (use.steps + 1):
            raise Disagreement(f"{counted} batches counted, {2 * (use.steps + 1)} were seen")
        names = ("1.running_mean", "1.running_var")
        found.append(torch.cat([net.get_buffer(name).cpu() for name in names]))
    return within(difference(*found), 1e-8)


def steps_as_on_cpu(device: torch.device, optimizer: str, kind: str, method: str) -> Values:
    """Return the distance of the hypergradients below a multi-tensor optimizer from those below the
    same optimizer, one tensor at a time, on the CPU.
    """
    make, options = OPTIMIZERS[optimizer]
    use = METHODS[method]
    # Beyond the second step, so that momentum and second moments count.
    use = Use(use.method, steps=3, difference=use.difference)
    here = Run(
        device=device, dtype=torch.float64, optimizer=make, options={**options, **KINDS[kind]}
    )
    single = Run(dtype=torch.float64, optimizer=make, options={**options, "foreach": False})
    reference = received(use, "BiLoRA", single)
    return within(difference(received(use, "BiLoRA", here), reference), 1e-6)


def resumes(device: torch.device) -> Values:
    """Return the distance of parameters after a stop and a resumption from those without."""
    ends = []
    for stop in (False, True):
        graph, model = tiny_graph(METHODS["t1t2"], "LoRA Dropout", Run(device=device))
        torch.manual_seed(3)
        engine = Engine(graph)
        engine.run(2)
        if stop:
            state = copy.deepcopy(engine.state_dict())
            graph, model = tiny_graph(METHODS["t1t2"], "LoRA Dropout", Run(device=device))
            engine = Engine(graph)
            engine.load_state_dict(state)
        engine.run(2)
        ends.append(torch.cat([p.detach().double().cpu().flatten() for p in model.parameters()]))
    return within(difference(*ends), 0.0 if device.type == "cpu" else 1e-6)


def waits(device: torch.device, method: str) -> Values:
    """Return how often the host waits for the device in a round, by CUDA's own warnings.

    Raises:
        Absent: on the CPU.
    """
    if device.type != "cuda":
        raise Absent("the CPU waits for no device")
    use = METHODS[method]
    graph, _ = tiny_graph(Use(use.method, adam=use.adam), "BiLoRA", Run(device=device))
    engine = Engine(graph)
    engine.run(2)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            engine.run(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"waits": sum("synchroniz" in str(warning.message) for warning in seen)}
