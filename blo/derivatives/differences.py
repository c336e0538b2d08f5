"""Products by differences of gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from blo.derivatives.gradients import gradients
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.products import NO_LOWER, NO_PATH, Disagreement, Products
from blo.linear.settings import check_flag, is_finite
from blo.linear.tensors import (
    Extent,
    Tensors,
    axpy,
    detach,
    extents_beside,
    length,
    scale,
    subtract,
    zeros_like,
)


@dataclass(frozen=True)
class FiniteDifference:
    """Products from first derivatives at perturbed copies of the lower parameters.

    Central: ``g_xy v = [g_x(y + e v) - g_x(y - e v)] / 2e + O(e^2)``. One-sided: ``g_xy v =
    [g_x(y + e v) - g_x(y)] / e + O(e)``, where ``g_x(y)`` is taken over from the lower step if it
    is known. `e` is the largest at which no tensor of `y` moves by more than ``radius`` times the
    spectral norm that a matrix of its shape and of random entries of its size has:

        e = radius * min over tensors t of  max(rms(y_t), floor) (sqrt(m_t) + sqrt(n_t)) / |v_t|
        floor = min(0.1, max over tensors t of  max(rms(y_t), 1e-3))

    with `m_t` the rows of `t` that `v` lives in and `n_t` the entries of a row (1 for a vector).
    What a layer computes moves by its weights' spectral norm: the step is right for directions of
    rank one, as gradients of wide layers nearly are, for a few rows of a large embedding and for
    directions whose length is in few entries. Tensors that `v` does not live in have no say. Fused
    attention and compiled modules stay as they are.

    Args:
        radius: relative step; None takes the value measured for the type that the loss is
            computed in (`DEFAULT_RADIUS`). Only with None does the first response of a problem
            compare two radii (`Info.disagreement`).
        one_sided: half the cost, less accurate. Under bfloat16 no radius serves one-sided
            differences of more than a few models: with ``radius=None`` they are central there, at
            the cost of central ones. Give a radius to have them all the same.

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
        """Check the settings."""
        check_flag("one_sided", self.one_sided)
        if self.radius is not None and not (is_finite(self.radius) and self.radius > 0):
            raise ValueError(
                f"radius must be positive and finite, or None for the default, got {self.radius!r}"
            )

    @property
    def needs_upper_gradient(self) -> bool:
        """One-sided differences reuse the gradient of the lower step."""
        return self.one_sided

    def at(self, lower: LowerObjective, point: Point) -> Products:
        """Return finite-difference products; nothing is evaluated yet."""
        return FiniteDifferenceProducts(self, lower, point)


# (central, one-sided), by the type of the forward pass; measured by benchmarks/radius.py. None
# where no radius serves: at steps where the rounding of bfloat16 gradients still costs 5 % on some
# models, curvature costs 20 % on others.
DEFAULT_RADIUS: dict[torch.dtype, tuple[float, float | None]] = {
    torch.float64: (1.5e-5, 1.5e-7),
    torch.float32: (2.5e-3, 1e-3),
    torch.bfloat16: (3.5e-2, None),
    torch.float16: (1.5e-2, 1e-2),
}

# Tensors whose entries are of less typical size than this (biases, low-rank factors that start at
# zero) move as if they had it, the size of the weights of a layer of a hundred inputs, unless all
# tensors are smaller.
SMALLEST_SIZE = 0.1

# Two differences, at a radius and at half of it, that are further apart are looked into.
MOST_DISAGREEMENT = 0.1


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

    def disagreement(self, v: Tensors, mixed: Tensors) -> Disagreement | None:
        """Return how far ``mixed = g_xy v`` is from the product at half the radius; None where the
        user gave the radius. Costs what the product did, less what is known.

        Where they are far apart, the product at a quarter of the radius, at the same cost, tells
        why. Curvature and a kink that a shorter step does not reach let products settle as the step
        shrinks. Rounding scatters them, and so do the kinks of a wide ReLU network, some of which
        any step crosses: a quarter is then twice as far from half as half is from `mixed`. The
        distance of `mixed` is that from twice the radius then: the one from half is mostly the
        error of the shorter step.
        """
        if self._rule.radius is not None:
            return None
        radius = self.radius
        half = self._difference("upper", v, factor=0.5)
        found = Disagreement(_distance(mixed, half))
        if not found.distance <= MOST_DISAGREEMENT:
            quarter = self._difference("upper", v, factor=0.25)
            settles = length(subtract(quarter, half)) < length(subtract(half, mixed))
            other = half if settles else self._difference("upper", v, factor=2.0)
            found = Disagreement(_distance(mixed, other), not settles)
        self.radius = radius
        return found

    def _difference(self, level: str, v: Tensors, *, factor: float = 1.0) -> Tensors:
        v, y = detach(v), detach(self._point.lower)
        found, typical = extents_beside(v, y)
        size = math.hypot(*(extent.length for extent in found))
        if size == 0.0:
            self.radius = 0.0
            return zeros_like(self._point.upper if level == "upper" else y)
        if not math.isfinite(size):
            raise FloatingPointError(
                f"a difference of gradients was asked for along a vector of length {size}; the "
                "loss above, or its gradient, is too large for its type: scale it down"
            )
        radius, one_sided = self._rule.radius, self._rule.one_sided
        if radius is None:
            radius, one_sided = default_radius(self._objective.dtype(y), one_sided=one_sided)
        e = factor * radius * _longest(v, found, typical)
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


def _distance(a: Tensors, b: Tensors) -> float:
    """Return ``|a - b| / |b|``."""
    apart, size = length(subtract(a, b)), length(b)
    return 0.0 if apart == 0.0 else apart / size if size > 0.0 else math.inf


def default_radius(dtype: torch.dtype, *, one_sided: bool) -> tuple[float, bool]:
    """Return the radius measured for a type, and whether its difference is one-sided; a one-sided
    one is central where no radius serves it.
    """
    central, other = DEFAULT_RADIUS[dtype]
    return (central, False) if other is None or not one_sided else (other, True)


def difference_step(
    lower: LowerObjective,
    y: Tensors,
    v: Tensors,
    *,
    one_sided: bool,
    radius: float | None = None,
) -> float:
    """Return the `e` of the difference of gradients at ``y + e v``.

    ``e = r min_t max(rms(y_t), floor) (sqrt(m_t) + sqrt(n_t)) / |v_t|`` (`FiniteDifference`) over
    the tensors `t` where `v` is not zero, with `r` the `radius`, or the value measured for the
    coarsest type that the lower loss is computed in.

    Raises:
        ValueError: if `v` is zero.
    """
    if radius is None:
        radius, _ = default_radius(lower.dtype(y), one_sided=one_sided)
    return radius * _longest(v, *extents_beside(v, y))


def _longest(v: Tensors, extents: Sequence[Extent], typical: Sequence[float]) -> float:
    """Return the step at which the first tensor moves by its spectral norm.

    Args:
        v: the direction.
        extents: of its tensors.
        typical: the root mean squares of what is moved.
    """
    floor = min(SMALLEST_SIZE, max(1e-3, *typical))
    steps = [
        max(rms, floor) * (math.sqrt(rows) + math.sqrt(t.numel() / len(t) if t.dim() else 1)) / size
        for t, rms, (size, rows) in zip(v, typical, extents, strict=True)
        if size > 0.0
    ]
    if not steps:
        raise ValueError("a difference of gradients needs a direction, and v is zero")
    return min(steps)
