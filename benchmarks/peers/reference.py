"""What the methods claim, in float64 and by other means: the gradient that the optimizer above
should have received in the first round of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers.chains import Chain
from benchmarks.peers.library import Claim
from benchmarks.peers.task import Task

Tensors = list[Tensor]


@sdpa_kernel(SDPBackend.MATH)  # the only attention that can be differentiated twice
def claimed(task: Task | Chain, claim: Claim) -> Tensor:
    """Return the flat hypergradient of the first round, of a task or a chain in float64.

    With y+ the end of the lower steps, H the Hessian there and s the learning rate:

    - "one step": d/dx of f(x, y+), the last step taken as a function of x from where it began;
    - "identity": f_x - g_xy f_y at y+, as where H is the identity;
    - "steps": d/dx of f(x, y+), all steps taken as functions of x; "steps, earlier Adam" where Adam
      adds its epsilon before it corrects the second moment, as torch did up to 1.2;
    - "series": f_x - g_xy s sum_{k=0}^{K} (I - s H)^k f_y at y+;
    - "krylov": f_x - g_xy v, v after K conjugate gradients on H v = f_y at y+;
    - "implicit": f_x - g_xy H^-1 f_y at y+.

    In a chain each level answers so to the level above it.
    """
    if isinstance(task, Chain):
        return _claimed_of(task, claim)
    x = [p.detach().clone().requires_grad_() for p in task.x]
    y = [p.detach().clone().requires_grad_() for p in task.y]
    if claim.kind.startswith(("one step", "steps")):
        start: Tensors = list(x) if task.from_upper else y
        first = task.steps if claim.kind == "one step" else 1
        end = _end(task, x, start, first, corrected=claim.kind != "steps, earlier Adam")
        found = torch.autograd.grad(task.at(task.upper_loss, x, end), x)
        return torch.cat([t.flatten() for t in found])
    end = [t.detach().requires_grad_() for t in _end(task, x, y, task.steps + 1)]
    grads = torch.autograd.grad(
        task.at(task.upper_loss, x, end), [*x, *end], allow_unused=True, materialize_grads=True
    )
    direct, cotangent = grads[: len(x)], _flat(grads[len(x) :])
    graph = torch.autograd.grad(task.at(task.lower_loss, x, end), end, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return _flat(torch.autograd.grad(graph, end, _split(v, end), retain_graph=True))

    v = _solved(claim, product, cotangent, task.lr)
    mixed = torch.autograd.grad(graph, x, _split(v, end), allow_unused=True, materialize_grads=True)
    return _flat(direct) - _flat(mixed)


def _claimed_of(chain: Chain, claim: Claim) -> Tensor:
    """Return the hypergradient of a chain at its solution: from the last level up, each takes what
    has come to it, ``a_k``, and adds ``-C_k' v_k`` to the level above, v_k for ``H_k^-1 a_k``.
    """
    values = [module.value.detach().requires_grad_() for module in chain.modules]
    cotangents = list(torch.autograd.grad(chain.at(0, values), values))
    for k in range(len(values) - 1, 0, -1):
        h, c = chain.curvatures[k], chain.couplings[k]
        v = _solved(claim, h.matmul, cotangents[k], chain.lr)
        cotangents[k - 1] = cotangents[k - 1] - c.T @ v
    return cotangents[0]


def _solved(claim: Claim, product: Callable[[Tensor], Tensor], b: Tensor, lr: float) -> Tensor:
    """Return the vector that stands for the response of a claim, ``H^-1 b``."""
    if claim.kind == "identity":
        return b
    if claim.kind == "one step":
        return lr * b
    if claim.kind == "series":
        term, total = b, b
        for _ in range(claim.size):
            term = term - lr * product(term)
            total = total + term
        return lr * total
    if claim.kind == "krylov":
        x, r = torch.zeros_like(b), b
        directions: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(claim.size):
            p = r
            for q, hq, size in directions:  # against all of them: rounding does not add up
                p = p - (hq @ r) / size * q
            hp = product(p)
            size = p @ hp
            x, r = x + (p @ r) / size * p, r - (p @ r) / size * hp
            directions.append((p, hp, size))
        return x
    assert claim.kind == "implicit"
    hessian = torch.stack([product(e) for e in torch.eye(len(b), dtype=b.dtype)])
    return torch.linalg.solve(hessian, b)


def _end(task: Task, x: Tensors, y: Tensors, first: int, *, corrected: bool = True) -> Tensors:
    """Return the lower parameters after the steps of SGD or Adam, as functions of x in the steps
    from the one numbered `first` on; `corrected` is whether Adam's second moment is when epsilon is
    added.
    """
    m, v = ([torch.zeros_like(t) for t in y] for _ in range(2))
    b1, b2, eps = 0.9, 0.999, 1e-8
    for t in range(1, task.steps + 1):
        graph = t >= first
        if not graph or t == first > 1:
            y = [p.detach().requires_grad_() for p in y]
            m, v = ([a.detach() for a in part] for part in (m, v))
        g = torch.autograd.grad(task.at(task.lower_loss, x, y), y, create_graph=graph)
        if task.optimizer == "SGD":
            y = [p - task.lr * d for p, d in zip(y, g, strict=True)]
            continue
        m = [b1 * a + (1 - b1) * d for a, d in zip(m, g, strict=True)]
        v = [b2 * a + (1 - b2) * d * d for a, d in zip(v, g, strict=True)]
        # The derivative of the root at zero is infinite; it is taken for zero there.
        roots = [torch.where(c > 0, c, 1.0).sqrt() * (c > 0) for c in v]
        root = (1 - b2**t) ** 0.5
        sizes = [r / root + eps if corrected else (r + eps) / root for r in roots]
        y = [p - task.lr * a / (1 - b1**t) / s for p, a, s in zip(y, m, sizes, strict=True)]
    return y


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _split(v: Tensor, like: Tensors) -> Tensors:
    pieces = v.split([t.numel() for t in like])
    return [piece.view(t.shape) for piece, t in zip(pieces, like, strict=True)]
