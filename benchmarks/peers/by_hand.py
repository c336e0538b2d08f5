"""Rounds as one would write them for one method and one problem: the floor of what a round costs.

The formulas are those of the methods' docstrings, written anew, with in-place flat vectors in the
solvers; nothing is checked and nothing is logged, but the loss, which every training loop fetches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.hand import Tensors, fetched, put, step, through_adam
from benchmarks.peers.chains_by_hand import CHAINS
from benchmarks.peers.library import Entry, Library, Round, Train, register
from benchmarks.peers.task import Task


class Loop:
    """A training loop with a method for the response."""

    def __init__(self, task: Task, method: str) -> None:
        self.task = task
        self.x, self.y = task.x, task.y
        self.above, self.below = task.upper_optimizer(), task.lower_optimizer()
        self.response = RESPONSES[method]
        self.one_sided = method == "darts, one-sided"
        self.keeps = method in ("t1t2", "darts", "darts, one-sided", "sama")

    def round(self) -> None:
        """Take the lower steps and a step above."""
        for t in range(self.task.steps):
            last = t + 1 == self.task.steps
            wanted = [*self.y, *self.x] if self.one_sided and last else self.y
            grads = torch.autograd.grad(fetched(self.task.g()), wanted)
            self.g_y, self.g_x = list(grads[: len(self.y)]), list(grads[len(self.y) :])
            if self.keeps and last:
                self.before = [p.detach().clone() for p in self.y]
            step(self.below, self.y, self.g_y)
        wanted = [*self.x, *self.y]
        grads = torch.autograd.grad(
            fetched(self.task.f()), wanted, allow_unused=True, materialize_grads=True
        )
        direct, cotangent = list(grads[: len(self.x)]), list(grads[len(self.x) :])
        if self.response is not None:
            direct = torch._foreach_add(direct, self.response(self, cotangent))
        step(self.above, self.x, direct)

    def at(self, values: Tensors) -> Tensors:
        """Return the gradient above of the lower loss, with other lower parameters."""
        now = [p.detach().clone() for p in self.y]
        put(self.y, values)
        for p in self.y:
            p.requires_grad_(False)
        grads = list(torch.autograd.grad(self.task.g(), self.x))
        for p in self.y:
            p.requires_grad_(True)
        put(self.y, now)
        return grads


def difference(loop: Loop, v: Tensors) -> Tensors:
    """Return ``g_xy v`` at the weights before the step, by a difference of gradients."""
    y = loop.before
    length = float(torch.stack(torch._foreach_norm(v)).norm())
    size = float(torch.stack(torch._foreach_norm(y)).norm())
    wide = y[0].dtype == torch.float64
    e = (1e-6 if wide else 1e-4) * max(size, 1e-3) / length
    plus = loop.at(torch._foreach_add(y, v, alpha=e))
    if loop.one_sided:
        return torch._foreach_div(torch._foreach_sub(plus, loop.g_x), e)
    minus = loop.at(torch._foreach_sub(y, v, alpha=e))
    return torch._foreach_div(torch._foreach_sub(plus, minus), 2 * e)


def darts(loop: Loop, c: Tensors) -> Tensors:
    """Return ``-s g_xy c`` by a difference, `s` the learning rate."""
    return torch._foreach_mul(difference(loop, c), -loop.task.lr)


def sama(loop: Loop, c: Tensors) -> Tensors:
    """Return ``g_xy D c`` by a difference, D the derivative of Adam's last step."""
    if loop.task.optimizer == "SGD":
        return darts(loop, c)
    return difference(loop, through_adam(loop.below, loop.y, loop.g_y, c))


def t1t2(loop: Loop, c: Tensors) -> Tensors:
    """Return ``-s g_xy c``, exact, at the weights before the step."""
    now = [p.detach().clone() for p in loop.y]
    put(loop.y, loop.before)
    with sdpa_kernel(SDPBackend.MATH):
        graph = torch.autograd.grad(loop.task.g(), loop.y, create_graph=True)
        mixed = torch.autograd.grad(graph, loop.x, c)
    put(loop.y, now)
    return torch._foreach_mul(list(mixed), -loop.task.lr)


class Products:
    """``H v`` of flat vectors, on one graph."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.shapes = [p.shape for p in loop.y]
        self.sizes = [p.numel() for p in loop.y]
        self.graph = torch.autograd.grad(loop.task.g(), loop.y, create_graph=True)

    def split(self, v: Tensor) -> Tensors:
        """Return a flat vector in the shapes of the parameters."""
        return [t.view(s) for t, s in zip(v.split(self.sizes), self.shapes, strict=True)]

    def __call__(self, v: Tensor) -> Tensor:
        """Return ``H v``."""
        found = torch.autograd.grad(self.graph, self.loop.y, self.split(v), retain_graph=True)
        return torch.cat([t.flatten() for t in found])

    def mixed(self, v: Tensor) -> Tensors:
        """Return ``-g_xy v``."""
        return torch._foreach_neg(list(torch.autograd.grad(self.graph, self.loop.x, self.split(v))))


def cg(number: int) -> Callable[[Loop, Tensors], Tensors]:
    """Return conjugate gradients for ``-g_xy H^-1 c``."""

    def response(loop: Loop, c: Tensors) -> Tensors:
        with sdpa_kernel(SDPBackend.MATH):
            products = Products(loop)
            r = torch.cat([t.flatten() for t in c])
            x, p, rr = torch.zeros_like(r), r.clone(), r @ r
            for _ in range(number):
                hp = products(p)
                alpha = rr / (p @ hp)
                x.addcmul_(alpha, p)
                r.addcmul_(-alpha, hp)
                following = r @ r
                p.mul_(following / rr).add_(r)
                rr = following
            return products.mixed(x)

    return response


def neumann(number: int) -> Callable[[Loop, Tensors], Tensors]:
    """Return a Neumann series for ``-g_xy H^-1 c``, scaled by the learning rate."""

    def response(loop: Loop, c: Tensors) -> Tensors:
        with sdpa_kernel(SDPBackend.MATH):
            products = Products(loop)
            term = torch.cat([t.flatten() for t in c])
            total = term.clone()
            for _ in range(number):
                term.sub_(products(term), alpha=loop.task.lr)
                total.add_(term)
            return products.mixed(total.mul_(loop.task.lr))

    return response


def unrolled(task: Task) -> Round:
    """Return rounds that differentiate the lower steps, written as functions."""
    above, x, y = task.upper_optimizer(), task.x, task.y
    b1, b2, eps = 0.9, 0.999, 1e-8
    moments: list[Tensors] = [[torch.zeros_like(p) for p in y] for _ in range(2)]
    taken = 0

    def once() -> None:
        nonlocal taken, moments
        w = list(x) if task.from_upper else [p.detach().requires_grad_() for p in y]
        m, v = moments
        for _ in range(task.steps):
            taken += 1
            g = torch.autograd.grad(fetched(task.at(task.lower_loss, x, w)), w, create_graph=True)
            if task.optimizer == "SGD":
                w = [p - task.lr * d for p, d in zip(w, g, strict=True)]
                continue
            m = [a.lerp(d, 1 - b1) for a, d in zip(m, g, strict=True)]
            v = [(b2 * a).addcmul(d, d, value=1 - b2) for a, d in zip(v, g, strict=True)]
            first, root = 1 - b1**taken, math.sqrt(1 - b2**taken)
            w = [
                p.addcdiv(a, c.clamp_min(1e-30).sqrt() / root + eps, value=-task.lr / first)
                for p, a, c in zip(w, m, v, strict=True)
            ]
        grads = torch.autograd.grad(fetched(task.at(task.upper_loss, x, w)), x)
        put(y, [t.detach() for t in w])
        moments = [[t.detach() for t in part] for part in (m, v)]
        step(above, x, list(grads))

    return once


RESPONSES: dict[str, Callable[[Loop, Tensors], Tensors] | None] = {
    "alternating": None,
    "t1t2": t1t2,
    "darts": darts,
    "darts, one-sided": darts,
    "sama": sama,
    "neumann(10)": neumann(10),
    "cg(10)": cg(10),
    "cg(20)": cg(20),
}


def _train(method: str) -> Train:
    return lambda task: Loop(task, method).round


BY_HAND = register(
    Library(
        "by hand",
        "torch",
        lambda: None,
        {name: Entry(_train(name)) for name in RESPONSES} | {"unrolled": Entry(unrolled)},
        CHAINS,
    )
)
