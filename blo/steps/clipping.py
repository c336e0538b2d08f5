"""Gradient clipping as a differentiable part of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo.linear.settings import is_finite
from blo.linear.tensors import Tensors
from blo.steps.tangents import pushed_forward

FLOOR = 1e-6  # what torch.nn.utils.clip_grad_norm_ adds to the norm


@dataclass(frozen=True)
class Clip:
    """What the gradient of a problem is clipped to before its optimizer gets it.

    Args:
        norm: largest Euclidean norm of all tensors together, as in
            `torch.nn.utils.clip_grad_norm_`: the gradient is multiplied by
            ``min(1, norm / (|g| + 1e-6))``.
        value: largest absolute value of an element, as in `torch.nn.utils.clip_grad_value_`. With
            both, values are clipped after the norm.

    Raises:
        ValueError: naming the argument, its value and the remedy.

    Example:
        >>> clipped((torch.tensor([3.0, 4.0]),), Clip(value=3.5))
        (tensor([3.0000, 3.5000]),)
    """

    norm: float | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        """Check the bounds."""
        if self.norm is None and self.value is None:
            raise ValueError("Clip needs a bound, Clip(norm=1.0) or Clip(value=1.0), got neither")
        for name, bound in (("norm", self.norm), ("value", self.value)):
            if bound is not None and not (is_finite(bound) and bound > 0):
                raise ValueError(f"{name} must be a number above 0, got {bound!r}")


def clipped(gradient: Sequence[Tensor | None], clip: Clip) -> tuple[Tensor | None, ...]:
    """Return the clipped gradient, in its graph; the bits are those of torch's functions.

    At a kink the derivative is that of the branch taken. None stays None.

    Args:
        gradient: of all tensors of one problem.
        clip: the bounds.

    Example:
        >>> clipped((torch.tensor([3.0, 4.0]), None), Clip(norm=2.5))
        (tensor([1.5000, 2.0000]), None)
    """
    known = tuple(g for g in gradient if g is not None)
    if clip.norm is not None and known:
        factor = torch.clamp(clip.norm / (_norm(known) + FLOOR), max=1.0)
        known = tuple(g.mul(factor.to(g.device)).to(g.dtype) for g in known)
    if clip.value is not None:
        known = tuple(g.clamp(-clip.value, clip.value) for g in known)
    found = iter(known)
    return tuple(None if g is None else next(found) for g in gradient)


def clipping_pulled_back(
    gradient: Sequence[Tensor | None], clip: Clip, cotangent: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Return the cotangent of the gradient from that of the clipped gradient.

    Args:
        gradient: before clipping.
        clip: the bounds.
        cotangent: None where the gradient is None; elsewhere it stands for zeros.

    Example:
        >>> g, c = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])
        >>> clipping_pulled_back((g,), Clip(value=3.5), (c,))
        (tensor([1., 0.]),)
    """
    inputs, outputs = _clipped_leaves(gradient, clip)
    columns = [c for g, c in zip(gradient, cotangent, strict=True) if g is not None]
    weights = [
        torch.zeros_like(t) if c is None else c for t, c in zip(inputs, columns, strict=True)
    ]
    grads = iter(torch.autograd.grad(outputs, inputs, weights) if inputs else ())
    return tuple(None if g is None else next(grads) for g in gradient)


def clipping_pushed_forward(
    gradient: Sequence[Tensor | None], clip: Clip, tangents: Tensors
) -> Tensors:
    """Return the tangents of the clipped gradient.

    Args:
        gradient: before clipping.
        clip: the bounds.
        tangents: of the gradient, stacked along a new first dimension; those of a gradient that is
            None are returned as they are.

    Example:
        >>> g, t = torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 1.0]])
        >>> clipping_pushed_forward((g,), Clip(value=3.5), (t,))
        (tensor([[1., 0.]]),)
    """
    inputs, outputs = _clipped_leaves(gradient, clip)
    known = tuple(t for g, t in zip(gradient, tangents, strict=True) if g is not None)
    pushed = iter(pushed_forward(outputs, inputs, known) if inputs else ())
    columns = zip(gradient, tangents, strict=True)
    return tuple(t if g is None else next(pushed) for g, t in columns)


def _clipped_leaves(gradient: Sequence[Tensor | None], clip: Clip) -> tuple[Tensors, Tensors]:
    inputs = tuple(g.detach().requires_grad_() for g in gradient if g is not None)
    with torch.enable_grad():
        outputs = tuple(g for g in clipped(inputs, clip) if g is not None)
    return inputs, outputs


def _norm(gradient: Tensors) -> Tensor:
    """Return the norm of all tensors together, by the operations of torch's clipping, with a
    derivative of every order also where some of them are zero.
    """
    first = gradient[0].device
    with torch.no_grad():
        norms = [torch.linalg.vector_norm(g) for g in gradient]
        value: Tensor = torch.linalg.vector_norm(torch.stack([n.to(first) for n in norms]))
    if not (torch.is_grad_enabled() and any(g.requires_grad for g in gradient)):
        return value
    # The norm once more, as one root of a sum of squares near 1, for its derivative alone.
    size = torch.where(value > 0, value, 1.0)
    squares = [(g / size.to(g.device)).square().sum().to(first) for g in gradient]
    total = torch.stack([s.to(value.dtype) for s in squares]).sum()
    away = total > 0
    smooth = size * torch.where(away, torch.where(away, total, 1.0).sqrt(), 0.0)
    return value + (smooth - smooth.detach())
