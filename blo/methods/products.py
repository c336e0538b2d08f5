"""Second-order products of a lower loss at a point: ``g_yy v`` and ``g_xy v = d/dx <g_y, v>``.

A rule (`Exact`, `FiniteDifference`) is a setting; ``rule.at(context, point)`` gives the products at
that point, which count what they cost. All of them average over the batches of the lower step, and
carry the quadratic penalty of coupled weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from blo.methods.context import Context, Point
from blo.methods.objective import Objective
from blo.methods.tensors import (
    Tensors,
    add,
    average,
    axpy,
    detach,
    leaves,
    norm,
    numel,
    scale,
    subtract,
    zeros_like,
)

NO_PATH = (
    "the gradient of the lower loss with respect to the lower parameters does not depend on any "
    "upper parameter, so no "
    "hypergradient can reach them; check that the lower loss uses the upper parameters, without "
    "detach() or no_grad(), "
    "in a term that also holds lower parameters"
)


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


class ProductRule(Protocol):
    """A way to take products."""

    @property
    def needs_upper_gradient(self) -> bool:
        """Whether ``dg/dx`` at the point, taken in the lower step, saves work."""

    def at(self, context: Context, point: Point) -> Products:
        """Return the products of the lower objective of `context` at `point`."""


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


@dataclass(frozen=True)
class FiniteDifference:
    """Products from first derivatives at perturbed copies of the lower parameters.

    Central: ``g_xy v = [g_x(y + e v) - g_x(y - e v)] / 2e + O(e^2)``. One-sided: ``g_xy v =
    [g_x(y + e v) - g_x(y)] / e + O(e)``, where ``g_x(y)`` is taken over from the lower step if it
    is known. ``e = radius * max(|y|, sqrt(numel) 1e-3) / |v|``, so that the step is a fixed
    fraction of the weights. Fused attention and compiled modules stay as they are.

    Args:
        radius: relative step; None takes the value measured best for the type that the loss is
            computed in (`DEFAULT_RADIUS`).
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

    def at(self, context: Context, point: Point) -> Products:
        """Return finite-difference products; nothing is evaluated yet."""
        return FiniteDifferenceProducts(self, context, point)


# (central, one-sided), by the type of the forward pass; measured by benchmarks/radius.py.
DEFAULT_RADIUS: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-5, 1e-7),
    torch.float32: (1e-2, 1e-3),
    torch.bfloat16: (1e-1, 1e-1),
    torch.float16: (5e-2, 3e-2),
}


class FiniteDifferenceProducts:
    """Products by differences of gradients: two gradients each, or one where one-sided and the
    gradient is known.
    """

    def __init__(self, rule: FiniteDifference, context: Context, point: Point) -> None:
        self.num_gradients = 0
        self.num_products = 0
        self.radius: float | None = None
        self._rule = rule
        self._context = context
        self._point = point
        self._base: dict[str, Tensors] = {}
        if point.upper_gradient is not None:
            self._base["upper"] = point.upper_gradient

    def hvp(self, v: Tensors) -> Tensors:
        """Return ``g_yy v``."""
        product = self._difference("lower", v)
        decay = self._context.weight_decay
        return product if decay is None else add(product, scale(decay, v))

    def mixed(self, v: Tensors) -> Tensors:
        """Return ``g_xy v``.

        Raises:
            RuntimeError: if the lower loss depends on no upper parameter.
        """
        return self._difference("upper", v)

    def _difference(self, level: str, v: Tensors) -> Tensors:
        v, y = detach(v), detach(self._point.lower)
        length = float(norm(v))
        if length == 0.0:
            self.radius = 0.0
            return zeros_like(self._point.upper if level == "upper" else y)
        step = self._relative_radius() * max(float(norm(y)), math.sqrt(numel(y)) * 1e-3)
        self.radius = step
        e = step / length
        plus = self._gradient(level, perturbed(y, v, e))
        if self._rule.one_sided:
            if level not in self._base:
                self._base[level] = self._gradient(level, y)
            difference = scale(1.0 / e, subtract(plus, self._base[level]))
        else:
            minus = self._gradient(level, perturbed(y, v, -e))
            difference = scale(0.5 / e, subtract(plus, minus))
        return scale(self._context.sign, difference)

    def _gradient(self, level: str, y: Tensors) -> Tensors:
        """Return ``g_x`` or ``g_y`` at `y`, averaged over the batches; only the level asked for
        requires gradients.
        """
        self.num_gradients += 1
        pieces = []
        for objective in self._context.objectives:
            upper, lower = detach(self._point.upper), detach(y)
            if level == "upper":
                inputs = upper = leaves(upper)
            else:
                inputs = lower = leaves(lower)
            with objective.scope(upper, lower) as evaluate:
                grads = torch.autograd.grad(evaluate(), inputs, allow_unused=True)
            filled, reached = _fill(grads, inputs)
            if not reached:
                raise RuntimeError(NO_PATH if level == "upper" else NO_LOWER)
            pieces.append(filled)
        return average(pieces)

    def _relative_radius(self) -> float:
        if self._rule.radius is not None:
            return self._rule.radius
        types = [t.dtype for t in self._point.lower]
        types += [o.precision for o in self._context.objectives if o.precision is not None]
        coarsest = max(types, key=lambda dtype: torch.finfo(dtype).eps)
        return DEFAULT_RADIUS[coarsest][1 if self._rule.one_sided else 0]


NO_LOWER = "the lower loss does not depend on any lower parameter; check that it uses them"


def refuse_cut_graph(outputs: Tensors) -> None:
    """Raise if the graph of `outputs` was cut by an operation that can be differentiated only once.

    Torch marks such a place by a node that raises when it runs, but `torch.autograd.grad` with
    inputs passes over it, and the second derivative comes out silently wrong.

    Raises:
        RuntimeError: naming the remedy (through `twice_differentiable`).
    """
    waiting = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name().endswith("::Error"):
            raise RuntimeError("double backward through a once_differentiable function")
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def perturbed(y: Tensors, v: Tensors, e: float) -> Tensors:
    """Return ``y + e v`` as new tensors; the parameters themselves are never edited."""
    return axpy(e, v, y)


@contextmanager
def twice_differentiable(
    objective: Objective, upper: Tensors, lower: Tensors
) -> Iterator[Callable[[], Tensor]]:
    """Enter the objective's scope with attention on the math kernel, for the forward pass and every
    backward pass.

    Raises:
        RuntimeError: naming the remedy, where an operation in the loss has no second derivative.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH), objective.scope(upper, lower) as evaluate:
            yield evaluate
    except RuntimeError as error:
        text = str(error)
        if "is not implemented" in text or "double backward" in text:
            raise RuntimeError(
                "the lower loss has an operation without a second derivative "
                f"({text.splitlines()[0]}). "
                "Use attn_implementation='eager' or 'sdpa' and no torch.compile around the module, "
                "or a method that needs "
                "first derivatives only, such as darts()"
            ) from error
        raise


def _fill(grads: tuple[Tensor | None, ...], like: Tensors) -> tuple[Tensors, bool]:
    """Return the gradients with zeros where an input was not reached, and whether any was."""
    reached = any(g is not None for g in grads)
    pairs = zip(grads, like, strict=True)
    return tuple(torch.zeros_like(t) if g is None else g for g, t in pairs), reached
