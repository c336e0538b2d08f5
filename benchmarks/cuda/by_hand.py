"""Rounds as one would write them for one method: the floor of what a round can cost.

Nothing is general here: one optimizer (Adam), one batch a level, no dropout, no weight decay. The
formulas are those of the methods' docstrings, written anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cuda.shapes import Adapted, Batch
from benchmarks.hand import Tensors, put, step, through_adam

LOWER_LR, UPPER_LR = 1e-3, 1e-2
# Small shapes at random have negative curvature of up to about 5; CG has to take all its products.
DAMPING = 10.0
RADIUS = {None: (1e-2, 1e-3), torch.bfloat16: (1e-1, 1e-1)}


class ByHand:
    """A training loop for one method.

    Args:
        here: model and data.
        method: one of `ROUNDS`.
    """

    def __init__(self, here: Adapted, method: str) -> None:
        self.here = here
        self.x, self.y = here.split.upper, here.split.lower
        self.upper = torch.optim.Adam(self.x, UPPER_LR)
        self.lower = torch.optim.Adam(self.y, LOWER_LR)
        self.indirect = ROUNDS[method]
        self.one_sided = method == "darts, one-sided"
        self.keeps = method not in ("alternating", "cg(5)")

    def round(self) -> None:
        """Take a lower step and an upper step."""
        wanted = [*self.y, *self.x] if self.one_sided else self.y
        grads = list(torch.autograd.grad(self.loss(self.here.lower), wanted))
        self.g_y, self.g_x = grads[: len(self.y)], grads[len(self.y) :]
        if self.keeps:
            self.before = [p.detach().clone() for p in self.y]
        step(self.lower, self.y, self.g_y)
        grads = list(torch.autograd.grad(self.loss(self.here.upper), [*self.x, *self.y]))
        direct, cotangent = grads[: len(self.x)], grads[len(self.x) :]
        if self.indirect is not None:
            direct = torch._foreach_add(direct, self.indirect(self, cotangent))
        self.received = direct
        step(self.upper, self.x, direct)

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch; its value is fetched, as a loop that logs does."""
        value = self.here.loss(batch)
        if not math.isfinite(float(value.detach())):
            raise FloatingPointError("the loss is not finite")
        return value

    def at(self, values: Tensors) -> Tensors:
        """Return the gradient above of the lower loss, with other lower parameters."""
        now = [p.detach().clone() for p in self.y]
        put(self.y, values)
        for p in self.y:
            p.requires_grad_(False)
        grads = list(torch.autograd.grad(self.here.loss(self.here.lower), self.x))
        for p in self.y:
            p.requires_grad_(True)
        put(self.y, now)
        return grads


def size(tensors: Tensors) -> float:
    """Return the norm of all together."""
    return float(torch.stack(torch._foreach_norm(tensors)).norm())


def product_by_difference(hand: ByHand, v: Tensors) -> Tensors:
    """Return ``g_xy v`` at the weights before the step, by a difference."""
    y = hand.before
    count = sum(t.numel() for t in y)
    radius = RADIUS[hand.here.precision][int(hand.one_sided)]
    e = radius * max(size(y), math.sqrt(count) * 1e-3) / size(v)
    plus = hand.at(torch._foreach_add(y, v, alpha=e))
    if hand.one_sided:
        return torch._foreach_div(torch._foreach_sub(plus, hand.g_x), e)
    minus = hand.at(torch._foreach_sub(y, v, alpha=e))
    return torch._foreach_div(torch._foreach_sub(plus, minus), 2 * e)


def darts(hand: ByHand, c: Tensors) -> Tensors:
    """Return ``-s g_xy c`` by a difference, `s` the learning rate."""
    return torch._foreach_mul(product_by_difference(hand, c), -LOWER_LR)


def sama(hand: ByHand, c: Tensors) -> Tensors:
    """Return ``g_xy D c`` by a difference, D the derivative of Adam's last step."""
    return product_by_difference(hand, through_adam(hand.lower, hand.y, hand.g_y, c))


def gradient_graph(hand: ByHand) -> Tensors:
    """Return ``g_y`` with its graph; to be called with attention on the math kernel."""
    loss = hand.here.loss(hand.here.lower)
    return list(torch.autograd.grad(loss, hand.y, create_graph=True))


def t1t2(hand: ByHand, c: Tensors) -> Tensors:
    """Return ``-s g_xy c``, exact, at the weights before the step."""
    now = [p.detach().clone() for p in hand.y]
    put(hand.y, hand.before)
    with sdpa_kernel(SDPBackend.MATH):
        mixed = torch.autograd.grad(gradient_graph(hand), hand.x, c)
    put(hand.y, now)
    return torch._foreach_mul(list(mixed), -LOWER_LR)


def cg(hand: ByHand, c: Tensors) -> Tensors:
    """Return ``-g_xy v``, v from five conjugate gradients on ``(g_yy + damping) v = c``."""
    with sdpa_kernel(SDPBackend.MATH):
        graph = gradient_graph(hand)
        shapes = [t.shape for t in c]
        r = torch.cat([t.flatten() for t in c])
        x, p, rr = torch.zeros_like(r), r.clone(), r @ r
        for _ in range(5):
            v = [
                t.view(s) for t, s in zip(p.split([s.numel() for s in shapes]), shapes, strict=True)
            ]
            hp = torch.autograd.grad(graph, hand.y, v, retain_graph=True)
            hp = torch.cat([t.flatten() for t in hp]).add_(p, alpha=DAMPING)
            alpha = rr / (p @ hp)
            x += alpha * p
            r -= alpha * hp
            following = r @ r
            p = r + (following / rr) * p
            rr = following
        v = [t.view(s) for t, s in zip(x.split([s.numel() for s in shapes]), shapes, strict=True)]
        mixed = torch.autograd.grad(graph, hand.x, v)
    return torch._foreach_neg(list(mixed))


ROUNDS: dict[str, Callable[[ByHand, Tensors], Tensors] | None] = {
    "alternating": None,
    "darts, one-sided": darts,
    "darts": darts,
    "t1t2": t1t2,
    "sama": sama,
    "cg(5)": cg,
}
