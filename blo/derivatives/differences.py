"""Products by differences of gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from blo.derivatives.gradients import gradients
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.products import NO_LOWER, NO_PATH, Products
from blo.linear.tensors import (
    Tensors,
    axpy,
    detach,
    largest_entries,
    length,
    root_mean_squares,
    scale,
    subtract,
    zeros_like,
)


@dataclass(frozen=True)
class FiniteDifference:
    """Products from first derivatives at perturbed copies of the lower parameters.

    Central: ``g_xy v = [g_x(y + e v) - g_x(y - e v)] / 2e + O(e^2)``. One-sided: ``g_xy v =
    [g_x(y + e v) - g_x(y)] / e + O(e)``, where ``g_x(y)`` is taken over from the lower step if it
    is known. `e` is the largest at which no entry of `y` moves by more than ``radius`` times the
    typical size of the entries of its tensor, their root mean square or a floor where that is
    less:

        e = radius * min over tensors t of  max(rms(y_t), floor) / max|v_t|
        floor = min(0.1, max over tensors t of  max(rms(y_t), 1e-3))

    so that tensors that `v` does not live in have no say, and neither has their size. Fused
    attention and compiled modules stay as they are.

    Args:
        radius: relative step; None takes the value measured for the type that the loss is
            computed in (`DEFAULT_RADIUS`). Only with None does the first response of a problem
            compare two radii (`Info.disagreement`).
        one_sided: half the cost, less accurate.

    Example:
        >>> import torch
        >>> from blo import CG, Implicit, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=Implicit(CG(1), FiniteDifference(1e-3)))
        >>> info = result.info  # two gradients for g_yy v, two for g_xy v
        >>> round(result.grads[0].item(), 6), info.num_gradients, info.num_products
        (6.0, 4, 0)

    Reference: Liu, Simonyan and Yang (2019), arXiv:1806.09055, equation 8.
    """

    radius: float | None = None
    one_sided: bool = False

    def __post_init__(self) -> None:
        """Check the radius."""
        if self.radius is not None and not (math.isfinite(self.radius) and self.radius > 0):
            raise ValueError(
                f"radius must be positive and finite, or None for the default, got {self.radius}"
            )

    @property
    def needs_upper_gradient(self) -> bool:
        """One-sided differences reuse the gradient of the lower step."""
        return self.one_sided

    def at(self, lower: LowerObjective, point: Point) -> Products:
        """Return finite-difference products; nothing is evaluated yet."""
        return FiniteDifferenceProducts(self, lower, point)


# (central, one-sided), by the type of the forward pass; measured by benchmarks/radius.py.
DEFAULT_RADIUS: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (3e-5, 3e-7),
    torch.float32: (5e-3, 1e-3),
    torch.bfloat16: (6e-2, 7e-2),
    torch.float16: (3e-2, 2e-2),
}

# Entries of tensors of less typical size than this (biases, low-rank factors that start at zero)
# move as if they had it, the size of the weights of a layer of a hundred inputs, unless all tensors
# are smaller.
SMALLEST_SIZE = 0.1


class FiniteDifferenceProducts:
    """Products by differences of gradients: two gradients each, or one where one-sided and the
    gradient is known.
    """

    def __init__(self, rule: FiniteDifference, lower: LowerObjective, point: Point) -> None:
        self.num_gradients = 0
        self.num_products = 0
        self.radius: float | None = None
        self._rule = rule
        self._objective = lower
        self._point = point
        self._base: dict[str, Tensors] = {}
        if point.upper_gradient is not None:
            self._base["upper"] = point.upper_gradient

    def hvp(self, v: Tensors) -> Tensors:
        """Return ``g_yy v``."""
        return self._objective.decayed(self._difference("lower", v), v)

    def mixed(self, v: Tensors) -> Tensors:
        """Return ``g_xy v``.

        Raises:
            RuntimeError: if the lower loss depends on no upper parameter.
        """
        return self._difference("upper", v)

    def disagreement(self, v: Tensors, mixed: Tensors) -> float | None:
        """Return ``|mixed - b| / |b|``, with `b` the product ``g_xy v`` at half the radius; None
        where the user gave the radius. Costs what the product did, less what is known.
        """
        if self._rule.radius is not None:
            return None
        radius = self.radius
        closer = self._difference("upper", v, shorter=0.5)
        self.radius = radius
        apart, size = length(subtract(mixed, closer)), length(closer)
        if apart == 0.0:
            return 0.0
        return apart / size if size > 0.0 else math.inf

    def _difference(self, level: str, v: Tensors, *, shorter: float = 1.0) -> Tensors:
        v, y = detach(v), detach(self._point.lower)
        size = length(v)
        if size == 0.0:
            self.radius = 0.0
            return zeros_like(self._point.upper if level == "upper" else y)
        if not math.isfinite(size):
            raise FloatingPointError(
                f"a difference of gradients was asked for along a vector of length {size}; the "
                "loss above, or its gradient, is too large for its type: scale it down"
            )
        one_sided = self._rule.one_sided
        e = shorter * difference_step(
            self._objective, y, v, one_sided=one_sided, radius=self._rule.radius
        )
        self.radius = e * size
        plus = self._gradient(level, axpy(e, v, y))
        if one_sided:
            if level not in self._base:
                self._base[level] = self._gradient(level, y)
            difference = scale(1.0 / e, subtract(plus, self._base[level]))
        else:
            minus = self._gradient(level, axpy(-e, v, y))
            difference = scale(0.5 / e, subtract(plus, minus))
        return self._objective.signed(difference)

    def _gradient(self, level: str, y: Tensors) -> Tensors:
        """Return the gradient of the losses with respect to one level at `y`."""
        self.num_gradients += 1
        upper = level == "upper"
        found = gradients(
            self._objective.losses,
            self._point.upper,
            y,
            with_upper=upper,
            with_lower=not upper,
            reduction=self._objective.reduction,
        )
        if not found.reached:
            raise RuntimeError(NO_PATH if upper else NO_LOWER)
        return found.upper if upper else found.lower


def difference_step(
    lower: LowerObjective,
    y: Tensors,
    v: Tensors,
    *,
    one_sided: bool,
    radius: float | None = None,
) -> float:
    """Return the `e` of the difference of gradients at ``y + e v``.

    ``e = r min_t max(rms(y_t), floor) / max|v_t|`` (`FiniteDifference`) over the tensors `t` where
    `v` is not zero, with `r` the `radius`, or the value measured for the coarsest type that the
    lower loss is computed in (`DEFAULT_RADIUS`).

    Raises:
        ValueError: if `v` is zero.
    """
    if radius is None:
        radius = DEFAULT_RADIUS[lower.dtype(y)][1 if one_sided else 0]
    typical = root_mean_squares(y)
    floor = min(SMALLEST_SIZE, max(1e-3, *typical))
    sizes = [
        max(rms, floor) / largest
        for rms, largest in zip(typical, largest_entries(v), strict=True)
        if largest > 0.0
    ]
    if not sizes:
        raise ValueError("a difference of gradients needs a direction, and v is zero")
    return radius * min(sizes)
