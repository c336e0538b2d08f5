"""Hypergradients from a linear solver and second-order products.

With ``c = df/dy``, a lower solution responds by ``(dy*/dx)^T c = -g_xy v`` where ``g_yy v = c``.
`Implicit` solves that system at the point ``y+`` that the upper loss saw. `OneStep` differentiates
through the last lower step ``y+ = y - s g_y(x, y)``, so that ``v = s c`` and the mixed product is
taken at ``y``, on the same batch and masks.
"""

from __future__ import annotations

from dataclasses import dataclass

from blo.methods.context import Context, Info, Requirements, Response
from blo.methods.linear_system import Preconditioner
from blo.methods.neumann import Neumann
from blo.methods.products import Exact, FiniteDifference, ProductRule, Products
from blo.methods.solvers import CG, Dense, Identity, LinearSolver, Solution
from blo.methods.tensors import Tensors, scale
from blo.methods.validation import check_warm_start


@dataclass(frozen=True)
class Implicit:
    """The implicit function theorem at ``y+``: a linear solver with a way to take products.

    Args:
        solver: for ``g_yy v = c``.
        products: exact unless given.
        warm_start: start from the last call's `v`.

    Example:
        >>> import torch
        >>> from blo import CG, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> grads = hypergradient(f, g, x, y, method=Implicit(CG(1))).grads
        >>> round(grads[0].item(), 6)  # 3 (3 x - 1)
        6.0
    """

    solver: LinearSolver
    products: ProductRule = Exact()
    warm_start: bool = False

    @property
    def requirements(self) -> Requirements:
        """Nothing is recorded: everything is taken after the step."""
        return Requirements()

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return ``-g_xy v`` with ``g_yy v = cotangent``, both at ``context.after``."""
        products = self.products.at(context, context.after)
        solution = self.solver(products.hvp, cotangent, state if self.warm_start else None)
        value = scale(-1.0, products.mixed(solution.value))
        info = _info(self, "after", products, solution)
        return Response(value, solution.value if self.warm_start else None, info)


@dataclass(frozen=True)
class OneStep:
    """The derivative of one lower gradient step.

    ``y+ = y - s g_y(x, y)`` gives ``(dy+/dx)^T c = -s g_xy(x, y) c``, where `c` is taken at ``y+``.

    Args:
        scale: the step `s`. None takes the lower optimizer's current learning rate of each
            parameter group; where no optimizer is known, 1. That is the exact derivative of the
            step for SGD, with momentum and weight decay too. With dampening or nesterov, and for
            Adam and others, it replaces their step by a gradient step; `sama` takes the derivative
            of theirs. 1.0 stands for an inverse Hessian equal to the identity.
        products: a way to take the mixed product.

    Example:
        >>> import torch
        >>> from blo import hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> grads = hypergradient(f, g, x, y, method=OneStep(0.1)).grads
        >>> round(grads[0].item(), 6)  # s 6 (y - 1)
        1.2
    """

    scale: float | None = None
    products: ProductRule = Exact()

    def __post_init__(self) -> None:
        """Check the scale."""
        if self.scale is not None:
            Identity(self.scale)

    @property
    def requirements(self) -> Requirements:
        """The lower parameters before the last step, and the upper gradient there if the difference
        can reuse it.
        """
        return Requirements(before=True, upper_gradient=self.products.needs_upper_gradient)

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return ``-s g_xy cotangent`` with the product at ``context.before``."""
        products = self.products.at(context, context.before)
        solution = Identity(self.step(context))(products.hvp, cotangent)
        value = scale(-1.0, products.mixed(solution.value))
        return Response(value, None, _info(self, "before", products, solution))

    def step(self, context: Context) -> float | tuple[float, ...]:
        """Return `s`: one number, or one a lower tensor where the parameter groups differ."""
        if self.scale is not None:
            return self.scale
        if context.learning_rates is None:
            return 1.0
        distinct = set(context.learning_rates)
        return distinct.pop() if len(distinct) == 1 else context.learning_rates


def darts(
    scale: float | None = None, *, radius: float | None = None, one_sided: bool = False
) -> OneStep:
    """Return DARTS: the derivative of one lower step, its mixed product by a finite difference.

    ``-s [g_x(y + e c) - g_x(y - e c)] / 2e``. Costs two gradients of the lower loss, or one with
    ``one_sided=True`` inside an `Engine`, and needs first derivatives only.

    Args:
        scale: the step `s`; None takes the lower learning rates (the paper's choice), which is
            exact for SGD, also with momentum and weight decay, but neither with dampening or
            nesterov nor for Adam (see `sama`). Betty computes with 1.0.
        radius: relative length of the difference; see `FiniteDifference`.
        one_sided: see `FiniteDifference`.

    Example:
        >>> import torch
        >>> from blo import darts, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=darts(0.1))
        >>> round(result.grads[0].item(), 6), result.info.num_gradients  # 0.1 * 6 (y - 1)
        (1.2, 2)

    Reference: Liu, Simonyan and Yang (2019), arXiv:1806.09055, equations 7 and 8.
    """
    return OneStep(scale, FiniteDifference(radius, one_sided))


def t1t2(scale: float | None = None) -> OneStep:
    """Return T1-T2: the derivative of one lower step, its mixed product exact.

    Args:
        scale: the step `s`; None takes the lower learning rates; see `darts`.

    Example:
        >>> import torch
        >>> from blo import hypergradient, t1t2
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=t1t2(0.1))
        >>> round(result.grads[0].item(), 6), result.info.num_products  # 0.1 * 6 (y - 1)
        (1.2, 1)

    Reference: Luketina, Berglund, Greff and Raiko (2016), arXiv:1511.06727.
    """
    return OneStep(scale, Exact())


def neumann(
    max_products: int = 20,
    *,
    scale: float | None = None,
    damping: float = 0.0,
    rtol: float | None = None,
    warm_start: bool = False,
    products: ProductRule = Exact(),
) -> Implicit:
    """Return implicit differentiation with a truncated Neumann series of `max_products` products.

    Args:
        max_products: the series' last power of ``I - scale H``.
        scale: None takes one over the largest curvature that five power iterations see, which cost
            nothing beyond the series.
        damping: added to the diagonal of the Hessian.
        rtol: relative residual to stop at; None stops near the rounding error.
        warm_start: start each series from the solution before it, at one product.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import hypergradient, neumann
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> methods = [neumann(k, scale=0.25) for k in (0, 1, 2, 20)]  # 1 - scale g_yy = 1/2
        >>> [round(hypergradient(f, g, x, y, method=m).grads[0].item(), 4) for m in methods]
        [3.0, 4.5, 5.25, 6.0]

    Reference: Lorraine, Vicol and Duvenaud (2020), arXiv:1911.02590.
    """
    check_warm_start(warm_start, max_products)
    solver = Neumann(max_products, scale=scale, damping=damping, rtol=rtol)
    return Implicit(solver, products, warm_start)


def cg(
    max_products: int = 10,
    *,
    rtol: float | None = None,
    damping: float = 0.0,
    preconditioner: Preconditioner | None = None,
    warm_start: bool = False,
    products: ProductRule = Exact(),
) -> Implicit:
    """Return implicit differentiation with at most `max_products` products of conjugate gradients.

    For positive definite lower Hessians; see `CG` for what happens on negative curvature.

    Args:
        max_products: at most this many Hessian products.
        rtol: relative residual to stop at; None stops near the rounding error.
        damping: added to the diagonal of the Hessian.
        preconditioner: an approximate inverse such as ``Nystrom(10)``, built from products that
            count among `max_products`.
        warm_start: start each solve from the solution before it, at one product.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import cg, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=cg(5))
        >>> result.grads[0].item(), result.info.status.value  # 3 (3 x - 1)
        (6.0, 'converged')

    Reference: Pedregosa (2016), arXiv:1602.02355; Rajeswaran et al. (2019), arXiv:1909.04630.
    """
    check_warm_start(warm_start, max_products)
    return Implicit(CG(max_products, rtol, damping, preconditioner), products, warm_start)


def dense(*, damping: float = 0.0, max_size: int = 4096) -> Implicit:
    """Return implicit differentiation with the Hessian built and solved directly: the reference for
    small problems.

    Args:
        damping: added to the diagonal of the Hessian.
        max_size: refuse more unknowns than this.

    Example:
        >>> import torch
        >>> from blo import dense, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> grads = hypergradient(f, g, x, y, method=dense()).grads
        >>> round(grads[0].item(), 6)  # 3 (3 x - 1)
        6.0
    """
    return Implicit(Dense(max_size, damping))


def _info(method: Implicit | OneStep, point: str, products: Products, solution: Solution) -> Info:
    return Info(
        method=repr(method),
        point=point,
        scale=solution.scale,
        radius=products.radius,
        status=solution.status,
        residual=solution.residual,
        num_gradients=products.num_gradients,
        num_products=products.num_products,
    )
