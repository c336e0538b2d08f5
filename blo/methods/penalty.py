"""Hypergradients of the value-function penalty: first derivatives only.

The lower problem, as the constraint ``g(x, z) <= v(x) = min_y g(x, y)``, is moved into the upper
loss,

    F(x, z) = f(x, z) + p [g(x, z) - v(x)].

The gradient ``F_x = f_x(x, z) + p [g_x(x, z) - g_x(x, y)]`` needs no derivative of the lower
solution `y`, by Danskin's theorem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from blo.derivatives.differences import difference_step
from blo.derivatives.gradients import Gradients, gradients
from blo.derivatives.lower import refuse_saddle
from blo.derivatives.products import NO_PATH
from blo.linear.settings import is_finite
from blo.linear.system import Status, numbers
from blo.linear.tensors import Tensors, add, axpy, norm, subtract
from blo.methods.context import Context, Info, Requirements, Response


@dataclass(frozen=True)
class ValuePenalty:
    """The gradient of the value-function penalty; see `pbgd` for the arguments.

    Example:
        >>> import torch
        >>> from blo import hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> grads = hypergradient(f, g, x, y, method=ValuePenalty(10.0, num_steps=9)).grads
        >>> round(grads[0].item(), 6)  # 6 / (1 + 1 / 2p)
        5.714286
    """

    penalty: float = 10.0
    num_steps: int = 1
    lr: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        n = self.num_steps
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"num_steps must be an integer of at least 1, got {n!r}")
        if not (is_finite(self.penalty) and self.penalty > 0):
            raise ValueError(f"penalty must be positive and finite, got {self.penalty!r}")
        if self.lr is not None and not (is_finite(self.lr) and self.lr > 0):
            raise ValueError(
                f"lr must be positive and finite, or None to choose it, got {self.lr!r}"
            )

    @property
    def requirements(self) -> Requirements:
        """The loss above."""
        return Requirements(readers=True, first_order=True)

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return ``f_x(x, z) - f_x(x, y) + p [g_x(x, z) - g_x(x, y)]`` after the steps of `z`.

        The state is `z`.

        Raises:
            ValueError: if the context has no loss above.
            RuntimeError: if the lower loss depends on no upper parameter.
        """
        if not context.readers:
            raise ValueError(
                "pbgd() needs the upper loss, and the context holds no readers; use a method that "
                "needs none, such as f2sa() or darts()"
            )
        refuse_saddle(context.lower, "pbgd()")
        problem = _Penalised(self, context, cotangent)
        start = context.after.lower if state is None else state
        here, lr, status = problem.descend(start)
        if not (problem.solution.reached or here.below.reached):
            raise RuntimeError(NO_PATH)
        gap = subtract(here.below.upper, problem.solution.upper)
        shift = subtract(here.above.upper, problem.above.upper)
        value = axpy(self.penalty, gap, shift)
        size, radius = numbers(norm(cotangent), norm(subtract(here.z, context.after.lower)))
        size /= self.penalty
        info = Info(
            method=repr(self),
            point="after",
            scale=lr,
            radius=radius,
            status=status,
            residual=here.length / size if size > 0.0 else math.nan,
            num_gradients=problem.num_gradients,
        )
        return Response(value, here.z, info)


class _Iterate(NamedTuple):
    """One `z`, the gradient of ``g + f/p`` there with its length, and those of `g` and `f`."""

    z: Tensors
    gradient: Tensors
    length: float
    below: Gradients
    above: Gradients


class _Penalised:
    """The penalised problem of one call over `z`, scaled by ``1/p``: ``g(x, z) + f(x, z) / p``.

    Where the cotangent `c` holds more than ``f_y(x, y)``, the responses of problems further below,
    the rest enters as the linear term ``<c - f_y(x, y), z> / p``.
    """

    def __init__(self, method: ValuePenalty, context: Context, cotangent: Tensors) -> None:
        self.num_gradients = 0
        self._method = method
        self._context = context
        self.solution, self.above = self._taken(context.after.lower, with_upper=True)
        self._rest = subtract(cotangent, self.above.lower)

    def at(self, z: Tensors, *, with_upper: bool) -> _Iterate:
        """Return the gradients at `z`."""
        below, above = self._taken(z, with_upper=with_upper)
        push = add(above.lower, self._rest)
        gradient = axpy(1.0 / self._method.penalty, push, below.lower)
        return _Iterate(z, gradient, float(norm(gradient)), below, above)

    def descend(self, start: Tensors) -> tuple[_Iterate, float | None, Status]:
        """Return the iterate after the steps from `start`, the first step's size and how they went.

        A step size that is not given is one over the largest curvature met: along the first
        gradient, then along each step.
        """
        lr, first = self._method.lr, self._method.lr
        here = self.at(start, with_upper=False)
        if lr is None and here.length > 0.0:
            e = difference_step(
                self._context.lower, self._context.after.lower, here.gradient, one_sided=False
            )
            probe = self.at(axpy(-e, here.gradient, here.z), with_upper=False)
            lr = first = 1.0 / (_curvature(here, probe) or 1.0)
        for k in range(1, self._method.num_steps + 1):
            z = here.z if lr is None else axpy(-lr, here.gradient, here.z)
            there = self.at(z, with_upper=k == self._method.num_steps)
            if not math.isfinite(there.length):
                return self.at(here.z, with_upper=True), first, Status.DIVERGED
            if self._method.lr is None and lr is not None:
                lr = min(lr, 1.0 / (_curvature(here, there) or 1.0 / lr))
            here = there
        return here, first, Status.TRUNCATED

    def _taken(self, z: Tensors, *, with_upper: bool) -> tuple[Gradients, Gradients]:
        x, lower = self._context.after.upper, self._context.lower
        self.num_gradients += 2
        readers = self._context.readers
        return (
            lower.gradients(x, z, with_upper=with_upper),
            gradients(readers, x, z, with_upper=with_upper, reduction=lower.reduction),
        )


def _curvature(a: _Iterate, b: _Iterate) -> float:
    """Return the change of the gradient between two iterates over their distance, 0 where they are
    one.
    """
    distance, change = numbers(norm(subtract(b.z, a.z)), norm(subtract(b.gradient, a.gradient)))
    return change / distance if distance > 0.0 else 0.0


def pbgd(penalty: float = 10.0, *, num_steps: int = 1, lr: float | None = None) -> ValuePenalty:
    """Return PBGD: gradient descent on the upper loss with the lower problem as a penalty on the
    value function.

    ``F_x = f_x(x, z) + p [g_x(x, z) - g_x(x, y)]``, with `y` the lower solution and `z` a second
    copy of it that follows the minimiser of ``f(x, .) + p g(x, .)``, by `num_steps` gradient steps
    a call from where it was. Where both are at their minimisers, the error of the hypergradient is
    O(1/p).

    Costs ``2 num_steps + 4`` gradients, two more where `lr` is not given, and a copy of the lower
    parameters. No second derivative: fused attention, compiled, checkpointed and sharded modules
    stay as they are. The paper asks for a lower loss with the Polyak-Lojasiewicz property instead
    of strong convexity.

    Differs from Shen and Chen (V-PBGD): their inner iterate is the problem's own solution `y`,
    trained by the user's optimizer from where it was; their `y` is the copy `z`, the method's
    state, which steps before `x` does and not together with it; the upper loss in the record is
    that of the lower solution, ``f(x, y)``.

    Fails where `y` and `z` are not near their minimisers, since their errors enter `F_x` multiplied
    by `p`: with noisy batches, or few lower steps a round, take a small `p`.

    Args:
        penalty: the weight `p` of the constraint (the paper's gamma).
        num_steps: steps of `z` at each call.
        lr: size of the steps on ``g + f/p``; None takes one over the largest curvature met, which
            starts with one difference of gradients.

    Example:
        >>> import torch
        >>> from blo import hypergradient, pbgd
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> methods = [pbgd(p, num_steps=9) for p in (1.0, 10.0, 1000.0)]
        >>> [round(hypergradient(f, g, x, y, method=m).grads[0].item(), 2) for m in methods]
        [4.0, 5.71, 6.0]

    Reference: Shen and Chen (2023), arXiv:2302.05185, algorithm 1; in turns, as Jiang, Xiao, Chen
    and Chen (2025), arXiv:2511.16796.
    """
    return ValuePenalty(penalty, num_steps, lr)
