"""One evaluation of a problem's loss for an update: its value, its gradients, and what it read."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blo.arguments import described
from blo.batches import edited, fresh, own_copy, versions
from blo.derivatives.composed import Composing, composing
from blo.derivatives.graphs import differentiable_again
from blo.derivatives.kept import KeptGraph
from blo.derivatives.objective import scalar
from blo.derivatives.precision import computed_in, fresh_autocast
from blo.derivatives.pullback import Gradient, mean
from blo.derivatives.random_state import RandomState, drawn_from, foreign_marks
from blo.derivatives.reduction import LOCAL, Reduction
from blo.graph import ProblemGraph
from blo.linear.tensors import Tensors, norms, numbers_of
from blo.problem import Problem

logger = logging.getLogger("blo")


class Evaluation(NamedTuple):
    """A problem's loss on the batches of one update, and its gradients by problem.

    Attributes:
        losses: on each batch, or their mean over processes.
        metrics: other scalars in the dictionary that the loss returned, on the last batch.
        grads: the mean gradient, by problem; None where the loss does not reach a parameter.
        random_states: before the evaluation on each batch, where they were kept.
        buffers: the buffers that change, before the evaluation on each batch, where they were kept.
        buffers_after: those after the last.
        found: problems that the loss depends on and was not known to read.
        graph: the gradient of the problem's own parameters in its graph, where it was to be kept
            and can be.
    """

    losses: Tensors
    metrics: Mapping[str, float | Tensor]
    grads: Mapping[str, Gradient]
    random_states: tuple[RandomState, ...]
    buffers: tuple[Mapping[int, Tensor], ...]
    buffers_after: Mapping[int, Tensor]
    found: tuple[Problem, ...]
    graph: KeptGraph | None = None

    def read(self, response: Gradient = ()) -> Readings:
        """Return the numbers of the evaluation, in one wait for the device.

        Args:
            response: a gradient that is read along with them.
        """
        grads = [g for gradient in self.grads.values() for g in gradient]
        own, others = _norms(grads), _norms(response)
        tensors = {k: m for k, m in self.metrics.items() if isinstance(m, Tensor)}
        sizes = (len(self.losses), len(own), len(others), len(tensors))
        read = iter(numbers_of((*self.losses, *own, *others, *tensors.values())))
        losses, own_norms, norms_beside, metrics = ([*islice(read, n)] for n in sizes)
        known = dict(zip(tensors, metrics, strict=True))
        return Readings(
            sum(losses) / len(losses),
            math.hypot(*own_norms),
            math.hypot(*norms_beside),
            {k: known[k] if k in known else float(m) for k, m in self.metrics.items()},
        )


class Readings(NamedTuple):
    """The numbers of an evaluation.

    Attributes:
        loss: the mean over the batches.
        size: the norm of the gradients.
        response: the norm of the gradient that was read along with them.
        metrics: other scalars in the dictionary that the loss returned.
    """

    loss: float
    size: float
    response: float
    metrics: dict[str, float]


def evaluate(
    graph: ProblemGraph,
    problem: Problem,
    wanted: Sequence[Problem],
    batches: tuple[Any, ...],
    precision: torch.dtype | None,
    keep: bool,
    reduction: Reduction = LOCAL,
    kept: KeptGraph | None = None,
) -> Evaluation:
    """Return the loss and its partial derivatives for the parameters of `wanted`.

    One forward and one backward pass a batch, whatever is wanted; no backward pass for a loss
    without gradient. No wait for the device: `Evaluation.read` is the one.

    Args:
        graph: the problems.
        problem: whose loss it is.
        wanted: the problems whose gradients are taken.
        batches: what the loss is called with.
        precision: autocast type.
        keep: return what is needed to evaluate the loss again.
        reduction: over which processes loss and derivatives are means, beside the batches.
        kept: where the graph of the gradient is put, of which alone the problem's own parameters
            are wanted then; the loss is evaluated at its leaves.

    Raises:
        ValueError: if the loss changes a tensor of its batch, or a buffer, that it was not known to
            change.
    """
    parameters = tuple(t for p in wanted for t in p.parameters)
    pieces = [
        _kept_piece(graph, problem, parameters, batch, precision, kept)
        if kept is not None
        else _piece(graph, problem, parameters, batch, precision, keep)
        for batch in batches
    ]
    grads: Gradient = mean([piece.grads for piece in pieces])
    losses = tuple(piece.loss for piece in pieces)
    met = {name for piece in pieces for name in piece.found}
    if not reduction.is_local:
        grads, losses, met = _reduced(reduction, parameters, grads, losses, graph, problem, met)
    split: dict[str, Gradient] = {}
    for p in wanted:
        split[p.name], grads = grads[: len(p.parameters)], grads[len(p.parameters) :]
    return Evaluation(
        losses,
        pieces[-1].metrics,
        split,
        tuple(piece.random_state for piece in pieces if piece.random_state is not None),
        tuple(piece.buffers for piece in pieces if keep),
        graph.space.copies_of(graph.changes[problem.name]) if keep else {},
        tuple(p for p in graph.problems if p.name in met),
        None if met or graph.changes[problem.name] else kept,
    )


def _reduced(
    reduction: Reduction,
    parameters: Tensors,
    grads: Gradient,
    losses: Tensors,
    graph: ProblemGraph,
    problem: Problem,
    met: set[str],
) -> tuple[Gradient, Tensors, set[str]]:
    """Return gradients, mean loss and newly read problems of all processes, sent together."""
    loss = torch.stack([loss.to(losses[0]) for loss in losses]).mean()
    unread = [q.name for q in graph.role(problem).unread]
    flags = parameters[0].new_tensor([name in met for name in unread])
    found, (loss, flags) = reduction.gradient(grads, parameters, (loss, flags))
    pairs = zip(unread, flags.tolist(), strict=True)
    return found, (loss,), {name for name, share in pairs if share > 0}


class _Piece(NamedTuple):
    """What `Evaluation` holds, of one batch."""

    loss: Tensor
    grads: Gradient
    metrics: dict[str, float | Tensor]
    random_state: RandomState | None
    buffers: Mapping[int, Tensor]
    found: tuple[str, ...]


def _kept_piece(
    graph: ProblemGraph,
    problem: Problem,
    parameters: Tensors,
    batch: Any,
    precision: torch.dtype | None,
    kept: KeptGraph,
) -> _Piece:
    """Return the same as `_piece`, evaluated at the leaves of `kept`, with the graph put there."""
    mode = composing(2)
    places = tuple(t for name in kept.leaves for t in graph[name].parameters)
    leaves, own = tuple(t for tensors in kept.leaves.values() for t in tensors), problem.name
    with graph.space.placed(places, leaves), differentiable_again():

        def gradient(loss: Tensor) -> Gradient:
            return kept.pieces.add(loss, kept.leaves[own], mode)

        return _piece(graph, problem, parameters, batch, precision, True, gradient, mode, leaves)


def _piece(
    graph: ProblemGraph,
    problem: Problem,
    parameters: Tensors,
    batch: Any,
    precision: torch.dtype | None,
    keep: bool,
    gradient: Callable[[Tensor], Gradient] | None = None,
    mode: Composing | None = None,
    leaves: Tensors = (),
) -> _Piece:
    """Return what a loss is on one batch.

    Args:
        gradient: takes the gradient of the loss, in place of `torch.autograd.grad`.
        mode: in which the loss is evaluated then.
        leaves: what it is a function of then, which may be in a graph of their own.
    """
    role, space = graph.role(problem), graph.space
    state, buffers, marks = None, {}, None
    if keep:
        devices = dict.fromkeys(t.device for t in parameters)
        state = RandomState.capture(devices, problem.generators, foreign=problem.draws)
        buffers = space.copies_of(graph.changes[problem.name])
        marks = None if problem.draws else foreign_marks()
    given = fresh(batch) if problem.edits_batch else own_copy(batch)
    before, seen = versions(given), space.versions()
    with (
        fresh_autocast(problem.device, precision),
        _gradients_on(role.differentiable),
        mode or nullcontext(),
    ):
        output = problem.loss(given)
    loss = scalar(output, f"loss of problem {problem.name!r}")
    if not problem.edits_batch:
        _refuse_edits(problem, edited(before))
    _note_buffers(graph, problem, space.changed(seen), keep)
    if marks is not None and drawn_from(marks):
        # It begins to draw from Python's or numpy's generators: once more, from a known state.
        problem.draws = True
        return _piece(graph, problem, parameters, batch, precision, keep, gradient, mode, leaves)
    if problem.computed_in is None:
        problem.computed_in = computed_in(loss)
    found: tuple[str, ...] = ()
    if role.differentiable and role.unread:
        met = _leaves_of(loss, leaves)
        found = tuple(q.name for q in role.unread if any(id(t) in met for t in q.parameters))
    grads: Gradient = (None,) * len(parameters)
    if role.differentiable and space.is_sharded:
        others = tuple(t for q in role.unread for t in q.parameters)
        taken = space.backward(loss, parameters + others)
        grads, reached = taken[: len(parameters)], taken[len(parameters) :]
        met = {id(t) for t, g in zip(others, reached, strict=True) if g is not None}
        found = tuple(q.name for q in role.unread if any(id(t) in met for t in q.parameters))
    elif gradient is not None:
        grads = gradient(loss)
    elif role.differentiable:
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return _Piece(loss.detach(), grads, _scalars(output, problem), state, buffers, found)


def _gradients_on(wanted: bool) -> AbstractContextManager[object]:
    """Return a context with gradients on or off; none where they are so already."""
    return nullcontext() if torch.is_grad_enabled() == wanted else torch.set_grad_enabled(wanted)


def _refuse_edits(problem: Problem, names: Sequence[str]) -> None:
    if names:
        raise ValueError(
            f"the loss of problem {problem.name!r} changes {', '.join(names)} in place, which it "
            "did not on its first batch; evaluated again, it would see the changed values. Let it "
            "work on a copy (x = x * 0.5 in place of x.mul_(0.5), or x.clone() first)"
        )


def _note_buffers(
    graph: ProblemGraph, problem: Problem, changed: Sequence[int], keep: bool
) -> None:
    """Take in which buffers the loss changes, so that they are kept from the next update on."""
    known = graph.changes[problem.name]
    if set(changed) - set(known):
        graph.changes[problem.name] = tuple(sorted({*known, *changed}))
        if keep:
            logger.warning(
                "the loss of problem %r begins to change buffers that it did not change on its "
                "first batch (a module set to train()?); the response to this one update is taken "
                "with their values after it",
                problem.name,
            )


def _leaves_of(loss: Tensor, ends: Tensors) -> set[int]:
    """Return the identities of the leaves in the graph of `loss`, as far as `ends`."""
    found = {id(loss)} if loss.grad_fn is None else set()
    waiting = [loss.grad_fn] if loss.grad_fn is not None else []
    seen = {*waiting, *(t.grad_fn for t in ends)}
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


def _norms(grads: Gradient) -> list[Tensor]:
    """Return the norm of each tensor that is there of a gradient."""
    there = tuple(g for g in grads if g is not None)
    return norms(tuple(g.coalesce().values() if g.is_sparse else g for g in there))


def _scalars(output: Any, problem: Problem) -> dict[str, float | Tensor]:
    """Return the numbers beside the loss in a dictionary, those in tensors of decimals unread; what
    is no number is named in the log, once.
    """
    if not isinstance(output, dict):
        return {}
    found = {
        str(k): _scalar(v)
        for k, v in output.items()
        if k != "loss"
        and (isinstance(v, (int, float)) or (isinstance(v, Tensor) and v.numel() == 1))
    }
    if len(found) + 1 < len(output):
        _name_unrecorded(problem, output, found)
    return found


def _scalar(value: float | Tensor) -> float | Tensor:
    """Return a number, or a tensor that is read with others; whole numbers are read exactly."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().reshape(())
    return float(value)


def _name_unrecorded(
    problem: Problem, output: Mapping[Any, Any], found: Mapping[str, float | Tensor]
) -> None:
    """Log, once each, the entries beside the loss that are not among the numbers `found`."""
    for key, value in output.items():
        name = str(key)
        if key == "loss" or name in found or name in problem.unrecorded:
            continue
        problem.unrecorded.add(name)
        logger.warning(
            "the loss of problem %r returns %s as %r, which is no number and is in no record; "
            "return its mean, or leave it out",
            problem.name,
            described(value),
            name,
        )
