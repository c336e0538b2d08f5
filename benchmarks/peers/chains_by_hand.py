"""Rounds of a chain of levels as one would write them: a step a level, then one way back up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.hand import fetched, put, step
from benchmarks.peers.chains import Chain
from benchmarks.peers.library import Entry, Round, Train

# What a level answers to the one above, ``-C' H^-1 a``, for what has come to it.
Answer = Callable[[Chain, int, Tensor], Tensor]


def rounds(answer: Answer) -> Train:
    """Return rounds with an answer on each level."""

    def train(chain: Chain) -> Round:
        values = [module.value for module in chain.modules]
        optimizers = [chain.optimizer_of(k) for k in range(len(values))]

        def once() -> None:
            for k in range(1, len(values)):
                found = torch.autograd.grad(fetched(chain.loss(k)), values[k])
                step(optimizers[k], [values[k]], list(found))
            come = list(torch.autograd.grad(fetched(chain.loss(0)), values))
            for k in range(len(values) - 1, 0, -1):
                come[k - 1] = come[k - 1] + answer(chain, k, come[k])
            step(optimizers[0], [values[0]], come[:1])

        return once

    return train


def difference(chain: Chain, k: int, a: Tensor) -> Tensor:
    """Return ``-s C' a``, by a difference of gradients; s is the learning rate."""
    y, above = chain.modules[k].value, chain.modules[k - 1].value
    now = y.detach().clone()
    e = (1e-6 if y.dtype == torch.float64 else 1e-4) * float(now.norm() / a.norm())
    ends = []
    for sign in (1, -1):
        put([y], [now + sign * e * a])
        ends.append(torch.autograd.grad(chain.loss(k), above)[0])
    put([y], [now])
    return (ends[1] - ends[0]) * (chain.lr / (2 * e))


def exact(solve: Callable[[Callable[[Tensor], Tensor], Tensor, float], Tensor]) -> Answer:
    """Return answers from one graph, with what `solve` makes of products, `a` and the rate."""

    def answer(chain: Chain, k: int, a: Tensor) -> Tensor:
        y, above = chain.modules[k].value, chain.modules[k - 1].value
        (graph,) = torch.autograd.grad(chain.loss(k), y, create_graph=True)

        def product(v: Tensor) -> Tensor:
            return torch.autograd.grad(graph, y, v, retain_graph=True)[0]

        return torch.autograd.grad(graph, above, -solve(product, a, chain.lr))[0]

    return answer


def one_step(_: object, a: Tensor, lr: float) -> Tensor:
    """Return ``s a``."""
    return lr * a


def neumann(number: int) -> Callable[..., Tensor]:
    """Return ``s sum_k (I - s H)^k a`` to that number of products."""

    def solve(product: Callable[[Tensor], Tensor], a: Tensor, lr: float) -> Tensor:
        term, total = a, a
        for _ in range(number):
            term = term - lr * product(term)
            total = total + term
        return lr * total

    return solve


def cg(number: int) -> Callable[..., Tensor]:
    """Return what that number of conjugate gradients makes of ``H^-1 a``."""

    def solve(product: Callable[[Tensor], Tensor], a: Tensor, _: float) -> Tensor:
        x, r = torch.zeros_like(a), a
        p, rr = r, r @ r
        for _ in range(number):
            hp = product(p)
            alpha = rr / (p @ hp)
            x, r = x + alpha * p, r - alpha * hp
            following = r @ r
            p, rr = r + following / rr * p, following
        return x

    return solve


CHAINS = {
    "darts": Entry(rounds(difference)),
    "t1t2": Entry(rounds(exact(one_step))),
    "neumann(3)": Entry(rounds(exact(neumann(3)))),
    "cg(3)": Entry(rounds(exact(cg(3)))),
}
