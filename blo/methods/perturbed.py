"""Hypergradients from a lower problem perturbed by the upper loss: first derivatives only.

The solution ``y_d`` of ``min_y g(x, y) + d f(x, y)`` is ``y - d H^{-1} f_y`` to first order in `d`.
The difference ``[g_x(x, y_d) - g_x(x, y)] / d`` therefore tends to the implicit hypergradient
``-g_xy H^{-1} f_y``, at the rate `d`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from blo.derivatives.differences import difference_step
from blo.derivatives.gradients import Gradients, gradients
from blo.derivatives.lower import refuse_saddle
from blo.derivatives.products import NO_PATH
from blo.linear.settings import check_count, check_flag, check_not_negative, check_positive
from blo.linear.system import Status, numbers
from blo.linear.tensors import Tensors, add, axpy, dot, length, norm, scale, subtract, zeros_like
from blo.methods.context import Context, Info, Requirements, Response

# The first step, as a fraction of what is best for a single difference: the solution lies several
# steps away. Best, or near it, in float32 and under bfloat16 on a transformer, logistic regression
# and ridge regression, over fractions from 0.003 to 10.
REACH = 0.1


@dataclass(frozen=True)
class Perturbed:
    """The difference quotient of a perturbed lower problem; see `f2sa` for the arguments.

    Example:
        >>> import torch
        >>> from blo import hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> methods = [Perturbed(delta=d, linearised=False) for d in (1.0, 0.1, 0.001)]
        >>> [round(hypergradient(f, g, x, y, method=m).grads[0].item(), 2) for m in methods]
        [4.0, 5.71, 6.0]
    """

    num_steps: int = 10
    delta: float | None = None
    lr: float | None = None
    symmetric: bool = False
    linearised: bool = True
    damping: float = 0.0
    rtol: float = 1e-6
    warm_start: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        check_count("num_steps", self.num_steps, at_least=1)
        check_positive("delta", self.delta, "to choose it")
        check_positive("lr", self.lr, "to choose it")
        check_not_negative("damping", self.damping)
        check_not_negative("rtol", self.rtol)
        for name in ("symmetric", "linearised", "warm_start"):
            check_flag(name, getattr(self, name))

    @property
    def requirements(self) -> Requirements:
        """The loss above, unless it is linearised."""
        return Requirements(readers=not self.linearised, first_order=True)

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return the difference quotient at ``context.after``.

        Raises:
            ValueError: if the upper loss is needed and the context has none.
            RuntimeError: if the lower loss depends on no upper parameter.
        """
        if not self.linearised and not context.readers:
            raise ValueError(
                "f2sa(linearised=False) needs the upper loss, and the context holds no readers; "
                "use linearised=True"
            )
        refuse_saddle(context.lower, "f2sa()")
        size = length(cotangent)
        if size == 0.0:
            info = Info(repr(self), "after", self.lr, 0.0, Status.CONVERGED, 0.0)
            return Response(zeros_like(context.after.upper), state, info)
        problem = _Perturbation(self, context, cotangent)
        warm = state if self.warm_start and state is not None and float(norm(state)) > 0 else None
        lr, delta, definite = problem.sizes(warm)
        sides = [
            problem.solve(sign * delta, lr, warm, definite)
            for sign in ((1.0, -1.0) if self.symmetric else (1.0,))
        ]
        v = scale(-1.0 / delta, sides[0].displacement)
        worst = max(sides, key=lambda side: side.residual)
        info = Info(
            method=repr(self),
            point="after",
            scale=sides[0].lr,
            radius=delta * float(norm(v)),
            status=worst.status,
            residual=worst.residual,
            num_gradients=problem.num_gradients,
        )
        value = problem.quotient(delta, sides)
        return Response(value, v if self.warm_start else None, info)


class _Iterate(NamedTuple):
    """A displacement `d` from `y`, with the gradient ``P(d)`` of the perturbed problem, its length,
    and the upper gradient ``g_x + delta f_x`` there where it was asked for.
    """

    d: Tensors
    gradient: Tensors
    length: float
    upper: Tensors | None


class _Side(NamedTuple):
    """The solution of the problem perturbed by +delta or by -delta."""

    displacement: Tensors
    upper: Tensors
    status: Status
    residual: float
    lr: float


class _Perturbation:
    """The perturbed lower problem around one point, on the batches of one call.

    Its gradient at the displacement `d` from `y` is

        P(d) = g_y(y + d) - g_y(y) + damping d + delta [c + f_y(y + d) - f_y(y)]

    with the brackets' differences left out where `f` is linearised. The loss is tilted by
    ``-g_y(y)``, which makes `y` the solution without perturbation whether or not the lower problem
    has converged.
    """

    def __init__(self, method: Perturbed, context: Context, cotangent: Tensors) -> None:
        self.num_gradients = 1
        self._method = method
        self._context = context
        self._cotangent = cotangent
        self._base = context.lower.gradients(
            context.after.upper, context.after.lower, with_upper=not method.symmetric
        )
        self._above = None
        if not method.linearised:
            self.num_gradients += 1
            self._above = self._readers(context.after.lower, with_upper=True)

    def at(self, d: Tensors, delta: float, *, with_upper: bool) -> _Iterate:
        """Return the perturbed problem's gradient at `d`."""
        context = self._context
        y = add(context.after.lower, d)
        here = context.lower.gradients(context.after.upper, y, with_upper=with_upper)
        self.num_gradients += 1
        if with_upper and not here.reached:
            raise RuntimeError(NO_PATH)
        gradient, upper = subtract(here.lower, self._base.lower), here.upper
        if self._method.damping:
            gradient = axpy(self._method.damping, d, gradient)
        push = self._cotangent
        if self._above is not None and delta != 0.0:
            above = self._readers(y, with_upper=with_upper)
            self.num_gradients += 1
            push = add(push, subtract(above.lower, self._above.lower))
            upper = axpy(delta, above.upper, upper)
        gradient = axpy(delta, push, gradient)
        return _Iterate(d, gradient, float(norm(gradient)), upper if with_upper else None)

    def _readers(self, y: Tensors, *, with_upper: bool) -> Gradients:
        """Return the gradient of the loss above at `y`."""
        context = self._context
        return gradients(
            context.readers,
            context.after.upper,
            y,
            with_upper=with_upper,
            reduction=context.lower.reduction,
        )

    def reach(self, v: Tensors) -> float:
        """Return how many times `v` to move for the quotient."""
        lower, y = self._context.lower, self._context.after.lower
        return REACH * difference_step(lower, y, v, one_sided=not self._method.symmetric)

    def sizes(self, warm: Tensors | None) -> tuple[float | None, float, bool]:
        """Return the first step size (None where the solution that it starts from tells it),
        `delta`, and whether the lower loss curves upwards along the cotangent, as far as is known.
        """
        lr, delta, definite = self._method.lr, self._method.delta, True
        if lr is None and warm is None:
            lr, definite = self.first_step()
        if delta is not None:
            return lr, delta, definite
        if warm is not None:
            return lr, self.reach(warm), definite
        assert lr is not None
        return lr, self.reach(self._cotangent) / lr, definite

    def first_step(self) -> tuple[float, bool]:
        """Return the step size that the lower loss has along the cotangent, and whether it curves
        upwards there. One gradient.
        """
        lower, y, c = self._context.lower, self._context.after.lower, self._cotangent
        d = scale(-difference_step(lower, y, c, one_sided=True), c)
        return _step(d, self.at(d, 0.0, with_upper=False).gradient)

    def solve(self, delta: float, lr: float | None, warm: Tensors | None, definite: bool) -> _Side:
        """Return the iterate of least residual among `num_steps` gradient steps on the perturbed
        problem.

        Steps of given size end where the residual grows, which proves them too long or the
        curvature negative, as for the Neumann series. A size that is not given follows the
        curvature met: ``<s, r> / |r|^2`` for the last step `s` and change `r` of the gradient
        (Barzilai and Borwein, 1988); where that is not positive, the steps end.
        """
        push = scale(delta, self._cotangent)
        size = float(norm(push))
        here = best = _Iterate(zeros_like(push), push, size, None)
        if warm is not None:
            here = best = self.at(scale(-delta, warm), delta, with_upper=False)
            lr = _step(here.d, subtract(here.gradient, push))[0] if lr is None else lr
        assert lr is not None
        first, num_steps = lr, self._method.num_steps if definite else 1
        status = Status.TRUNCATED if definite else Status.INDEFINITE
        for k in range(1, num_steps + 1):
            if here.length <= self._method.rtol * size:
                status = Status.CONVERGED
                break
            d = axpy(-lr, here.gradient, here.d)
            there = self.at(d, delta, with_upper=k == num_steps)
            if not math.isfinite(there.length):
                status = Status.DIVERGED
                break
            if there.length < best.length or (k == 1 and warm is None):
                best = there
            if self._method.lr is not None and there.length > here.length:
                status = Status.DIVERGED
                break
            if self._method.lr is None:
                lr, definite = _step(subtract(d, here.d), subtract(there.gradient, here.gradient))
                if not definite:
                    status = Status.INDEFINITE
                    break
            here = there
        if best.length <= self._method.rtol * size:
            status = Status.CONVERGED
        elif best.length > size and status is Status.TRUNCATED:
            status = Status.DIVERGED
        if best.upper is None:
            best = self.at(best.d, delta, with_upper=True)
        assert best.upper is not None
        return _Side(best.d, best.upper, status, best.length / size, first)

    def quotient(self, delta: float, sides: Sequence[_Side]) -> Tensors:
        """Return the difference of the upper gradients over the difference in delta, less the
        direct part ``f_x(x, y)``.
        """
        first, *second = sides
        if second:
            value = scale(0.5 / delta, subtract(first.upper, second[0].upper))
        else:
            value = scale(1.0 / delta, subtract(first.upper, self._base.upper))
        return value if self._above is None else subtract(value, self._above.upper)


def _step(s: Tensors, r: Tensors) -> tuple[float, bool]:
    """Return the step size for a change `r` of the gradient over the displacement `s`, and whether
    the curvature ``<s, r>`` is positive; its absolute value is taken where it is not.
    """
    curvature, square, way = numbers(dot(s, r), dot(r, r), norm(s))
    if not (math.isfinite(square) and square > 0.0):
        return 1.0, False
    if curvature > 0.0:
        return curvature / square, True
    return way / math.sqrt(square), False


def f2sa(
    num_steps: int = 10,
    *,
    delta: float | None = None,
    lr: float | None = None,
    symmetric: bool = False,
    linearised: bool = True,
    damping: float = 0.0,
    rtol: float = 1e-6,
    warm_start: bool = False,
) -> Perturbed:
    """Return F2SA: the response of the lower solution by first-order steps on the lower problem
    perturbed by the upper loss.

    ``y_d ~ argmin_y g(x, y) + d f(x, y)``; the response is
    ``[g_x(x, y_d) - g_x(x, y)] / d + f_x(x, y_d) - f_x(x, y)``, which with the direct part
    ``f_x(x, y)`` makes the paper's ``f_x(x, y_d) + lambda [g_x(x, y_d) - g_x(x, y)]`` for
    ``lambda = 1/d``. Its error is O(d) where the perturbed problem is solved, plus what the steps
    leave: the residual in the log. Of the iterates, the one of least residual counts, at one more
    gradient where that is not the last.

    Costs ``num_steps + 1`` gradients, one more where `lr` is not given (or for the start where it
    is warm); twice the steps if symmetric; twice as many in all if not linearised. No second
    derivative: fused attention, compiled, checkpointed and sharded modules stay as they are.

    Differs from Kwon et al.: the lower loss is tilted by ``-<g_y(x, y), .>``, so that a lower
    problem short of convergence does not enter the quotient multiplied by lambda; `f` is linearised
    unless asked otherwise; lambda does not grow with the rounds.

    Fails where the lower loss curves downwards along the steps (they end there: status
    INDEFINITE; `damping` helps), and where rounding errors of ``g_y`` are not small against
    ``d |c|``: under bfloat16 autocast expect an error of some percent for a few steps of given
    size, more with every further step; symmetric is better. Reentrant checkpointing does not work
    with `torch.autograd.grad`: pass ``use_reentrant=False``.

    Args:
        num_steps: gradient steps on the perturbed problem.
        delta: size `d` of the perturbation; None makes the first step a tenth of what is best for
            a single difference of gradients in the type that the loss is computed in.
        lr: size of the steps; None takes it from the curvature met (Barzilai-Borwein), which starts
            with one more gradient.
        symmetric: solve for ``+d`` and ``-d``; the bias is O(d^2).
        linearised: perturb by ``<c, y>``, with `c` the total gradient of the upper loss, instead of
            the upper loss itself. The same to first order in `d`, at half the cost.
        damping: adds ``damping/2 |y_d - y|^2``: solves ``(H + damping I) v = c``.
        rtol: stop where the gradient of the perturbed problem has fallen by this factor.
        warm_start: start at ``y - d v`` with the `v` of the last call instead of at `y`.

    Example:
        >>> import torch
        >>> from blo import f2sa, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> result = hypergradient(f, g, x, y, method=f2sa())
        >>> round(result.grads[0].item(), 4), result.info.num_products  # 3 (3 x - 1)
        (6.0, 0)

    Reference: Kwon, Kwon, Wright and Nowak (2023), arXiv:2301.10945; as a difference quotient, with
    the symmetric one, Chen, Li, Chayti and Zhang (2025), arXiv:2509.02937 (F2SA-2).
    """
    return Perturbed(num_steps, delta, lr, symmetric, linearised, damping, rtol, warm_start)
