"""Quadratic problems on several levels that read each other, with their solution in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from blo import Engine, Method, Problem, ProblemGraph

GRAPHS: dict[str, dict[str, list[str]]] = {
    "chain of 3": {"x": ["y", "z"], "y": ["x"], "z": ["y"]},
    "3, skip connection": {"x": ["y", "z"], "y": ["x"], "z": ["x", "y"]},
    "3, middle reads below": {"x": ["y", "z"], "y": ["x", "z"], "z": ["x", "y"]},
    "diamond": {"x": ["a", "b", "z"], "a": ["x"], "b": ["x"], "z": ["a", "b"]},
    "4, all read all": {
        "x": ["y", "z", "w"],
        "y": ["x", "z", "w"],
        "z": ["x", "y", "w"],
        "w": ["x", "y", "z"],
    },
}


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

    def problems(
        self, values: Mapping[str, Tensor], method: Method, *, steps: int = 1, lr: float = 0.0
    ) -> list[Problem]:
        """The problems as modules that hold `values`, top to bottom, all with the same method."""
        modules = {k: Vector(v.clone()) for k, v in values.items()}

        def loss_of(name: str):
            return lambda batch: self.loss(name, {k: m.value for k, m in modules.items()})

        return [
            Problem(
                k,
                loss_of(k),
                modules[k],
                torch.optim.SGD(modules[k].parameters(), lr=lr),
                [None],
                method=method,
                steps=1 if k == self.names[0] else steps,
            )
            for k in self.names
        ]


def received(engine: Engine) -> tuple[Tensor, int, int]:
    """Run one round; return the gradient that the top's optimizer received, and the gradients and
    products that all responses in the round took.
    """
    top = engine.graph.top
    seen: list[Tensor] = []
    hook = top.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in top.parameters]))
    )
    responses = engine.run(1).responses.values()
    hook.remove()
    spent = (sum(i.num_gradients for i in responses), sum(i.num_products for i in responses))
    return seen[0], *spent


def nested_gradient(reads: Mapping[str, Sequence[str]], method: Method, **settings: float) -> tuple:
    """Return the hypergradient of the nested problem by `method`, its closed form and its cost."""
    nested = NestedQuadratics(reads)
    values, reference = nested.solve()
    engine = Engine(ProblemGraph(nested.problems(values, method, **settings)))
    value, num_gradients, num_products = received(engine)
    return value, reference, num_gradients, num_products
