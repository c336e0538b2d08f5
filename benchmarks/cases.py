"""Two-level problems at their lower solution, with hypergradients from dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

Values = Sequence[Tensor]
Loss = Callable[[Values, Values], Tensor]


@dataclass(frozen=True)
class TwoLevel:
    """Plain losses, the lower minimiser at `upper`, and the hypergradient there."""

    upper_loss: Loss
    lower_loss: Loss
    upper: Tensor
    lower: Tensor
    hypergradient: Tensor
    hessian: Tensor

    @property
    def spectrum(self) -> Tensor:
        """The eigenvalues of the lower Hessian, ascending."""
        return torch.linalg.eigvalsh(self.hessian)


def newton(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int = 30) -> Tensor:
    """The minimiser of a smooth convex function, by Newton's method from `start`."""
    w = start
    for _ in range(steps):
        gradient = torch.autograd.functional.jacobian(loss, w)
        hessian = torch.autograd.functional.hessian(loss, w)
        w = w - torch.linalg.solve(hessian, gradient)
    return w


def descended(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """A minimiser of a smooth function, by L-BFGS from `start` and two steps of Newton's method."""
    w = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w],
        max_iter=5000,
        tolerance_grad=1e-10,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        w.grad = None
        value = loss(w)
        value.backward()
        return value

    optimizer.step(closure)
    return newton(loss, w.detach(), steps=2)


def at_solution(f: Loss, g: Loss, x: Tensor, y: Tensor) -> TwoLevel:
    """The problem at `y`, its hypergradient from the dense matrices of second derivatives."""
    n = x.numel()

    def joint(z: Tensor) -> Tensor:
        return g((z[:n],), (z[n:],))

    hessian = torch.autograd.functional.hessian(joint, torch.cat([x, y]))
    fx, fy = torch.autograd.functional.jacobian(lambda a, b: f((a,), (b,)), (x, y))
    v = torch.linalg.solve(hessian[n:, n:], fy)
    return TwoLevel(f, g, x, y, fx - hessian[:n, n:] @ v, hessian[n:, n:])


def scalar_problem(a: float = 3.0, x: float = 0.5) -> TwoLevel:
    """A1: g = a/2 (w - x)^2, f = (w - 1)^2/2 + x^2/20; the hypergradient is 1.1 x - 1."""
    upper = torch.tensor([x], dtype=torch.float64)
    return TwoLevel(
        lambda u, w: 0.5 * ((w[0] - 1) ** 2).sum() + 0.05 * (u[0] ** 2).sum(),
        lambda u, w: 0.5 * a * ((w[0] - u[0]) ** 2).sum(),
        upper,
        upper.clone(),
        1.1 * upper - 1,
        torch.full((1, 1), a, dtype=torch.float64),
    )


def ridge() -> TwoLevel:
    """A2: ridge regression on diabetes, a penalty for each feature, at log penalties of -2."""
    data, target = load_diabetes(return_X_y=True)
    features = torch.tensor(data * 442**0.5)
    y = torch.tensor((target - target.mean()) / target.std())
    (a, b), (c, d) = (features[:300], y[:300]), (features[300:], y[300:])
    x = torch.full((10,), -2.0, dtype=torch.float64)
    return _penalised(_half_square(a, b), _half_square(c, d), x)


def logistic() -> TwoLevel:
    """A3: logistic regression on breast cancer, a log penalty of -3 for each feature."""
    data, target = load_breast_cancer(return_X_y=True)
    features = torch.tensor((data - data.mean(0)) / data.std(0))
    y = torch.tensor(2.0 * target - 1.0)
    x = torch.full((30,), -3.0, dtype=torch.float64)
    return _penalised(
        lambda w: softplus(-y[:400] * (features[:400] @ w)).mean(),
        lambda w: softplus(-y[400:] * (features[400:] @ w)).mean(),
        x,
    )


def conditioned_ridge(condition: float, largest: float, size: int = 50) -> TwoLevel:
    """Ridge regression whose Hessian has eigenvalues from `largest` / `condition` to `largest`,
    spaced evenly in their logarithms; log penalties above.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n = 2 * size
    smallest = largest / condition
    values = torch.logspace(0, 1, size, base=condition, dtype=torch.float64) * smallest
    penalty = 0.5 * smallest
    q, _ = torch.linalg.qr(normal(size, size))
    p, _ = torch.linalg.qr(normal(n, size))
    a = (n**0.5) * p @ torch.diag((values - penalty).sqrt()) @ q.T
    c, truth = normal(n, size), normal(size)
    b, d = a @ truth + normal(n), c @ truth + normal(n)
    x = torch.full((size,), penalty, dtype=torch.float64).log()
    return _penalised(_half_square(a, b), _half_square(c, d), x)


def perceptron() -> TwoLevel:
    """A network of 200 weights with a weight for each training example above; about 10 inputs."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, teacher = normal(120, 12), normal(12, 3)
    labels = (x @ teacher + normal(120, 3)).argmax(1)

    def scores(w: Tensor, inputs: Tensor) -> Tensor:
        first, bias, second = w[:144].view(12, 12), w[144:156], w[156:].view(12, -1)[:, :3]
        return torch.tanh(inputs @ first + bias) @ second

    def lower(u: Values, w: Values) -> Tensor:
        each = cross_entropy(scores(w[0], x[:60]), labels[:60], reduction="none")
        return (u[0].sigmoid() * each).mean() + 5e-3 * w[0].square().sum()

    def upper(u: Values, w: Values) -> Tensor:
        return cross_entropy(scores(w[0], x[60:]), labels[60:])

    start, u = 0.5 * normal(192), torch.zeros(60, dtype=torch.float64)
    return at_solution(upper, lower, u, descended(lambda w: lower((u,), (w,)), start))


def transformer() -> TwoLevel:
    """A transformer layer of 8 dimensions, query, output and head below, gains above.

    Key and value are fixed: free, they would make the minimiser a continuum (rotations).
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, labels = normal(40, 5, 8), torch.randint(3, (40,), generator=generator)
    key, value = 0.5 * normal(8, 8), 0.5 * normal(8, 8)
    norm = nn.LayerNorm(8, elementwise_affine=False)

    def scores(u: Tensor, w: Tensor, inputs: Tensor) -> Tensor:
        query, out = w[:128].view(2, 8, 8)
        h = inputs * u.exp()
        a = nn.functional.scaled_dot_product_attention(
            *((h @ m).unsqueeze(1) for m in (query, key, value))
        )
        return norm(h + a.squeeze(1) @ out).mean(1) @ w[128:].view(8, 3)

    def lower(u: Values, w: Values) -> Tensor:
        loss = cross_entropy(scores(u[0], w[0], x[:20]), labels[:20])
        return loss + 5e-3 * w[0].square().sum()

    def upper(u: Values, w: Values) -> Tensor:
        return cross_entropy(scores(u[0], w[0], x[20:]), labels[20:])

    start, u = 0.3 * normal(152), torch.zeros(8, dtype=torch.float64)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return at_solution(upper, lower, u, descended(lambda w: lower((u,), (w,)), start))


CASES: dict[str, Callable[[], TwoLevel]] = {
    "scalar": scalar_problem,
    "ridge, cond 14.5": lambda: conditioned_ridge(14.5, 1.38),
    "ridge, cond 14.5, L 5.36": lambda: conditioned_ridge(14.5, 5.36),
    "ridge, cond 184": lambda: conditioned_ridge(184.0, 1.38),
    "logistic": logistic,
    "MLP": perceptron,
    "transformer": transformer,
}


def _half_square(a: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda w: 0.5 * (a @ w - b).square().mean()


def _penalised(
    fit: Callable[[Tensor], Tensor], held_out: Callable[[Tensor], Tensor], x: Tensor
) -> TwoLevel:
    """Regression with a penalty ``exp(x_j) w_j^2 / 2`` for each weight, solved."""

    def lower(u: Values, w: Values) -> Tensor:
        return fit(w[0]) + 0.5 * (u[0].exp() * w[0] ** 2).sum()

    y = newton(lambda w: lower((x,), (w,)), torch.zeros_like(x))
    return at_solution(lambda u, w: held_out(w[0]), lower, x, y)
