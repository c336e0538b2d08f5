"""Data-parallel runs: which processes take part, and what must be equal or different among them at
the start.

Every process builds the same graph on parameters of the same values and hands the engine batches of
its own; the engine averages what must be global (`blo.derivatives.reduction`) and shards nothing.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from blo.batches import leaves_of
from blo.derivatives.reduction import Reduction
from blo.derivatives.sharded import is_sharded
from blo.graph import ProblemGraph
from blo.problem import Problem


def reduction_among(distributed: Any) -> Reduction:
    """Return the means over the processes that `distributed` stands for.

    Args:
        distributed: None for those of the default process group, where there is one; False for this
            process alone; or a process group.

    Raises:
        TypeError: for anything else.
    """
    available = torch.distributed.is_available()
    if distributed is None:
        if not (available and torch.distributed.is_initialized()):
            return Reduction()
        distributed = torch.distributed.group.WORLD
    if distributed is False:
        return Reduction()
    if not (available and isinstance(distributed, torch.distributed.ProcessGroup)):
        raise TypeError(
            "distributed must be None (the default process group, where one is initialised), False "
            "or a torch.distributed.ProcessGroup that this process belongs to, got "
            f"{distributed!r}"
        )
    return Reduction(distributed if distributed.size() > 1 else None)


def refuse_unequal(graph: ProblemGraph, reduction: Reduction) -> None:
    """Raise unless all processes have built the same graph on the same values.

    Raises:
        ValueError: naming the problem and the parameter that differ.
    """
    if reduction.is_local:
        return
    built = repr([_description(graph, p) for p in graph.problems])
    if not _agrees(reduction, _number(built, graph.problems[0])):
        raise ValueError(
            "the processes have built different problem graphs (names, steps, accumulate, reads, "
            "optimizers, learning rates, or shapes of parameters differ); build the same on each, "
            "or give distributed=False to train on one process alone"
        )
    owners = {id(t): p.name for p in graph.problems for t in p.parameters}
    parameters = graph.space.parameters()
    device = graph.problems[0].device
    whole = [t for t in parameters if not is_sharded(t)]  # of the others each has its own part
    if not whole:
        return
    marks = torch.stack([_mark(t).to(device) for t in whole])
    for parameter, same in zip(whole, _same(reduction, marks).tolist(), strict=True):
        if not all(same):
            owner = owners.get(id(parameter))
            whose = "that no optimizer holds" if owner is None else f"of problem {owner!r}"
            raise ValueError(
                f"parameter {graph.space.names[id(parameter)]!r} {whose} differs between the "
                "processes, which must start from the same values: load the same weights, or call "
                "torch.manual_seed with one seed on all before the model is built (and with "
                "another on each after it, for dropout)"
            )


def warn_of_identical(problem: Problem, batch: Any, reduction: Reduction) -> None:
    """Warn if `batch` holds the same numbers on all processes."""
    if reduction.is_local:
        return
    found = [
        (path, tuple(leaf.shape), _mark(torch.as_tensor(leaf)).tolist())
        for path, leaf in leaves_of(batch).items()
        if _is_numeric(leaf)
    ]
    same = _agrees(reduction, _number(repr(found) if found else "", problem))
    if same and found:
        warnings.warn(
            f"the first batch of problem {problem.name!r} is the same on all {reduction.num_ranks} "
            "processes, which then do the same work: hand each its own part of the data, as with a "
            "DistributedSampler (the engine never shards)",
            stacklevel=2,
        )


def _description(graph: ProblemGraph, problem: Problem) -> tuple[Any, ...]:
    """Return what must be equal of a problem, beside the values of its parameters."""
    return (
        problem.name,
        problem.steps,
        problem.accumulate,
        problem.batches is None,
        sorted(graph.reads[problem.name]),
        problem.optimizer_class.__qualname__,
        type(problem.method).__qualname__,
        [float(rate) for rate in _rates(problem)],
        [(tuple(t.shape), str(t.dtype)) for t in problem.parameters],
    )


def _rates(problem: Problem) -> Iterable[float]:
    rates = (group.get("lr") for group in problem.optimizer.param_groups)
    return (-1.0 if rate is None else float(rate) for rate in rates)


def _number(text: str, problem: Problem) -> Tensor:
    """Return a number that stands for `text`, exact in float64."""
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return torch.tensor([float(digest)], dtype=torch.float64, device=problem.device)


def _mark(tensor: Tensor) -> Tensor:
    """Return two numbers that differ where tensors differ, but for chance."""
    flat = tensor.detach().reshape(-1)
    if not (flat.is_floating_point() or flat.is_complex()):
        flat = flat.to(torch.float64)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    marks = torch.stack(
        [flat.sum(dtype=torch.float64), torch.linalg.vector_norm(flat, dtype=torch.float64)]
    )
    return marks.nan_to_num()


def _is_numeric(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) or leaf.dtype.kind in "biufc"


def _agrees(reduction: Reduction, value: Tensor) -> bool:
    return bool(_same(reduction, value).all())


def _same(reduction: Reduction, values: Tensor) -> Tensor:
    """Return which numbers are equal on all processes."""
    largest, smallest = reduction.largest(torch.stack([values, -values])).unbind()
    return largest.eq(-smallest)
