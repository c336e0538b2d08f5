"""Gauss-Newton products, for lower losses that are a loss of outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from blo.derivatives.exact import ExactProducts
from blo.derivatives.graphs import refuse_cut_graph, twice_differentiable
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.nested import AttachedObjective
from blo.derivatives.objective import Objective
from blo.derivatives.pullback import Gradient, filled, pulled_back, reached
from blo.linear.tensors import Tensors, average, leaves


class SplitsIntoOutputs(Protocol):
    """A loss ``l(z)`` of outputs ``z = outputs(...)``: `SplitLoss`, or any callable object with its
    two functions.
    """

    def outputs(self, *args: Any) -> Tensor | Tensors:
        """Return the outputs, one tensor or a tuple of them."""

    def loss(self, outputs: Any, *args: Any) -> Any:
        """Return the loss of the outputs: a scalar tensor, or a dict with one under "loss"."""


@dataclass(frozen=True)
class SplitLoss:
    """A lower loss that says what its outputs are: ``loss(outputs(...), ...)``.

    It is called as any lower loss is, with ``(upper, lower)`` for plain functions and with a batch
    in a `Problem`; both parts get the same arguments. Lower parameters may enter through the
    outputs alone: a penalty on them is written with the parameters among the outputs.

    Args:
        outputs: ``outputs(upper, lower)`` or ``outputs(batch)``, a tensor or a tuple of tensors.
        loss: ``loss(outputs, upper, lower)`` or ``loss(outputs, batch)``, a scalar.

    Example:
        >>> import torch
        >>> from blo import SplitLoss, cg, hypergradient
        >>> g = SplitLoss(  # |x y^2 - 4|^2 / 2, its residual zero at y = 2
        ...     outputs=lambda x, y: x[0] * y[0] ** 2,
        ...     loss=lambda z, x, y: 0.5 * (z - 4) ** 2,
        ... )
        >>> x, y = (torch.tensor(1.0),), (torch.tensor(2.0),)
        >>> method = cg(1, products=GaussNewton())
        >>> hypergradient(lambda x, y: y[0], g, x, y, method=method).grads  # dy/dx = -1/x^1.5
        (tensor(-1.),)
    """

    outputs: Callable[..., Tensor | Tensors]
    loss: Callable[..., Any]

    def __post_init__(self) -> None:
        """Check the parts."""
        for name in ("outputs", "loss"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be callable, got {getattr(self, name)!r}")

    def __call__(self, *args: Any) -> Any:
        """Return the loss of the outputs."""
        return self.loss(self.outputs(*args), *args)


@dataclass(frozen=True)
class GaussNewton:
    """The Hessian of a loss of outputs ``g(y) = l(z(y))`` without the curvature of the outputs.

    ``J^T l_zz J v`` in place of ``g_yy v``, with ``J = dz/dy``: positive semi-definite wherever `l`
    is convex in its outputs (squared error, cross-entropy, for which it is the Fisher matrix), so
    that `cg` and `nystrom` apply where the Hessian itself is indefinite, as LoRA's is. It equals
    the Hessian where the outputs are linear in `y` or where ``l_z = 0`` (interpolation); elsewhere
    the hypergradient carries the relative error of the term ``sum_i l_z_i d2z_i/dy2`` left out,
    which does not vanish as training goes on. The mixed product stays exact.

    The lower loss must be a `SplitLoss`, or a callable object with its two functions. `J v` comes
    from reverse mode twice (differentiating ``J^T u`` in `u`), never from forward mode. Costs two
    gradients once (its own graph and that of the mixed product); a product is about one Hessian
    product.

    Example:
        >>> import torch
        >>> from blo import Exact, cg, hypergradient
        >>> g = SplitLoss(lambda x, y: x[0] * y[0] ** 2, lambda z, x, y: 0.5 * (z - 4) ** 2)
        >>> x, y = (torch.tensor(1.0),), (torch.tensor(1.0),)  # g_yy = -2, and J^2 = 4
        >>> for products in (Exact(), GaussNewton()):
        ...     method = cg(1, products=products)
        ...     print(hypergradient(lambda x, y: y[0], g, x, y, method=method).info.status.value)
        indefinite
        converged

    Reference: Schraudolph (2002), Neural Computation 14, 1723-1738; Martens (2020),
        arXiv:1412.1193.
    """

    needs_upper_gradient = False

    def at(self, lower: LowerObjective, point: Point) -> GaussNewtonProducts:
        """Return Gauss-Newton products; the graphs are built at the first of them.

        Raises:
            TypeError: if the lower loss does not say what its outputs are.
        """
        return GaussNewtonProducts(lower, point)


@dataclass
class Observed:
    """A split loss that keeps its last outputs, and cuts the loss from them.

    The loss is taken at leaves that hold the outputs' values, so that its derivatives stop there.
    """

    split: SplitsIntoOutputs
    outputs: Tensors = ()
    at_leaves: Tensors = ()

    def __call__(self, *args: Any) -> Any:
        """Return the loss at leaves."""
        given = self.split.outputs(*args)
        pieces = (given,) if isinstance(given, Tensor) else tuple(given)
        if not all(isinstance(z, Tensor) for z in pieces):
            raise TypeError(
                f"outputs must return a tensor or a tuple of tensors, got {type(given).__name__}"
            )
        cut = tuple(z.detach().requires_grad_() if z.requires_grad else z for z in pieces)
        self.outputs = tuple(z for z in pieces if z.requires_grad)
        self.at_leaves = tuple(c for c, z in zip(cut, pieces, strict=True) if z.requires_grad)
        return self.split.loss(cut[0] if isinstance(given, Tensor) else cut, *args)


@dataclass(frozen=True)
class OutputGraph:
    """One batch: outputs `z` of the lower parameters, and ``l_z`` of leaves that hold `z`.

    Attributes:
        objective: what to enter for a backward pass.
        outputs: `z`, in the graph of the lower parameters.
        leaves: where the loss was taken.
        slopes: ``l_z``, in the graph of the leaves.
        weights: `u`, any values.
        pulled: ``J^T u``, in the graph of `u`; None where no output depends on a parameter.
    """

    objective: Objective
    outputs: Tensors
    leaves: Tensors
    slopes: Tensors
    weights: Tensors
    pulled: Gradient


class GaussNewtonProducts:
    """``J^T l_zz J v``, and exact mixed products."""

    radius = None

    def __init__(self, lower: LowerObjective, point: Point) -> None:
        self.num_gradients = 0
        self.num_products = 0
        self._objective = lower
        self._upper = leaves(point.upper)
        self._lower = leaves(point.lower)
        self._exact = ExactProducts(lower, point)
        self._graphs: list[OutputGraph] | None = None
        for objective in lower.losses:
            observed(objective)

    def hvp(self, v: Tensors) -> Tensors:
        """Return ``J^T l_zz J v``, with the penalty of coupled weight decay."""
        if self._graphs is None:
            self._graphs = [self._build(objective) for objective in self._objective.losses]
        self.num_products += 1
        own = average([self._product(graph, v) for graph in self._graphs])
        product = self._objective.reduction.means(own)
        return self._objective.decayed(self._objective.signed(product), v)

    def mixed(self, v: Tensors) -> Tensors:
        """Return ``g_xy v``, exact.

        Raises:
            RuntimeError: if ``g_y`` depends on no upper parameter.
        """
        value = self._exact.mixed(v)
        self.num_gradients += self._exact.num_gradients
        self.num_products += self._exact.num_products
        self._exact.num_gradients = self._exact.num_products = 0
        return value

    def disagreement(self, v: Tensors, mixed: Tensors) -> None:
        """Return None: the mixed product is exact."""

    def _product(self, graph: OutputGraph, v: Tensors) -> Tensors:
        with twice_differentiable(graph.objective, self._upper, self._lower):
            jv = pulled_back(graph.pulled, graph.weights, v, keep=True)
            curved = pulled_back(graph.slopes, graph.leaves, jv, keep=True)
            product = pulled_back(graph.outputs, self._lower, curved, keep=True)
            return filled(product, self._lower)

    def _build(self, objective: Objective) -> OutputGraph:
        self.num_gradients += 1
        observer, objective = observed(objective)
        with twice_differentiable(objective, self._upper, self._lower) as evaluate:
            loss = evaluate()
            z, at_leaves = observer.outputs, observer.at_leaves
            direct = _slopes(loss, self._lower)
            if reached(direct):
                raise ValueError(
                    "the lower loss must depend on the lower parameters through its outputs alone "
                    "for GaussNewton(); return the parameters that it penalises among the outputs"
                )
            slopes = _slopes(loss, at_leaves)
            weights = tuple(torch.zeros_like(o).requires_grad_() for o in z)
            pulled = pulled_back(z, self._lower, weights, create_graph=True)
            if not reached(pulled):
                raise RuntimeError(
                    "the outputs of the lower loss depend on no lower parameter; check that they "
                    "are computed from them, without detach() or no_grad()"
                )
            slopes = filled(slopes, at_leaves)
            refuse_cut_graph((*slopes, *pulled))
        return OutputGraph(objective, z, at_leaves, slopes, weights, pulled)


def says_its_outputs(objective: Objective) -> bool:
    """Return whether the loss of an objective is split into outputs and a loss of them."""
    if isinstance(objective, AttachedObjective):
        return says_its_outputs(objective.base)
    loss: Any = getattr(objective, "loss", None)
    return callable(getattr(loss, "outputs", None)) and callable(getattr(loss, "loss", None))


def observed(objective: Objective) -> tuple[Observed, Objective]:
    """Return the objective with an observer in the place of its loss, and the observer.

    Raises:
        TypeError: if the loss does not say what its outputs are.
    """
    if isinstance(objective, AttachedObjective):
        observer, base = observed(objective.base)
        return observer, replace(objective, base=base)
    whole: Any = objective
    if not says_its_outputs(objective):
        raise TypeError(
            "GaussNewton() needs a lower loss that says what its outputs are, got "
            f"{getattr(whole, 'loss', None)!r}; give SplitLoss(outputs=..., loss=...)"
        )
    observer = Observed(whole.loss)
    return observer, replace(whole, loss=observer)


def _slopes(loss: Tensor, inputs: Tensors) -> tuple[Tensor | None, ...]:
    return pulled_back((loss,), inputs, (torch.ones_like(loss),), create_graph=True)
