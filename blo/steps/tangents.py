"""Tangents of outputs along tangents of inputs, by differentiating the pull-back."""

from __future__ import annotations

import torch
from torch import Tensor

from blo.linear.tensors import Tensors, leaves, zeros_like


def pushed_forward(outputs: Tensors, inputs: Tensors, tangents: Tensors) -> Tensors:
    """Return ``sum_i d(output)/d(input_i) tangent_i`` of each output, for several tangents at once.

    The pull-back ``v -> J^T v`` is linear, so its derivative along `tangents` is ``J tangents``.

    Args:
        outputs: in the graph of `inputs`; one that is not has tangents of zero.
        inputs: what they are functions of.
        tangents: of each input, stacked along a new first dimension.
    """
    n = len(tangents[0])
    attached = tuple(t for t in outputs if t.requires_grad)
    if not attached:
        return tuple(t.new_zeros(n, *t.shape) for t in outputs)
    with torch.enable_grad():
        cotangents = leaves(zeros_like(attached))
        pulled = torch.autograd.grad(
            attached, inputs, cotangents, create_graph=True, allow_unused=True
        )
    known = [
        (p, t) for p, t in zip(pulled, tangents, strict=True) if p is not None and p.requires_grad
    ]
    found: tuple[Tensor | None, ...] = (None,) * len(attached)
    if known:
        maps, along = zip(*known, strict=True)
        found = torch.autograd.grad(
            maps, cotangents, along, is_grads_batched=True, allow_unused=True
        )
    pushed = iter(found)
    columns = [(t, next(pushed) if t.requires_grad else None) for t in outputs]
    return tuple(t.new_zeros(n, *t.shape) if p is None else p.detach() for t, p in columns)
