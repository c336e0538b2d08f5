"""Means over the processes of a data-parallel run: what is reduced, and where.

Each of `n` processes holds the same parameters and its own batches, and the losses that are meant
are means over all of them: ``l = 1/n sum_r l_r``. What is computed from parameters and reduced
quantities alone is the same everywhere and is never communicated: solvers, optimizers, radii of
differences, statuses, stopping, directions that a method draws with a seed of its own. What is
computed on batches is reduced once, where the batches are averaged:

    quantity                                where                    used by
    f, its partial derivatives              passes.evaluate          all
    g_x, g_y at other points                gradients.gradients      darts, sama, f2sa, pbgd
    g_yy v, g_xy v                          GradientGraph.product    t1t2, cg ..., soba, unrolled
    g_y of a step that is taken again       GradientGraph.gradient   unrolled, forward_mode
                                            replay.lower_gradient    unrolled, evolution
    J' l_zz J v                             GaussNewtonProducts      GaussNewton()
    f at shifted parameters                 evolution                evolution

Where gradients are differentiated again within larger graphs (a middle problem that sees a solution
below it), two maps take the place of the mean, each the other's derivative, so that derivatives of
any order are right:

    spread    forward: a -> a, the same values on each process;    backward: the mean of cotangents
    gathered  forward: the mean of values;                         backward: a -> a

A solution that is attached below is spread before a loss on a batch reads it, since the linear
systems behind it need one right-hand side on all processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from blo.derivatives.pullback import Gradient
from blo.derivatives.sharded import any_sharded, is_sharded
from blo.linear.tensors import Tensors

# A bucket is closed at so many bytes.
BUCKET = 1 << 26


class Reduction:
    """Means over processes, and what they cost; without a group, over this process alone, which
    changes nothing and costs nothing.

    All processes must ask for the same means in the same order. Half precision is summed in
    float32.

    Args:
        group: a `torch.distributed.ProcessGroup` of more than one process, or None.

    Attributes:
        group: the group.
        num_ranks: the number of processes.
        num_reductions: all-reduces so far.
        num_bytes: bytes that this process has handed to them.

    Example:
        >>> reduction = Reduction()
        >>> reduction.means((torch.tensor(2.0),)), reduction.num_ranks, reduction.num_bytes
        ((tensor(2.),), 1, 0)
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.num_ranks: int = 1 if group is None else group.size()
        self.num_reductions = 0
        self.num_bytes = 0

    @property
    def is_local(self) -> bool:
        """Whether there is one process alone."""
        return self.num_ranks == 1

    def means(self, tensors: Tensors) -> Tensors:
        """Return the mean of each tensor over the processes, without graph: one all-reduce for each
        bucket of tensors of one type and device.
        """
        if self.is_local:
            return tensors
        if any_sharded(tensors):  # those are means already
            plain = iter(self.means(tuple(t for t in tensors if not is_sharded(t))))
            return tuple(t if is_sharded(t) else next(plain) for t in tensors)
        buckets = [(b, _packed([tensors[i] for i in b])) for b in _buckets(tensors)]
        self._sum([flat for _, flat in buckets])
        found: dict[int, Tensor] = {}
        for bucket, flat in buckets:
            pieces = (flat / self.num_ranks).split([tensors[i].numel() for i in bucket])
            for i, piece in zip(bucket, pieces, strict=True):
                found[i] = piece.view(tensors[i].shape).to(tensors[i].dtype)
        return tuple(found[i] for i in range(len(tensors)))

    def gradient(
        self, gradient: Gradient, like: Tensors, beside: Tensors = ()
    ) -> tuple[tuple[Tensor | None, ...], Tensors]:
        """Return the mean of a gradient, with None where all processes have None, and the means of
        the tensors `beside` it, in the same buckets.

        A process that has None counts as zeros; that it does goes along, one number a tensor.
        Sparse parts are sent dense.
        """
        if self.is_local or not like:
            return tuple(gradient), self.means(beside)
        if any_sharded(like):
            own = [i for i, t in enumerate(like) if not is_sharded(t)]
            parts, aside = self.gradient(
                [gradient[i] for i in own], tuple(like[i] for i in own), beside
            )
            plain = dict(zip(own, parts, strict=True))
            return tuple(plain.get(i, gradient[i]) for i in range(len(like))), aside
        there = like[0].new_tensor([g is not None for g in gradient])
        dense = tuple(
            torch.zeros_like(t) if g is None else g.to_dense() if g.is_sparse else g
            for g, t in zip(gradient, like, strict=True)
        )
        *values, shares = self.means((*dense, *beside, there))
        known = shares.tolist()
        pairs = zip(values[: len(like)], known, strict=True)
        return tuple(v if share > 0 else None for v, share in pairs), tuple(values[len(like) :])

    def spread(self, tensors: Tensors) -> Tensors:
        """Return the same values, of which each process will have its own cotangents."""
        if self.is_local or not tensors:
            return tensors
        spread: Tensors = _Spread.apply(self, *tensors)  # type: ignore[no-untyped-call]
        return spread

    def gathered(self, tensors: Tensors) -> Tensors:
        """Return the mean of each tensor over the processes, in the graph."""
        if self.is_local or not tensors:
            return tensors
        means: Tensors = _Gathered.apply(self, *tensors)  # type: ignore[no-untyped-call]
        return means

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of each number over the processes; not counted."""
        if self.is_local:
            return values
        largest = values.clone()
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, self.group)
        return largest

    def _sum(self, flats: Sequence[Tensor]) -> None:
        """Add up each vector over the processes, in place."""
        self.num_reductions += len(flats)
        self.num_bytes += sum(flat.nbytes for flat in flats)
        waiting = [torch.distributed.all_reduce(f, group=self.group, async_op=True) for f in flats]
        for work in waiting:
            work.wait()


# One process alone.
LOCAL = Reduction()


def _buckets(tensors: Tensors) -> Iterator[list[int]]:
    """Yield the positions of tensors that are sent together, of one type and device each."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, t in enumerate(tensors):
        kinds.setdefault((t.device, _sent_as(t)), []).append(i)
    for (_, dtype), positions in kinds.items():
        bucket: list[int] = []
        size = 0
        for i in positions:
            length = tensors[i].numel() * dtype.itemsize
            if bucket and size + length > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(i)
            size += length
        yield bucket


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """Return the entries of some tensors as one vector with memory of its own."""
    return torch.cat([t.detach().reshape(-1).to(_sent_as(t)) for t in tensors])


def _sent_as(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class _Spread(torch.autograd.Function):
    """The values forward, the mean over processes backward."""

    is_self_contained = True

    @staticmethod
    def forward(ctx: Any, reduction: Reduction, *tensors: Tensor) -> Tensors:
        ctx.reduction = reduction
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> Any:
        return (None, *ctx.reduction.gathered(cotangent))


class _Gathered(torch.autograd.Function):
    """The mean over processes forward, the values backward."""

    is_self_contained = True

    @staticmethod
    def forward(ctx: Any, reduction: Reduction, *tensors: Tensor) -> Tensors:
        ctx.reduction = reduction
        return reduction.means(tensors)

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> Any:
        return (None, *ctx.reduction.spread(cotangent))
