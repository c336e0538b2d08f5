"""What is held against the methods while they compute: their solvers against the systems that they
solve, their products against differences of gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from blo.check.differences import step_length, steps_of
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.nested import Spent
from blo.derivatives.products import ProductRule, Products
from blo.linear.system import LinearSolver, MatVec, Solution
from blo.linear.tensors import Tensors, axpy, norm, scale, subtract
from blo.methods.context import Method
from blo.methods.implicit import Implicit, OneStep, placed


@dataclass(frozen=True)
class LinearSolve:
    """A linear solve of a method, its residual taken again.

    Attributes:
        problem: the lower problem.
        reported: ``|c - H v| / |c|`` as the solver reports it; NaN where it does not know.
        measured: the same from one more product with the `v` that it returned.
        damping: what the solver adds to the diagonal of `H`.
    """

    problem: str
    reported: float
    measured: float
    damping: float

    @property
    def stale(self) -> bool:
        """Whether the returned vector is much worse than the solver says."""
        return self.damping == 0.0 and self.measured > 10 * self.reported + 1e-6


@dataclass
class Log:
    """What the witnesses saw, by lower problem.

    Attributes:
        solves: the linear solve of the largest measured residual.
        products: how far the method's Hessian products (0 where it takes none) and mixed products
            were from differences of gradients, relative.
    """

    solves: dict[str, LinearSolve] = field(default_factory=dict)
    products: dict[str, tuple[float, float]] = field(default_factory=dict)

    def watched(self, method: Method, problem: str) -> Method:
        """Return the method with its solver and its products watched, if it has such."""
        if isinstance(method, Implicit):
            solver = WatchedSolver(method.solver, problem, self)
            return replace(method, solver=solver, products=self._rule(method.products, problem))
        if isinstance(method, OneStep):
            return replace(method, products=self._rule(method.products, problem))
        return method

    def _rule(self, rule: ProductRule, problem: str) -> WatchedRule:
        return WatchedRule(rule, problem, self)


@dataclass(frozen=True)
class WatchedSolver:
    """A solver whose solutions are put into the system that they are to solve."""

    solver: LinearSolver
    problem: str
    log: Log

    def at(self, lower: LowerObjective, point: Point, spent: Spent) -> WatchedSolver:
        """Return the same for a solver that is placed."""
        return replace(self, solver=placed(self.solver, lower, point, spent))

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the solver's solution, and log its residual, at one product more."""
        solution = self.solver(matvec, rhs, init)
        size = float(norm(rhs))
        left = float(norm(subtract(rhs, matvec(solution.value)))) / size if size else 0.0
        damping = float(getattr(self.solver, "damping", 0.0))
        known = self.log.solves.get(self.problem)
        if known is None or left > known.measured:
            found = LinearSolve(self.problem, solution.residual, left, damping)
            self.log.solves[self.problem] = found
        return solution


@dataclass(frozen=True)
class WatchedRule:
    """A rule whose products are compared with differences of gradients."""

    rule: ProductRule
    problem: str
    log: Log

    @property
    def needs_upper_gradient(self) -> bool:
        """Whether the rule does."""
        return self.rule.needs_upper_gradient

    def at(self, lower: LowerObjective, point: Point) -> Products:
        """Return the rule's products; the last of each kind, along one vector, are compared."""
        products = self.rule.at(lower, point)
        hvp, mixed = products.hvp, products.mixed
        last: dict[int, Tensors] = {}

        def watched_hvp(v: Tensors) -> Tensors:
            last.clear()
            last[id(v)] = hvp(v)
            return last[id(v)]

        def watched_mixed(v: Tensors) -> Tensors:
            found = mixed(v)
            upper, own = _differenced(lower, point, v)
            curved = _relative(last[id(v)], own) if id(v) in last else 0.0
            self.log.products[self.problem] = curved, _relative(found, upper)
            return found

        products.hvp, products.mixed = watched_hvp, watched_mixed  # type: ignore[method-assign]
        return products


def _differenced(lower: LowerObjective, point: Point, v: Tensors) -> tuple[Tensors, Tensors]:
    """Return ``g_xy v`` and ``g_yy v`` as central differences of gradients."""
    size = float(norm(v))
    e = step_length(point.lower, steps_of(point.lower)[1]) / size if size else 1.0
    plus, minus = (
        lower.gradients(point.upper, axpy(side, v, point.lower), with_upper=True)
        for side in (e, -e)
    )
    return (
        scale(0.5 / e, subtract(plus.upper, minus.upper)),
        scale(0.5 / e, subtract(plus.lower, minus.lower)),
    )


def _relative(found: Tensors, reference: Tensors) -> float:
    apart, size = float(norm(subtract(found, reference))), float(norm(reference))
    return apart / size if size else apart


class AttentionWatch(TorchDispatchMode):
    """Collects the names of the fused attention kernels that run in a block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take note, and pass everything through."""
        name = str(func)
        if "scaled_dot_product" in name or "flex_attention" in name:
            self.kernels.add(name.removeprefix("aten.").removesuffix(".default").strip("_"))
        return func(*args, **(kwargs or {}))
