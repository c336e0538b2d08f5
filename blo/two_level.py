"""The hypergradient of a two-level problem given as plain functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.objective import FunctionObjective, LossFn, Objective
from blo.derivatives.random_state import RandomState, devices_of
from blo.linear.tensors import Tensors, add, detach, leaves
from blo.methods.context import Context, Info, Method
from blo.methods.named import cg


@dataclass(frozen=True)
class Hypergradient:
    """The result of `hypergradient`.

    Attributes:
        grads: ``dF/dx``, one tensor for each upper tensor.
        upper_loss: ``f(x, y)``, without graph.
        info: how the response was computed: method, point, scale, radius, status, residual, cost.
        direct: ``df/dx``, the part that does not pass through the lower solution.
        state: the method's state; hand it to the next call as `state` to start warm.

    Example:
        >>> import torch
        >>> from blo import cg, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2 + x[0]
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> result = hypergradient(f, g, (torch.tensor(1.0),), (torch.tensor(3.0),), method=cg(5))
        >>> result.grads, result.direct, result.upper_loss  # 3 (3 x - 1) + 1
        ((tensor(7.),), (tensor(1.),), tensor(3.))
    """

    grads: Tensors
    upper_loss: Tensor
    info: Info
    direct: Tensors
    state: Tensors | None = None


def hypergradient(
    upper_loss: LossFn,
    lower_loss: LossFn,
    upper: Sequence[Tensor],
    lower: Sequence[Tensor],
    *,
    method: Method = cg(10),
    state: Tensors | None = None,
) -> Hypergradient:
    """Return the gradient of ``F(x) = f(x, y*(x))`` at `upper`, with ``y*`` taken to be `lower`.

    ``dF/dx = f_x + (dy*/dx)^T f_y``. Nothing is changed: neither the tensors nor their ``.grad``.

    Args:
        upper_loss: ``f(upper, lower)``, a scalar; called with two tuples of tensors.
        lower_loss: ``g(upper, lower)``, a scalar, whose minimiser over `lower` is ``y*``.
        upper: the upper tensors ``x``.
        lower: the lower tensors ``y``, at (or near) the minimiser for the implicit methods.
        method: how the lower solution responds: ``cg(10)``, ``dense()``, ``neumann(20)``,
            ``t1t2()``, ``darts()`` ...
        state: `Hypergradient.state` of the call before, for methods that start warm.

    Raises:
        TypeError: if `upper` or `lower` is not a sequence of floating-point tensors, or a loss is
            not a tensor.
        ValueError: if a loss is not a finite scalar.
        RuntimeError: if no gradient reaches the upper tensors.

    Example:
        >>> x, y = (torch.tensor(0.5),), (torch.tensor(0.5),)
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2 + 0.05 * x[0] ** 2
        >>> g = lambda x, y: 0.5 * 3.0 * (y[0] - x[0]) ** 2
        >>> hypergradient(f, g, x, y).grads  # 1.1 x - 1
        (tensor(-0.4500),)
    """
    x = detach(tensors_of(upper, "upper"))
    y = detach(tensors_of(lower, "lower"))
    device, devices = y[0].device, devices_of(x + y)
    lower_objective = FunctionObjective(lower_loss, RandomState.draw(devices), device)
    upper_objective = FunctionObjective(upper_loss, RandomState.draw(devices), device, "upper_loss")
    return total_derivative(upper_objective, lower_objective, x, y, method=method, state=state)


def total_derivative(
    upper_loss: Objective,
    lower_loss: Objective,
    upper: Tensors,
    lower: Tensors,
    *,
    method: Method,
    state: Tensors | None = None,
) -> Hypergradient:
    """Return the hypergradient of two objectives, whose random draws are fixed; see
    `hypergradient`.
    """
    x, y = leaves(upper), leaves(lower)
    with upper_loss.scope(x, y) as evaluate:
        loss = evaluate()
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"upper_loss must be finite, got {float(loss.detach())}")
        if not loss.requires_grad:
            raise RuntimeError(
                "upper_loss depends neither on upper nor on lower; no gradient exists"
            )
        grads = torch.autograd.grad(loss, x + y, allow_unused=True, materialize_grads=True)
    direct, cotangent = detach(grads[: len(x)]), detach(grads[len(x) :])
    point = Point(detach(x), detach(y))
    objective = LowerObjective((lower_loss,))
    context = Context(objective, after=point, before=point, readers=(upper_loss,))
    response = method.response(context, cotangent, state)
    return Hypergradient(
        grads=add(direct, response.value),
        upper_loss=loss.detach(),
        info=response.info,
        direct=direct,
        state=response.state,
    )


def tensors_of(values: Sequence[Tensor], name: str) -> Tensors:
    """Return the argument `name` as a tuple of floating-point tensors, or raise."""
    if isinstance(values, Tensor) or not all(isinstance(v, Tensor) for v in values):
        raise TypeError(
            f"{name} must be a sequence of tensors, got {type(values).__name__}; "
            f"a single tensor goes in a tuple: {name}=({name},)"
        )
    if not values:
        raise ValueError(f"{name} must hold at least one tensor, got none")
    for i, v in enumerate(values):
        if not v.is_floating_point():
            raise TypeError(f"{name}[{i}] must be a floating-point tensor, got {v.dtype}")
    return tuple(values)
