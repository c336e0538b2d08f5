"""Parameters that FSDP2 (``fully_shard``) has sharded: their gradients, and other values in their
places.

Such a parameter is a DTensor, of which each process holds a part. The model computes on tensors
that it gathers before each layer, and averages gradients over the processes in hooks of
``backward()``; ``torch.autograd.grad`` returns local tensors there that nobody has averaged. So
gradients are those of ``backward()``, and other values are written into the parameters for the time
of an evaluation: a tensor put in their place would not be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from blo.linear.tensors import PLAIN, Tensors


def is_sharded(tensor: Tensor) -> bool:
    """Return whether `tensor` is a DTensor."""
    return type(tensor) not in PLAIN and hasattr(tensor, "full_tensor")


def any_sharded(tensors: Sequence[Tensor]) -> bool:
    """Return whether one of `tensors` is a DTensor."""
    return any(is_sharded(t) for t in tensors)


def fully_sharded(module: nn.Module) -> list[nn.Module]:
    """Return the parts of `module` that ``fully_shard`` was called on."""
    return [part for part in module.modules() if hasattr(part, "_get_fsdp_state")]


def backward_gradient(
    loss: Tensor, inputs: Tensors, parameters: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """Return ``d loss / d(inputs)`` from ``backward()``, with None where the loss does not depend
    on one; the mean over the processes where `inputs` are sharded, and local elsewhere.

    Args:
        loss: a tensor of one element, in a graph.
        inputs: some of the parameters.
        parameters: all that the loss may reach, whose ``.grad`` stays what it is.
    """
    held = [(p, p.grad) for p in parameters]
    for p, _ in held:
        p.grad = None
    try:
        if loss.requires_grad:
            loss.backward()
        return tuple(p.grad for p in inputs)
    finally:
        for p, grad in held:
            p.grad = grad


@contextmanager
def written(
    parameters: Sequence[Tensor], values: Tensors, parts: Sequence[nn.Module]
) -> Iterator[None]:
    """Run a block with `values` written into `parameters`, which are afterwards as they were.

    Args:
        parameters: of the modules.
        values: one for each.
        parts: those that ``fully_shard`` was called on, which gather their parameters anew.
    """
    before = tuple(p.detach().clone() for p in parameters)
    try:
        _write(parameters, values, parts)
        yield
    finally:
        _write(parameters, before, parts)


def _write(parameters: Sequence[Tensor], values: Tensors, parts: Sequence[nn.Module]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    for part in parts:
        part.reshard()  # type: ignore[operator]
