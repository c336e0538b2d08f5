"""Products by reverse mode twice."""

from __future__ import annotations

from dataclasses import dataclass

from blo.derivatives.graphs import GradientGraph
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.products import NO_PATH, Products
from blo.derivatives.pullback import Gradient, filled, reached
from blo.linear.tensors import Tensors, leaves


@dataclass(frozen=True)
class Exact:
    """Reverse mode twice, on one graph of ``g_y`` that is kept for all products.

    Never reverse over forward mode, which is silently wrong for LayerNorm and BatchNorm in torch.
    The graph is built with attention on the math kernel, since no fused attention kernel can be
    differentiated twice.

    Example:
        >>> import torch
        >>> from blo import CG, Implicit, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=Implicit(CG(1), Exact()))
        >>> info = result.info  # of g_yy v once, and g_xy v
        >>> result.grads[0].item(), info.num_gradients, info.num_products
        (6.0, 1, 2)
    """

    needs_upper_gradient = False

    def at(self, lower: LowerObjective, point: Point) -> Products:
        """Return exact products; the graph is built at the first of them."""
        return ExactProducts(lower, point)


class ExactProducts:
    """Products by differentiating ``<g_y, v>``: one gradient when built, unless its graph was kept,
    then one product each.
    """

    radius = None

    def __init__(self, lower: LowerObjective, point: Point) -> None:
        self.num_gradients = 0
        self.num_products = 0
        self._objective = lower
        self._upper = leaves(point.upper)
        self._lower = leaves(point.lower)
        self._graph: GradientGraph | None = None
        kept = None if point.graph is None else point.graph.taken(lower.losses, lower.reduction)
        if kept is not None:
            self._graph, self._upper, self._lower = kept

    def hvp(self, v: Tensors) -> Tensors:
        """Return ``g_yy v``."""
        product = filled(self._product(self._lower, v), self._lower)
        return self._objective.decayed(self._objective.signed(product), v)

    def mixed(self, v: Tensors) -> Tensors:
        """Return ``g_xy v``, and let go of the graph: methods take this product last.

        Raises:
            RuntimeError: if ``g_y`` depends on no upper parameter.
        """
        product = self._product(self._upper, v, keep=False)
        if not reached(product):
            raise RuntimeError(NO_PATH)
        return self._objective.signed(filled(product, self._upper))

    def disagreement(self, v: Tensors, mixed: Tensors) -> None:
        """Return None: the product is exact."""

    def _product(self, inputs: Tensors, v: Tensors, *, keep: bool = True) -> Gradient:
        if self._graph is None:
            lower = self._objective
            self._graph = GradientGraph(
                lower.losses, self._lower, self._upper, self._lower, lower.reduction
            )
            self.num_gradients += 1
        self.num_products += 1
        graph, self._graph = self._graph, self._graph if keep else None
        return graph.product(v, inputs, keep=keep)
