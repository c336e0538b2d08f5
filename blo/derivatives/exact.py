"""Products by reverse mode twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blo.derivatives.graphs import refuse_cut_graph, twice_differentiable
from blo.derivatives.lower import Point
from blo.derivatives.objective import Objective
from blo.derivatives.products import NO_PATH, Products
from blo.derivatives.pullback import _fill
from blo.linear.tensors import Tensors, add, average, leaves, scale, zeros_like
from blo.methods.context import Context


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

    def at(self, context: Context, point: Point) -> Products:
        """Return exact products; the graph is built at the first of them."""
        return ExactProducts(context, point)


class ExactProducts:
    """Products by differentiating ``<g_y, v>``: one gradient when built, then one product each."""

    radius = None

    def __init__(self, context: Context, point: Point) -> None:
        self.num_gradients = 0
        self.num_products = 0
        self._context = context
        self._upper = leaves(point.upper)
        self._lower = leaves(point.lower)
        self._graphs: list[Tensors] | None = None

    def hvp(self, v: Tensors) -> Tensors:
        """Return ``g_yy v``."""
        product = average([p for p, _ in self._differentiate(self._lower, v)])
        decay = self._context.weight_decay
        return product if decay is None else add(product, scale(decay, v))

    def mixed(self, v: Tensors) -> Tensors:
        """Return ``g_xy v``.

        Raises:
            RuntimeError: if ``g_y`` depends on no upper parameter.
        """
        pieces = self._differentiate(self._upper, v)
        if not any(reached for _, reached in pieces):
            raise RuntimeError(NO_PATH)
        return average([p for p, _ in pieces])

    def _differentiate(self, inputs: Tensors, v: Tensors) -> list[tuple[Tensors, bool]]:
        """Return ``d<g_y, v>/d(inputs)`` for each batch, with whether any input was reached."""
        if self._graphs is None:
            self._graphs = [self._build(objective) for objective in self._context.objectives]
            self.num_gradients += 1
        self.num_products += 1
        pieces = []
        for objective, graph in zip(self._context.objectives, self._graphs, strict=True):
            attached = [(g, u) for g, u in zip(graph, v, strict=True) if g.requires_grad]
            if not attached:
                pieces.append((zeros_like(inputs), False))
                continue
            outputs, weights = zip(*attached, strict=True)
            with twice_differentiable(objective, self._upper, self._lower):
                grads = torch.autograd.grad(
                    outputs, inputs, weights, retain_graph=True, allow_unused=True
                )
            filled, reached = _fill(grads, inputs)
            pieces.append((scale(self._context.sign, filled), reached))
        return pieces

    def _build(self, objective: Objective) -> Tensors:
        with twice_differentiable(objective, self._upper, self._lower) as evaluate:
            gradient = torch.autograd.grad(
                evaluate(),
                self._lower,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            refuse_cut_graph(gradient)
        return gradient
