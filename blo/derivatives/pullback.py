"""Vectors pulled back through graphs; None stands for zeros where nothing depends on an input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from blo.linear.tensors import Tensors

Gradient: TypeAlias = Sequence[Tensor | None]


def pulled_back(
    outputs: Gradient,
    inputs: Tensors,
    weights: Gradient,
    *,
    keep: bool = False,
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return ``d<outputs, weights>/d(inputs)``, with None for inputs that no output depends on.

    Args:
        outputs: tensors in a graph; None, and tensors without a graph, contribute nothing.
        inputs: what they may depend on.
        weights: one for each output, None for zeros.
        keep: keep the graph for another pull-back.
        create_graph: return the result in a graph of its own.
    """
    attached = [
        (o, w)
        for o, w in zip(outputs, weights, strict=True)
        if o is not None and w is not None and o.requires_grad
    ]
    if not attached or not inputs:
        return (None,) * len(inputs)
    ends, factors = zip(*attached, strict=True)
    return torch.autograd.grad(
        ends,
        inputs,
        factors,
        retain_graph=keep or create_graph,
        create_graph=create_graph,
        allow_unused=True,
    )


def filled(gradient: Gradient, like: Tensors) -> Tensors:
    """Return `gradient` with zeros in the places of None, and sparse parts made dense."""
    pairs = zip(gradient, like, strict=True)
    return tuple(
        torch.zeros_like(t) if g is None else g.to_dense() if g.is_sparse else g for g, t in pairs
    )


def reached(gradient: Iterable[Tensor | None]) -> bool:
    """Return whether any part of `gradient` is there."""
    return any(g is not None for g in gradient)


def mean(pieces: Sequence[Gradient]) -> tuple[Tensor | None, ...]:
    """Return the mean of several gradients, with None where all have None."""
    if len(pieces) == 1:
        return tuple(pieces[0])
    return tuple(
        _mean_of([t for t in column if t is not None], len(pieces))
        for column in zip(*pieces, strict=True)
    )


def _mean_of(parts: Sequence[Tensor], n: int) -> Tensor | None:
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / n
