"""Independent references: closed forms, problems with known hypergradients, finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn
from torch.nn.functional import softplus

Loss = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]


@dataclass(frozen=True)
class TwoLevel:
    """Plain losses with the lower minimiser at `upper`, and the hypergradient there."""

    upper_loss: Loss
    lower_loss: Loss
    upper: Tensor
    lower: Tensor
    hypergradient: Tensor

    @property
    def hessian(self) -> Tensor:
        """The lower Hessian at the minimiser."""
        return torch.autograd.functional.hessian(
            lambda w: self.lower_loss((self.upper,), (w,)), self.lower
        )


def newton(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int = 30) -> Tensor:
    """The minimiser of a smooth convex function, by Newton's method from `start`."""
    w = start
    for _ in range(steps):
        gradient = torch.autograd.functional.jacobian(loss, w)
        hessian = torch.autograd.functional.hessian(loss, w)
        w = w - torch.linalg.solve(hessian, gradient)
    return w


def by_matrices(f: Loss, g: Loss, x: Tensor, start: Tensor) -> TwoLevel:
    """The problem at its lower minimiser, its hypergradient from dense matrices."""
    y = newton(lambda w: g((x,), (w,)), start)
    n = x.numel()
    joint = torch.cat([x, y])
    hessian = torch.autograd.functional.hessian(lambda z: g((z[:n],), (z[n:],)), joint)
    fx, fy = torch.autograd.functional.jacobian(lambda a, b: f((a,), (b,)), (x, y))
    v = torch.linalg.solve(hessian[n:, n:], fy)
    return TwoLevel(f, g, x, y, fx - hessian[:n, n:] @ v)


def scalar_problem(a: float = 3.0, x: float = 0.5) -> TwoLevel:
    """A1: g = a/2 (w - x)^2, f = (w - 1)^2/2 + x^2/20; h = 1.1 x - 1."""
    upper = torch.tensor([x], dtype=torch.float64)
    return TwoLevel(
        lambda u, w: 0.5 * ((w[0] - 1) ** 2).sum() + 0.05 * (u[0] ** 2).sum(),
        lambda u, w: 0.5 * a * ((w[0] - u[0]) ** 2).sum(),
        upper,
        upper.clone(),
        1.1 * upper - 1,
    )


def ridge() -> TwoLevel:
    """A2: ridge regression on diabetes, a penalty for each feature, at log penalties of -2."""
    data, target = load_diabetes(return_X_y=True)
    features = torch.tensor(data * 442**0.5)
    y = torch.tensor((target - target.mean()) / target.std())
    (a, b), (c, d) = (features[:300], y[:300]), (features[300:], y[300:])

    def lower(u: Sequence[Tensor], w: Sequence[Tensor]) -> Tensor:
        return 0.5 * ((a @ w[0] - b) ** 2).mean() + 0.5 * (u[0].exp() * w[0] ** 2).sum()

    def upper(u: Sequence[Tensor], w: Sequence[Tensor]) -> Tensor:
        return 0.5 * ((c @ w[0] - d) ** 2).mean()

    x = torch.full((10,), -2.0, dtype=torch.float64)
    return by_matrices(upper, lower, x, torch.zeros_like(x))


def logistic() -> TwoLevel:
    """A3: logistic regression on breast cancer, a log penalty of -3 for each feature."""
    data, target = load_breast_cancer(return_X_y=True)
    features = torch.tensor((data - data.mean(0)) / data.std(0))
    y = torch.tensor(2.0 * target - 1.0)
    (a, b), (c, d) = (features[:400], y[:400]), (features[400:], y[400:])

    def lower(u: Sequence[Tensor], w: Sequence[Tensor]) -> Tensor:
        return softplus(-b * (a @ w[0])).mean() + 0.5 * (u[0].exp() * w[0] ** 2).sum()

    def upper(u: Sequence[Tensor], w: Sequence[Tensor]) -> Tensor:
        return softplus(-d * (c @ w[0])).mean()

    x = torch.full((30,), -3.0, dtype=torch.float64)
    return by_matrices(upper, lower, x, torch.zeros_like(x))


class Vector(nn.Module):
    """A module that holds one vector."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)


class NestedQuadratics:
    """Problems with quadratic losses that read each other as told, and their nested solution.

    The loss of `p` is ``v_p H_p v_p / 2 + b_p v_p`` plus, for each problem that it reads, a
    coupling, a square and a linear term, and a coupling of each pair that it reads. The solution is
    nested from the top: each problem's best response is affine in the problems above, so one Newton
    step with the responses below differentiated through is exact.
    """

    def __init__(self, reads: Mapping[str, Sequence[str]], size: int = 3, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def positive() -> Tensor:
            a = normal(size, size)
            return a @ a.T / size + 3 * torch.eye(size, dtype=torch.float64)

        self.reads = {k: tuple(v) for k, v in reads.items()}
        self.names = list(reads)
        pairs = list(itertools.product(self.names, self.names))
        self._own = {p: positive() for p in self.names}
        self._linear = {p: normal(size) for p in self.names}
        self._coupling = {pair: 0.5 * normal(size, size) for pair in pairs}
        self._square = {pair: positive() for pair in pairs}
        self.start = normal(size)
        self.size = size

    def loss(self, p: str, v: Mapping[str, Tensor]) -> Tensor:
        """The loss of problem `p` at the values `v`."""
        value = 0.5 * v[p] @ self._own[p] @ v[p] + self._linear[p] @ v[p]
        for q in self.reads[p]:
            value = value + v[p] @ self._coupling[p, q] @ v[q]
            value = value + 0.5 * v[q] @ self._square[p, q] @ v[q] + v[q].sum()
        for q, r in itertools.combinations(self.reads[p], 2):
            value = value + v[q] @ self._coupling[q, r] @ v[r]
        return value

    def respond(self, k: int, above: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The solutions of the problems from number `k` down, differentiable in those above."""
        if k == len(self.names):
            return {}
        name = self.names[k]

        def reduced(value: Tensor) -> Tensor:
            known = {**above, name: value}
            return self.loss(name, {**known, **self.respond(k + 1, known)})

        zero = torch.zeros(self.size, dtype=torch.float64)
        gradient = torch.autograd.functional.jacobian(reduced, zero, create_graph=True)
        hessian = torch.autograd.functional.hessian(reduced, zero, create_graph=True)
        value = -torch.linalg.solve(hessian, gradient)
        return {name: value, **self.respond(k + 1, {**above, name: value})}

    def solve(self) -> tuple[dict[str, Tensor], Tensor]:
        """The values of all problems with the top at `start`, and the top's total gradient."""
        x = self.start.clone().requires_grad_()
        values = {self.names[0]: x}
        values.update(self.respond(1, values))
        (gradient,) = torch.autograd.grad(self.loss(self.names[0], values), x)
        return {k: v.detach() for k, v in values.items()}, gradient


def finite_difference(
    f: Callable[[Tensor], float | Tensor], x: Tensor, radius: float = 1e-5
) -> Tensor:
    """The gradient of `f` at `x` by central differences, entry by entry."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        e = torch.zeros(x.numel(), dtype=x.dtype)
        e[i] = radius
        e = e.view_as(x)
        gradient.view(-1)[i] = (float(f(x + e)) - float(f(x - e))) / (2 * radius)
    return gradient


def relative_error(value: Tensor, reference: Tensor) -> float:
    """``|value - reference| / |reference|``."""
    return float((value - reference).norm() / reference.norm())


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine of the angle between two tensors."""
    return float((a * b).sum() / (a.norm() * b.norm()))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all entries."""
    return torch.cat([t.reshape(-1) for t in tensors])
