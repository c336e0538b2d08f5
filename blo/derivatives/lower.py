"""The lower objective, and the point that it is looked at."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blo.derivatives.gradients import Gradients, gradients
from blo.derivatives.kept import KeptGradient
from blo.derivatives.objective import Objective
from blo.derivatives.precision import coarsest
from blo.derivatives.reduction import LOCAL, Reduction
from blo.linear.tensors import Tensors, add, scale


@dataclass(frozen=True)
class Point:
    """Where products are taken: values of the upper and the lower parameters.

    Args:
        upper: parameters of the problems above that the lower loss reads.
        lower: parameters of the lower problem.
        upper_gradient: ``dg/d(upper)`` here, where it has been taken already (the one-sided
            difference reuses it).
        lower_gradient: ``dg/d(lower)`` here, where it was kept.
        graph: ``dg/d(lower)`` here in its graph, where that was kept.

    Example:
        >>> import torch
        >>> from blo import alternating, hypergradient
        >>> f, g = lambda x, y: y[0], lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0),), (torch.tensor(3.0),)
        >>> class Observed:
        ...     requirements = alternating().requirements
        ...     def response(self, context, cotangent, state):
        ...         print(context.after.upper, context.after.lower)
        ...         return alternating().response(context, cotangent, state)
        >>> result = hypergradient(f, g, x, y, method=Observed())
        (tensor(1.),) (tensor(3.),)
    """

    upper: Tensors
    lower: Tensors
    upper_gradient: Tensors | None = None
    lower_gradient: Tensors | None = None
    graph: KeptGradient | None = None


@dataclass(frozen=True)
class LowerObjective:
    """The objective ``g`` of a lower problem: what its optimizer descends.

    With ``l`` the mean of the losses on the batches of one update, `w` the factors of the coupled
    weight decay and ``s_i`` the sign of each tensor (-1 where the optimizer maximises), the
    optimizer follows ``F_i = s_i l_{y_i} + w_i y_i``, which vanishes where the gradient of

        g(x, y) = sigma [l(x, y) + sum_i s_i w_i |y_i|^2 / 2]

    does. ``sigma`` is the sign that all tensors share, so that `g` is minimised; it is 1 where they
    differ, and a stationary point is a saddle of `g`.

    Args:
        losses: `l` on each batch.
        weight_decay: `w`, one for each lower tensor; None where there is none.
        signs: `s`, one for each lower tensor; None where nothing is maximised.
        reduction: over which processes `l` is the mean, beside the batches.
    """

    losses: tuple[Objective, ...]
    weight_decay: tuple[float, ...] | None = None
    signs: tuple[float, ...] | None = None
    reduction: Reduction = LOCAL

    @property
    def sign(self) -> float:
        """``sigma``."""
        return -1.0 if self.signs is not None and set(self.signs) == {-1.0} else 1.0

    @property
    def is_saddle(self) -> bool:
        """Whether some tensors are minimised and others maximised."""
        return self.signs is not None and len(set(self.signs)) > 1

    @property
    def decay(self) -> tuple[float, ...] | None:
        """The factors of the quadratic term of `g`, one for each lower tensor."""
        if self.weight_decay is None or self.signs is None:
            return self.weight_decay
        pairs = zip(self.signs, self.weight_decay, strict=True)
        return tuple(self.sign * s * w for s, w in pairs)

    def dtype(self, lower: Tensors) -> torch.dtype:
        """Return the coarsest type among the lower tensors and what the losses are computed in."""
        return coarsest([*(t.dtype for t in lower), *(loss.precision for loss in self.losses)])

    def directed(self, v: Tensors) -> Tensors:
        """Return `v` with the sign, of each tensor, of the optimizer's gradient to that of `g`."""
        if not self.is_saddle:
            return v
        assert self.signs is not None
        return scale(self.signs, v)

    def signed(self, v: Tensors) -> Tensors:
        """Return ``sigma v``: a derivative of the losses as a part of that of `g`."""
        return v if self.sign == 1.0 else scale(self.sign, v)

    def decayed(self, v: Tensors, along: Tensors) -> Tensors:
        """Return `v` plus what the quadratic term of `g` adds to a gradient at `along`, or to a
        product with it.
        """
        return v if self.decay is None else add(v, scale(self.decay, along))

    def gradients(self, upper: Tensors, lower: Tensors, *, with_upper: bool) -> Gradients:
        """Return ``g_x`` and ``g_y``: one forward and one backward pass of each loss."""
        found = gradients(
            self.losses, upper, lower, with_upper=with_upper, reduction=self.reduction
        )
        of_lower = self.decayed(self.signed(found.lower), lower)
        return Gradients(self.signed(found.upper), of_lower, found.reached)


def refuse_saddle(lower: LowerObjective, method: str) -> None:
    """Raise if `lower` is minimised over some tensors and maximised over others, for a method that
    descends.
    """
    if lower.is_saddle:
        raise ValueError(
            f"{method} descends the lower objective, and its optimizer has maximize=True in some "
            "parameter groups and not in others; use a method that needs no minimum, such as "
            "minres(), dense() or t1t2()"
        )
