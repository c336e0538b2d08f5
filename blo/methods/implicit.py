"""Hypergradients from a linear solver and second-order products.

With ``c = df/dy``, a lower solution responds by ``(dy*/dx)^T c = -g_xy v`` where ``g_yy v = c``.
`Implicit` solves that system at the point ``y+`` that the upper loss saw. `OneStep` differentiates
through the last lower step ``y+ = y - s g_y(x, y)``, so that ``v = s c`` and the mixed product is
taken at ``y``, on the same batch and masks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from blo.derivatives.differences import FiniteDifference
from blo.derivatives.exact import Exact
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.nested import Spent, Stationary, carried
from blo.derivatives.products import ProductRule
from blo.linear.direct import Identity
from blo.linear.settings import check_flag
from blo.linear.system import LinearSolver
from blo.linear.tensors import Tensors, leaves, scale, subtract
from blo.methods.attached import Attached
from blo.methods.context import Context, Info, Requirements, Response


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

    def __post_init__(self) -> None:
        """Check the setting."""
        check_flag("warm_start", self.warm_start)

    @property
    def requirements(self) -> Requirements:
        """Nothing is recorded: everything is taken after the step."""
        return Requirements()

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return ``-g_xy v`` with ``g_yy v = cotangent``, both at ``context.after``."""
        products, spent = self.products.at(context.lower, context.after), Spent()
        solver = placed(self.solver, context.lower, context.after, spent)
        solution = solver(products.hvp, cotangent, state if self.warm_start else None)
        mixed = products.mixed(solution.value)
        apart = products.disagreement(solution.value, mixed) if context.first else None
        info = Info(
            method=repr(self),
            point="after",
            scale=solution.scale,
            radius=products.radius,
            status=solution.status,
            residual=solution.residual,
            num_gradients=products.num_gradients + spent.num_gradients,
            num_products=products.num_products,
            disagreement=apart,
        )
        return Response(scale(-1.0, mixed), solution.value if self.warm_start else None, info)

    def attach(self, lower: Attached, upper: Tensors) -> Tensors:
        """Return ``y*(upper)``: the stationarity at the solution is differentiated."""
        context = lower.context

        def solve_at(point: Point, rhs: Tensors) -> Tensors:
            products = self.products.at(context.lower, point)
            solver = placed(self.solver, context.lower, point, lower.objective.spent)
            v = solver(products.hvp, rhs).value
            lower.objective.spent.num_gradients += products.num_gradients
            lower.objective.spent.num_products += products.num_products
            return v

        solution = Stationary(lower.objective, context.after.lower, solve_at)
        return solution.attach(upper, lower.anchor)


def placed(solver: LinearSolver, lower: LowerObjective, point: Point, spent: Spent) -> LinearSolver:
    """Return the solver for a system at a point: one that takes more from the lower objective than
    products, or whose preconditioner does, has a function `at` that returns it there.

    Raises:
        TypeError: if that is no solver.
    """
    whole: Any = solver
    if hasattr(whole, "at"):
        whole = whole.at(lower, point, spent)
    preconditioner: Any = getattr(whole, "preconditioner", None)
    if hasattr(preconditioner, "at"):
        whole = replace(whole, preconditioner=preconditioner.at(lower, point, spent))
    if not callable(whole):
        raise TypeError(
            f"solver must be callable, got {solver!r}; a preconditioner is given to a solver, such "
            f"as CG(10, preconditioner={solver!r})"
        )
    return whole  # type: ignore[no-any-return]


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
        return Requirements(
            before=True,
            upper_gradient=self.products.needs_upper_gradient,
            first_order=isinstance(self.products, FiniteDifference),
            graph=isinstance(self.products, Exact),
        )

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return ``-s g_xy cotangent`` with the product at ``context.before``; one `s` for all
        tensors is a factor of the product, so that no vector ``s cotangent`` is held.
        """
        products, step = self.products.at(context.lower, context.before), self.step(context)
        factor, v = (step, cotangent) if isinstance(step, float) else (1.0, scale(step, cotangent))
        v = context.lower.directed(v)
        mixed = products.mixed(v)
        apart = products.disagreement(v, mixed) if context.first else None
        info = Info(
            method=repr(self),
            point="before",
            scale=step,
            radius=products.radius,
            num_gradients=products.num_gradients,
            num_products=products.num_products,
            disagreement=apart,
        )
        return Response(scale(-factor, mixed), None, info)

    def attach(self, lower: Attached, upper: Tensors) -> Tensors:
        """Return the end of the last step ``y - s g_y(upper, y)``, taken again."""
        context = lower.context

        def end_of(upper: Tensors) -> Tensors:
            y = leaves(context.before.lower)
            gradient = context.lower.directed(lower.objective.gradient(upper, y))
            return subtract(y, scale(self.step(context), gradient))

        return carried(end_of, context.after.lower, upper, lower.anchor)

    def step(self, context: Context) -> float | tuple[float, ...]:
        """Return `s`: one number, or one a lower tensor where the parameter groups differ."""
        if self.scale is not None:
            return self.scale
        rates = context.known_rates("give the step as a number, such as darts(scale=0.1)")
        if rates is None:
            return 1.0
        distinct = set(rates)
        return distinct.pop() if len(distinct) == 1 else rates
