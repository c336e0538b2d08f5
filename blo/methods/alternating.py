"""Alternating training: the control without a hypergradient."""

from __future__ import annotations

from dataclasses import dataclass

from blo.linear.tensors import Tensors, zeros_like
from blo.methods.context import Context, Info, Requirements, Response


@dataclass(frozen=True)
class Alternating:
    """The lower solution taken as a constant: ``(dy*/dx)^T c = 0``. Both levels train in turns, by
    first derivatives.

    A control, not a hypergradient: what is left of bi-level optimisation without its indirect term.

    Example:
        >>> import torch
        >>> from blo import Alternating, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2 + x[0]
        >>> hypergradient(f, g, x, y, method=Alternating()).grads[0].item()  # f_x alone, not 7
        1.0
    """

    @property
    def requirements(self) -> Requirements:
        """Nothing is recorded, and nothing responds."""
        return Requirements(responds=False, first_order=True)

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return zeros."""
        info = Info(method=repr(self), point="after", scale=0.0)
        return Response(zeros_like(context.after.upper), None, info)


def alternating() -> Alternating:
    """Return the control that trains the levels in turns and leaves the indirect gradient out.

    Example:
        >>> import torch
        >>> from blo import alternating, hypergradient
        >>> f = lambda x, y: 0.5 * (y[0] - 1) ** 2
        >>> g = lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0).double(),), (torch.tensor(3.0).double(),)
        >>> grads = hypergradient(f, g, x, y, method=alternating()).grads
        >>> round(grads[0].item(), 6)  # the indirect part, 3 (3 x - 1), is left out
        0.0
    """
    return Alternating()
