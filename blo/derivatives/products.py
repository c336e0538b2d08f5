"""Second-order products of a lower loss at a point: ``g_yy v`` and ``g_xy v = d/dx <g_y, v>``.

A rule (`Exact`, `FiniteDifference`) is a setting; ``rule.at(lower, point)`` gives the products at
that point, which count what they cost. All of them average over the batches of the lower step, and
carry the quadratic penalty of coupled weight decay.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from blo.derivatives.lower import LowerObjective, Point
from blo.linear.tensors import Tensors

NO_PATH = (
    "the gradient of the lower loss with respect to the lower parameters does not depend on any "
    "upper parameter, so no hypergradient can reach them; check that the lower loss uses the upper "
    "parameters, without detach() or no_grad(), in a term that also holds lower parameters"
)


class Disagreement(NamedTuple):
    """How far a product is from itself taken another way.

    Attributes:
        distance: relative to the other.
        rounding: whether rounding, or kinks that any step crosses, separate them, and a longer step
            brings them together; False where it is curvature or a kink that a shorter step does not
            reach; None where they are near.
    """

    distance: float
    rounding: bool | None = None


class Products(Protocol):
    """Products of the lower objective's second derivatives with a vector `v` in the shapes of
    `lower`.
    """

    num_gradients: int
    num_products: int

    @property
    def radius(self) -> float | None:
        """Length of the last finite-difference step, None for exact products."""

    def hvp(self, v: Tensors) -> Tensors:
        """Return ``g_yy v``, in the shapes of the lower parameters."""

    def mixed(self, v: Tensors) -> Tensors:
        """Return ``g_xy v = d/dx <g_y, v>``, in the shapes of the upper parameters."""

    def disagreement(self, v: Tensors, mixed: Tensors) -> Disagreement | None:
        """Return how far ``mixed = g_xy v`` is from the same product taken another way; None where
        there is nothing to compare, as for exact products.
        """


class ProductRule(Protocol):
    """A way to take products."""

    @property
    def needs_upper_gradient(self) -> bool:
        """Whether ``dg/dx`` at the point, taken in the lower step, saves work."""

    def at(self, lower: LowerObjective, point: Point) -> Products:
        """Return the products of `lower` at `point`."""


NO_LOWER = "the lower loss does not depend on any lower parameter; check that it uses them"
