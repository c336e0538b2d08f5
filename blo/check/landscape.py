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
from typing import TypeAlias

import torch

from blo.check.differences import step_length, steps_of
from blo.methods.tensors import (
    Tensors,
    axpy,
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
MAX_PRODUCTS = 250
MAX_DENSE = 400  # unknowns of a problem whose Hessian is built to precondition its solves


@dataclass
class Landscape:
    """Problems as functions of all parameters, and their solutions.

    Args:
        evaluate: ``(problem, values, wanted) -> (objective, its partial derivatives)``; what a
            problem minimises is its objective.
        felt: for each problem, those below whose solutions its objective depends on, top to
            bottom.
        inputs: for each problem, those above that its solution depends on.
        rtol: a problem is solved when the next Newton step is this small relative to its
            parameters.
        residuals: the last such step of each problem, filled in by `solve`.
    """

    evaluate: Evaluate
    felt: Mapping[str, tuple[str, ...]]
    inputs: Mapping[str, tuple[str, ...]]
    rtol: float
    residuals: dict[str, float] = field(default_factory=dict)
    _inverses: dict[str, torch.Tensor | None] = field(default_factory=dict)

    def solve(self, name: str, values: Values) -> dict[str, Tensors]:
        """Return `values` with problem `name` at its minimiser, the problems it feels at theirs.

        Newton's method with conjugate gradients, from where the problem stands. How far it got is
        in `residuals`; not getting there is no error.
        """
        objective, gradient, values = self._slope(name, values)
        last, residual = math.inf, math.inf
        for _ in range(MAX_STEPS):
            size = step_length(values[name], 1.0)
            if float(norm(self._precondition(name, gradient))) <= 0.1 * self.rtol * size:
                residual = 0.1 * self.rtol
                break
            step = self._newton_step(name, values, gradient)
            residual = float(norm(step)) / size
            stalled = residual > 0.5 * last and residual < math.sqrt(self.rtol)
            found = self._search(name, values, step, objective, gradient)
            if found is None or stalled:
                break
            objective, gradient, values = found
            if residual <= self.rtol:
                break
            last = residual
        self.residuals[name] = residual
        return values

    def distance(self, name: str, values: Values) -> float:
        """Return the next Newton step of problem `name`, relative to its parameters."""
        _, gradient, values = self._slope(name, values)
        step = self._newton_step(name, values, gradient)
        return float(norm(step)) / step_length(values[name], 1.0)

    def prepare(self, name: str, values: Values) -> None:
        """Build the inverse Hessian that preconditions the solves of problem `name` from now on, if
        it is small.
        """
        like = values[name]
        n = numel(like)
        alike = len({(t.dtype, t.device) for t in like}) == 1
        if not alike or n > (MAX_DENSE if not self.felt[name] else MAX_DENSE // 8):
            self._inverses[name] = None
            return
        eye = torch.eye(n, dtype=like[0].dtype, device=like[0].device)
        columns = [self._hvp(name, values, unflatten(e, like)) for e in eye]
        hessian = torch.stack([flatten(c) for c in columns])
        found, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
        size = found.abs()
        kept = size > 1e-9 * size.max()
        inverse = torch.where(kept, 1.0 / torch.where(kept, size, 1.0), 0.0)
        self._inverses[name] = (vectors * inverse) @ vectors.T

    def total(
        self, name: str, values: Values, wanted: Sequence[str]
    ) -> tuple[float, Partials, dict[str, Tensors]]:
        """Return the objective of problem `name` with the solutions below it responding, its
        derivatives for the problems `wanted`, and `values` with those solutions.
        """
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

    def _slope(self, name: str, values: Values) -> tuple[float, Tensors, dict[str, Tensors]]:
        objective, gradient, settled = self.total(name, values, (name,))
        return objective, gradient[name], settled

    def _search(
        self, name: str, values: Values, step: Tensors, objective: float, gradient: Tensors
    ) -> tuple[float, Tensors, dict[str, Tensors]] | None:
        """Return the objective, the gradient and the values after a decrease along `step`."""
        descent = float(dot(gradient, step))
        rounding = 10 * _eps(step) * abs(objective)
        for i in range(40):
            moved = {**values, name: axpy(0.5**i, step, values[name])}
            found = self._slope(name, moved)
            if found[0] <= objective + 1e-4 * 0.5**i * descent + rounding:
                return found
        return None

    def _newton_step(self, name: str, values: Values, gradient: Tensors) -> Tensors:
        downhill = scale(-1.0, gradient)
        step = self._conjugate_gradients(name, values, downhill, 1e-4)
        if float(dot(step, gradient)) < 0.0:
            return step
        return self._precondition(name, downhill)

    def _invert(self, name: str, values: Values, rhs: Tensors) -> Tensors:
        return self._conjugate_gradients(name, values, rhs, 0.1 * self.rtol)

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
