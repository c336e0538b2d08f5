"""Part 4: time and memory of a round on models of real shapes, beside a loop written by hand and
Betty.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

import blo
from adapters import two_level
from benchmarks.cuda.by_hand import DAMPING, LOWER_LR, UPPER_LR, ByHand
from benchmarks.cuda.rows import Absent, Disagreement, Row, Setting, Values
from benchmarks.cuda.shapes import SHAPES, Adapted, adapted
from benchmarks.cuda.tiny import difference
from benchmarks.cuda.with_betty import betty_round, betty_version
from blo import Engine, Method

BF16 = torch.bfloat16
METHODS: dict[str, Method] = {
    "darts, one-sided": blo.darts(one_sided=True),
    "darts": blo.darts(),
    "alternating": blo.alternating(),
    "t1t2": blo.t1t2(),
    "sama": blo.sama(),
    "cg(5)": blo.cg(5, damping=DAMPING, rtol=0.0),
}
IN_SHORT = ("darts", "cg(5)")
LIMITS = {"darts, one-sided": 3e-2, "darts": 1e-2, "sama": 1e-2}


def rows(setting: Setting) -> Iterator[Row]:
    """Yield the rows of part 4, the most important first."""
    methods = list(METHODS)[: 1 if setting.smallest else None]
    device = setting.device
    for method in methods:
        yield Row(f"by hand = ours, small | {method}", partial(twin, device, method))
    yield Row("Betty", lambda: {"betty": betty_version()})
    shapes = list(SHAPES)[: 1 if setting.smallest else None]
    held = Held(setting)
    wanted = [(shape, adapter, BF16) for adapter in ("BiLoRA", "BiDoRA") for shape in shapes]
    wanted.append((shapes[0], "BiLoRA", None))
    for shape, adapter, precision in wanted[: 1 if setting.smallest else None]:
        kind = "float32" if precision is None else "bfloat16"
        first = (shape, adapter, precision) == wanted[0]
        for method in methods if first or not setting.dry else IN_SHORT:
            name = f"{shape} | {adapter} | {kind} | {method}"
            yield Row(name, partial(measured, held, shape, adapter, precision, method))


class Held:
    """The model of the rows at hand; the one before is let go first."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.key: tuple[object, ...] = ()
        self.model: Adapted | None = None

    def get(self, shape: str, adapter: str, precision: torch.dtype | None) -> Adapted:
        """Return the model, its adapter where it stood at first."""
        key = (shape, adapter, precision)
        if key != self.key or self.model is None:
            self.model = None
            freed(self.setting.device)
            device, small = self.setting.device, self.setting.dry
            self.model = adapted(shape, adapter, precision, device, small=small)
            self.key = key
        self.model.reset()
        freed(self.setting.device)
        return self.model


def freed(device: torch.device) -> None:
    """Give back what nothing holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def engine_of(here: Adapted, method: Method) -> Engine:
    """Return our engine on the model."""
    graph = two_level(
        here.model,
        loss=here.loss,
        upper_batches=[here.upper],
        lower_batches=[here.lower],
        upper_optimizer=torch.optim.Adam(here.split.upper, UPPER_LR),
        lower_optimizer=torch.optim.Adam(here.split.lower, LOWER_LR),
        method=method,
    )
    return Engine(graph, precision=here.precision)


def twin(device: torch.device, method: str) -> Values:
    """Return the distance of the second round's hypergradients from the loop's, in float32 on the
    small shape: what is timed computes the same.

    Raises:
        Disagreement: they differ.
    """
    here = adapted("roberta-base", "BiLoRA", None, device, small=True)
    engine = engine_of(here, METHODS[method])
    seen: list[torch.Tensor] = []
    optimizer = engine.graph["upper"].optimizer
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in here.split.upper]).double())
    )
    engine.run(2)
    here.reset()
    hand = ByHand(here, method)
    for _ in range(2):
        hand.round()
    value = torch.cat([g.flatten() for g in hand.received]).double()
    distance, limit = difference(seen[-1], value), LIMITS.get(method, 1e-3)
    found = {"difference": distance, "limit": limit}
    if not distance <= limit:
        raise Disagreement(f"ours is {distance:.2g} from the loop written by hand", **found)
    return found


def measured(
    held: Held, shape: str, adapter: str, precision: torch.dtype | None, method: str
) -> Values:
    """Return seconds and peak memory of a round of ours, of the loop by hand and of Betty, in turns
    on one model, and of one lower gradient.
    """
    here = held.get(shape, adapter, precision)
    device = here.device
    engine = engine_of(here, METHODS[method])
    hand = ByHand(here, method)
    calls: dict[str, Callable[[], object]] = {"ours": lambda: engine.run(1), "by hand": hand.round}
    problems: dict[str, str] = {}
    try:
        calls["betty"] = betty_round(here, method)
    except Absent as error:
        problems["betty"] = str(error)
    peaks: dict[str, float | None] = {}
    for name in list(calls):
        here.reset()
        try:
            calls[name]()
            calls[name]()
            peaks[name] = peak(calls[name], device)
        except Exception as error:
            if name == "ours":
                raise
            del calls[name]
            text = (str(error).splitlines() or [""])[0]
            problems[name] = f"{type(error).__name__}: {text[:200]}"
    calls["gradient"] = lambda: torch.autograd.grad(hand.loss(here.lower), here.split.lower)
    calls["gradient"]()
    counted = (engine.num_gradients, engine.num_products)
    record = engine.run(1)
    repeats = 2 if held.setting.smallest else 3 if held.setting.dry else 7
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    medians = {name: statistics.median(values) for name, values in times.items()}

    def ratio(name: str) -> float | None:
        if name not in times:
            return None
        pairs = zip(times["ours"], times[name], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return {
        "problem": shape + (" in small" if held.setting.dry else ""),
        "setting": f"{adapter}, rank 8, batch {list(here.lower['input_ids'].shape)}",
        "method": method,
        "precision": "float32" if precision is None else "bfloat16",
        "num_parameters": here.num_parameters,
        "num_lower": sum(p.numel() for p in here.split.lower),
        "num_upper": sum(p.numel() for p in here.split.upper),
        "num_gradients": record.num_gradients - counted[0],
        "num_products": record.num_products - counted[1],
        "seconds": medians["ours"],
        "seconds_by_hand": medians.get("by hand"),
        "seconds_betty": medians.get("betty"),
        "units": ratio("gradient"),
        "to_hand": ratio("by hand"),
        "to_betty": ratio("betty"),
        "peak_memory_mb": peaks["ours"],
        "peak_by_hand_mb": peaks.get("by hand"),
        "peak_betty_mb": peaks.get("betty"),
        "repeats": repeats,
        "not_measured": problems,
    }


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the time of a call: between CUDA events on the device, of the clock on the CPU."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def peak(call: Callable[[], object], device: torch.device) -> float | None:
    """Return the most memory that a call held beyond what was held before, in MiB; None on the CPU,
    whose allocator does not count.
    """
    if device.type != "cuda":
        call()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
