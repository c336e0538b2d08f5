"""The lower problems solved again, nested from the top, by first derivatives alone.

Each problem `q` minimises ``G_q(above, q) = g_q(above, q, below*(above, q))``, where the solutions
below respond. Its derivatives are found without the library's own products, solvers and adjoints,
which they are to judge: a Hessian or mixed product is a central difference of gradients, a solution
below enters by its stationarity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import torch

from blo.check.differences import step_length, steps_of
from blo.linear.tensors import (
    Tensors,
    add,
    axpy,
    detach,
    dot,
    flatten,
    norm,
    numel,
    scale,
    subtract,
    unflatten,
    zeros_like,
)

Values: TypeAlias = Mapping[str, Tensors]
Partials: TypeAlias = dict[str, Tensors]
Evaluate: TypeAlias = Callable[[str, Values, Sequence[str]], tuple[float, Partials]]

MAX_STEPS = 60
PATIENCE = 6  # steps without getting nearer by half
MAX_APPROACH = 200
MAX_ROUNDS = 5
MAX_EVALUATIONS = 50_000  # to get to the solutions
MAX_PRODUCTS = 250
MAX_DENSE = 1000  # unknowns of a problem whose Hessian is built to precondition its solves


class _Slope(NamedTuple):
    """The objective of a problem and its gradient, the problems below at their solutions."""

    objective: float
    gradient: Tensors
    values: dict[str, Tensors]


@dataclass
class Landscape:
    """Problems as functions of all parameters, and their solutions.

    Args:
        evaluate: ``(problem, values, wanted) -> (objective, its partial derivatives)``; what a
            problem minimises is its objective.
        felt: for each problem, those below whose solutions its objective depends on, top to
            bottom.
        inputs: for each problem, those above that its solution depends on.
        saddles: the problems that are minimised over some tensors and maximised over others; small
            ones are solved by Newton's method without a search.
        rtol: a problem is solved when the next Newton step is this small relative to its
            parameters; a hundred times that for each solution that its own is nested in, since the
            differences lose as much.
        residuals: the last such step of each problem, filled in by `solve`.
    """

    evaluate: Evaluate
    felt: Mapping[str, tuple[str, ...]]
    inputs: Mapping[str, tuple[str, ...]]
    saddles: frozenset[str]
    rtol: float
    residuals: dict[str, float] = field(default_factory=dict)
    _inverses: dict[str, torch.Tensor | None] = field(default_factory=dict)
    _left: float = math.inf  # evaluations

    def solve(self, name: str, values: Values) -> dict[str, Tensors]:
        """Return `values` with problem `name` at its minimiser, the problems it feels at theirs.

        Newton's method with conjugate gradients, from where the problem stands. How far it got is
        in `residuals`; not getting there is no error.
        """
        found = self._slope(name, values)
        residual, rtol = math.inf, self.rtol * 100 ** self._nesting(name)
        best, waited = math.inf, 0
        for _ in range(MAX_STEPS):
            size = step_length(found.values[name], 1.0)
            following, residual = self._cheap_step(name, found, size)
            if residual <= 0.1 * rtol or (following is None and name in self.saddles):
                break
            if following is None:
                step = self._newton_step(name, found, 0.1 if best > 1e-2 else 1e-4)
                residual = float(norm(step)) / size
                following = self._search(name, found, step)
                if math.sqrt(rtol) > residual > 0.5 * best:
                    break  # at the rounding error
            if following is None:
                break
            found = following
            if residual <= rtol:
                break
            waited = 0 if residual < 0.5 * best else waited + 1
            best = min(best, residual)
            if waited == PATIENCE:
                break
        self.residuals[name] = residual
        return found.values

    def approach(self, name: str, values: Values) -> dict[str, Tensors]:
        """Return `values` with problem `name` near its minimiser, by L-BFGS: cheaper than `solve`
        from afar.
        """
        leaves = [t.clone().requires_grad_() for t in values[name]]
        optimizer = torch.optim.LBFGS(
            leaves,
            max_iter=MAX_APPROACH,
            tolerance_grad=0.0,
            tolerance_change=self.rtol,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> float:
            found = self._slope(name, {**values, name: detach(leaves)})
            for leaf, g in zip(leaves, found.gradient, strict=True):
                leaf.grad = g
            return found.objective

        optimizer.step(closure)
        reached = self._slope(name, {**values, name: detach(leaves)})
        start = self._slope(name, values)
        better = reached.objective <= start.objective
        return reached.values if better else start.values

    def settle(self, names: Sequence[str], values: Values) -> dict[str, Tensors]:
        """Return `values` with the problems `names`, top to bottom, at their minimisers, and have
        the solves from there on prepared.

        Raises:
            RuntimeError: if they are not found in `MAX_EVALUATIONS`.
        """
        self._left = MAX_EVALUATIONS
        for name in names:
            if not self.felt[name] and name not in self.saddles:
                values = self.approach(name, values)
        for _ in range(MAX_ROUNDS):
            start = values
            for name in reversed(names):
                self.prepare(name, values)
            for name in names:
                values = self.solve(name, values)
            moved = (float(norm(subtract(values[n], start[n]))) for n in names)
            furthest = max(
                m / step_length(start[n], 1.0) for m, n in zip(moved, names, strict=True)
            )
            nearest = max(self.residuals[n] for n in names)
            if furthest < 1e-2 and nearest < math.sqrt(self.rtol):
                break
        self._left = math.inf
        return dict(values)

    def distance(self, name: str, values: Values) -> float:
        """Return the next Newton step of problem `name`, relative to its parameters."""
        step = self._newton_step(name, self._slope(name, values))
        return float(norm(step)) / step_length(values[name], 1.0)

    def prepare(self, name: str, values: Values) -> None:
        """Build the inverse Hessian that preconditions the solves of problem `name` from now on, if
        it is small.
        """
        like = values[name]
        n = numel(like)
        alike = len({(t.dtype, t.device) for t in like}) == 1
        if not alike or n > (MAX_DENSE if not self.felt[name] else MAX_DENSE // 20):
            self._inverses[name] = None
            return
        eye = torch.eye(n, dtype=like[0].dtype, device=like[0].device)
        columns = [self._hvp(name, values, unflatten(e, like)) for e in eye]
        hessian = torch.stack([flatten(c) for c in columns])
        found, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
        size = found.abs()
        kept = size > 1e-9 * size.max()
        curvature = found if name in self.saddles else size
        inverse = torch.where(kept, 1.0 / torch.where(kept, curvature, 1.0), 0.0)
        self._inverses[name] = (vectors * inverse) @ vectors.T

    def total(
        self, name: str, values: Values, wanted: Sequence[str]
    ) -> tuple[float, Partials, dict[str, Tensors]]:
        """Return the objective of problem `name` with the solutions below it responding, its
        derivatives for the problems `wanted`, and `values` with those solutions.
        """
        self._left -= 1
        if self._left < 0:
            raise RuntimeError(
                f"problem {name!r} is not solved after {MAX_EVALUATIONS} evaluations: it may have "
                "no finite minimum"
            )
        below = self.felt[name]
        settled = dict(values)
        for r in below:
            settled = self.solve(r, settled)
        objective, adjoints = self.evaluate(name, settled, (*wanted, *below))
        for r in reversed(below):
            sources = [s for s in self.inputs[r] if s in wanted or s in below]
            if sources:
                v = self._invert(r, settled, adjoints[r])
                mixed = self._difference(r, settled, v, sources)
                for s in sources:
                    adjoints[s] = subtract(adjoints[s], mixed[s])
        return objective, {w: adjoints[w] for w in wanted}, settled

    def _slope(self, name: str, values: Values) -> _Slope:
        objective, gradient, settled = self.total(name, values, (name,))
        return _Slope(objective, gradient[name], settled)

    def _cheap_step(self, name: str, at: _Slope, size: float) -> tuple[_Slope | None, float]:
        """Return where the step of the prepared inverse Hessian leads, if it does nearly what a
        Newton step would, and its length relative to `size`.
        """
        if self._inverses.get(name) is None:
            return None, math.inf
        step = scale(-1.0, self._precondition(name, at.gradient))
        length = float(norm(step))
        if length <= 0.1 * self.rtol * size:
            return None, length / size
        found = self._slope(name, {**at.values, name: add(at.values[name], step)})
        left = float(norm(self._precondition(name, found.gradient)))
        enough = 0.9 if name in self.saddles else 0.1
        return (found if left <= enough * length else None), length / size

    def _search(self, name: str, at: _Slope, step: Tensors) -> _Slope | None:
        """Return where the objective has decreased along `step`, None if it does nowhere."""
        descent = float(dot(at.gradient, step))
        rounding = 10 * _eps(step) * abs(at.objective)
        for i in range(40):
            t = 0.5**i
            found = self._slope(name, {**at.values, name: axpy(t, step, at.values[name])})
            if found.objective <= at.objective + 1e-4 * t * descent + rounding:
                return found
        return None

    def _newton_step(self, name: str, at: _Slope, rtol: float = 1e-4) -> Tensors:
        downhill = scale(-1.0, at.gradient)
        step = self._conjugate_gradients(name, at.values, downhill, rtol)
        if float(dot(step, at.gradient)) < 0.0:
            return step
        return self._precondition(name, downhill)

    def _nesting(self, name: str) -> int:
        """Return how many solutions deep the gradient of problem `name` is."""
        return max((1 + self._nesting(r) for r in self.felt[name]), default=0)

    def _invert(self, name: str, values: Values, rhs: Tensors) -> Tensors:
        if name not in self.saddles:
            return self._conjugate_gradients(name, values, rhs, 0.1 * self.rtol)
        x = zeros_like(rhs)
        for _ in range(MAX_ROUNDS):
            left = subtract(rhs, self._hvp(name, values, x))
            x = add(x, self._precondition(name, left))
        return x

    def _conjugate_gradients(self, name: str, values: Values, rhs: Tensors, rtol: float) -> Tensors:
        """Return ``H^{-1} rhs`` by preconditioned conjugate gradients, stopped where the curvature
        is not positive.
        """
        x, r = zeros_like(rhs), rhs
        p = z = self._precondition(name, r)
        rz = start = float(dot(r, z))
        for i in range(MAX_PRODUCTS):
            if rz <= rtol**2 * start:
                break
            hp = self._hvp(name, values, p)
            curvature = float(dot(p, hp))
            if not curvature > 0.0:
                return p if i == 0 else x
            x = axpy(rz / curvature, p, x)
            r = axpy(-rz / curvature, hp, r)
            z = self._precondition(name, r)
            following = float(dot(r, z))
            p = axpy(following / rz, p, z)
            rz = following
        return x

    def _precondition(self, name: str, v: Tensors) -> Tensors:
        inverse = self._inverses.get(name)
        return v if inverse is None else unflatten(inverse @ flatten(v), v)

    def _hvp(self, name: str, values: Values, v: Tensors) -> Tensors:
        return self._difference(name, values, v, (name,))[name]

    def _difference(self, name: str, values: Values, v: Tensors, wanted: Sequence[str]) -> Partials:
        """Return the derivative along `v`, a direction of problem `name`, of its objective's
        derivatives for the problems `wanted`.
        """
        length = float(norm(v))
        if length == 0.0:
            return {w: zeros_like(values[w]) for w in wanted}
        e = step_length(values[name], steps_of(values[name])[1]) / length
        names = tuple(dict.fromkeys((*wanted, name)))
        plus = self.total(name, {**values, name: axpy(e, v, values[name])}, names)[1]
        minus = self.total(name, {**values, name: axpy(-e, v, values[name])}, names)[1]
        return {w: scale(0.5 / e, subtract(plus[w], minus[w])) for w in wanted}


def _eps(x: Tensors) -> float:
    return max(torch.finfo(t.dtype).eps for t in x)
