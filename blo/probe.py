"""What a loss reads, changes and draws from, seen on its first batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blo.batches import edited, fresh, to_device, versions
from blo.derivatives.objective import scalar
from blo.derivatives.precision import fresh_autocast
from blo.derivatives.pullback import Gradient, pulled_back
from blo.derivatives.random_state import RandomState, drawn_from, foreign_marks
from blo.evaluation import ParameterSpace
from blo.linear.tensors import Tensors, leaves, sum_all
from blo.problem import Problem


class Seen(NamedTuple):
    """What `probe` returns.

    Attributes:
        reads: the names of the problems whose parameters the loss, its start or its options reach;
            None for a loss without gradient.
        edits_batch: whether the loss changes its batch in place.
        changes: the numbers of the buffers that it changes.
        draws: whether it draws from the global generators of Python or numpy.
    """

    reads: tuple[str, ...] | None
    edits_batch: bool
    changes: tuple[int, ...]
    draws: bool


def probe(problem: Problem, problems: Sequence[Problem], space: ParameterSpace, batch: Any) -> Seen:
    """Return what the loss of `problem` does on `batch`; all is afterwards as it was before.

    A loss that fails in plain precision is tried under bfloat16 autocast, since the precision that
    an engine will use is not known yet.

    Raises:
        ValueError: if the loss reaches a parameter that was taken out of its module before:
            products and differences put other values in the modules, which it would not see.
    """
    try:
        return _probed(problem, problems, space, batch, None)
    except RuntimeError:
        try:
            return _probed(problem, problems, space, batch, torch.bfloat16)
        except RuntimeError:
            pass
        raise


def _probed(
    problem: Problem,
    problems: Sequence[Problem],
    space: ParameterSpace,
    batch: Any,
    precision: torch.dtype | None,
) -> Seen:
    owned = tuple(t for p in problems for t in p.parameters)
    devices = dict.fromkeys(t.device for t in owned)
    state = RandomState.capture(devices, problem.generators)
    placed, given = leaves(owned), fresh(to_device(batch, problem.device))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        state.replay(),
        space.substituted(*(((), ()) if space.is_sharded else (owned, placed))),
        fresh_autocast(problem.device, precision),
    ):
        before, buffers, marks = versions(given, arrays=True), space.versions(), foreign_marks()
        loss = scalar(problem.loss(given), f"loss of problem {problem.name!r}")
        does = bool(edited(before)), space.changed(buffers), drawn_from(marks)
        if not loss.requires_grad:
            return Seen(None, *does)
        ends = (loss, *_ends_of(problem))
        if space.is_sharded:
            found = space.backward(sum_all(ends), owned)
            return Seen(_names(problems, owned, found), *does)
        grads = pulled_back(ends, placed + owned, tuple(torch.ones_like(t) for t in ends))
    _refuse_captured(problem, space, owned, grads[len(owned) :])
    return Seen(_names(problems, owned, grads[: len(owned)]), *does)


def _names(problems: Sequence[Problem], owned: Tensors, grads: Gradient) -> tuple[str, ...]:
    """Return the names of the problems of which a parameter has a gradient."""
    reached = {id(t) for t, g in zip(owned, grads, strict=True) if g is not None}
    return tuple(p.name for p in problems if any(id(t) in reached for t in p.parameters))


def _refuse_captured(
    problem: Problem, space: ParameterSpace, owned: Tensors, grads: Gradient
) -> None:
    """Raise if a parameter has a gradient though another tensor stood in its place."""
    for parameter, grad in zip(owned, grads, strict=True):
        if grad is not None:
            raise ValueError(
                f"the loss of problem {problem.name!r} uses the parameter "
                f"{space.names[id(parameter)]!r} as a tensor taken out of its module before, where "
                "no other value can be put in its place; take it from the module inside the loss "
                "(module.weight, or module.parameters() called there)"
            )


def _ends_of(problem: Problem) -> Tensors:
    """Return what the lower steps are functions of beside the loss: their start and the options of
    the optimizer.
    """
    ends = [] if problem.start is None else list(problem.start())
    for function in problem.option_functions.values():
        value = function()
        ends += value if isinstance(value, (tuple, list)) else [value]
    return tuple(t for t in ends if isinstance(t, Tensor))
