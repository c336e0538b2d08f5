"""Single-loop methods: the linear system is solved across rounds, a warm-started step in each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from blo.derivatives.exact import Exact
from blo.derivatives.products import ProductRule
from blo.linear.settings import check_count, check_not_negative, check_positive
from blo.linear.system import Status, numbers
from blo.linear.tensors import Tensors, add, axpy, dot, norm, scale, subtract
from blo.methods.context import Context, Info, Requirements, Response


@dataclass(frozen=True)
class Amortised:
    """Gradient steps on ``v^T H v / 2 - c^T v``, continued from round to round.

    ``v <- v - step (H v - c)`` with ``H = g_yy + damping I`` and ``c = f_y`` of the present round,
    `num_steps` times; the response is ``-g_xy v``. While the levels move slowly `v` follows
    ``H^{-1} c``, its error shrinking by the factor ``max |1 - step lambda|`` a step; batches are
    averaged over in passing. From a state of zeros the first step is the one-step method's.

    One gradient, `num_steps` Hessian products and one mixed product a round, one vector of memory,
    one wait for the device a step.

    It needs a positive definite `H` and a step below ``2 / lambda_max``. What proves otherwise is
    reported, and kept from growing: where ``v^T H v <= 0`` (INDEFINITE), or a product is not finite
    (DIVERGED), `v` begins anew from zero; where ``step |H v| > 2 |v|`` (DIVERGED), this step is
    cut to ``|v| / |H v|``. The residual reported is that before the last step.

    Differs from SOBA: the mixed product sees `v` after its step, as in AmIGO, and the three
    safeguards above are added.

    Args:
        step: None takes the lower optimizer's current learning rates, as SOBA does.
        num_steps: 1 is SOBA, more AmIGO.
        damping: added to the diagonal of the Hessian.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> methods = [Amortised(0.25, num_steps=n) for n in (1, 2, 3, 30)]  # each halves the error
        >>> [round(hypergradient(f, g, x, y, method=m).grads[0].item(), 4) for m in methods]
        [3.0, 4.5, 5.25, 6.0]

    Reference: Dagreou, Ablin, Vaiter and Moreau (2022), arXiv:2201.13409 (SOBA); Arbel and Mairal
        (2022), arXiv:2111.14580 (AmIGO).
    """

    step: float | None = None
    num_steps: int = 1
    damping: float = 0.0
    products: ProductRule = Exact()

    def __post_init__(self) -> None:
        """Check the settings."""
        check_positive("step", self.step, "to take the lower learning rates")
        check_count("num_steps", self.num_steps, at_least=1)
        check_not_negative("damping", self.damping)

    @property
    def requirements(self) -> Requirements:
        """Nothing is recorded: everything is taken after the step."""
        return Requirements()

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return ``-g_xy v`` after the steps of this round, with `v` as the state.

        Raises:
            ValueError: if `step` is None and no lower optimizer is known.
        """
        step = self._step(context)
        products = self.products.at(context.lower, context.after)
        v, status, residual = state, Status.TRUNCATED, math.nan
        for _ in range(self.num_steps):
            r, used = cotangent, step
            if v is not None:
                hv = axpy(self.damping, v, products.hvp(v))
                curvature, size_v, size_hv = numbers(dot(v, hv), norm(v), norm(hv))
                if not math.isfinite(curvature):
                    v, status = None, Status.DIVERGED
                elif curvature <= 0.0 < size_v:
                    v, status = None, Status.INDEFINITE
                else:
                    r = subtract(cotangent, hv)
                    if min(step) * size_hv > 2 * size_v:
                        status = Status.DIVERGED
                        used = tuple(min(s, size_v / size_hv) for s in step)
            length, size = numbers(norm(r), norm(cotangent))
            residual = length / size if size > 0.0 else math.nan
            v = scale(used, r) if v is None else add(v, scale(used, r))
        assert v is not None
        mixed = products.mixed(v)
        apart = products.disagreement(v, mixed) if context.first else None
        info = Info(
            method=repr(self),
            point="after",
            scale=step[0] if len(set(step)) == 1 else step,
            radius=products.radius,
            status=status,
            residual=residual,
            num_gradients=products.num_gradients,
            num_products=products.num_products,
            disagreement=apart,
        )
        return Response(scale(-1.0, mixed), v, info)

    def _step(self, context: Context) -> tuple[float, ...]:
        """Return the step of each lower tensor."""
        if self.step is not None:
            return (self.step,) * len(context.after.lower)
        rates = context.known_rates("give it as a number, such as soba(step=0.1)")
        if rates is None:
            raise ValueError(
                "step=None takes the lower optimizer's learning rates, and no optimizer is known "
                "here; give a number below 2 over the largest eigenvalue of the lower Hessian, "
                "such as soba(step=0.1)"
            )
        return rates


def soba(
    step: float | None = None,
    *,
    num_steps: int = 1,
    damping: float = 0.0,
    products: ProductRule = Exact(),
) -> Amortised:
    """Return SOBA: implicit differentiation with one gradient step on the linear system a round.

    Costs one gradient, `num_steps` Hessian products and one mixed product. With ``num_steps > 1``
    it is AmIGO.

    Args:
        step: of the iteration on the linear system; None takes the lower learning rates.
        num_steps: steps a round.
        damping: added to the diagonal of the Hessian.
        products: a way to take products.

    Example:
        >>> import torch
        >>> from blo import hypergradient, soba
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> state = None
        >>> for _ in range(3):  # each has half the error of the one before
        ...     result = hypergradient(f, g, x, y, method=soba(0.25), state=state)
        ...     state = result.state
        ...     print(result.grads[0].item())
        3.0
        4.5
        5.25

    Reference: Dagreou, Ablin, Vaiter and Moreau (2022), arXiv:2201.13409; Arbel and Mairal (2022),
        arXiv:2111.14580.
    """
    return Amortised(step, num_steps, damping, products)
