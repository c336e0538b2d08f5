"""The lower objective, and the point that it is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from blo.linear.tensors import Tensors


@dataclass(frozen=True)
class Point:
    """Where products are taken: values of the upper and the lower parameters.

    Args:
        upper: parameters of the problems above that the lower loss reads.
        lower: parameters of the lower problem.
        upper_gradient: ``dg/d(upper)`` here, where it has been taken already (the one-sided
            difference reuses it).
        lower_gradient: ``dg/d(lower)`` here, where it was kept.

    Example:
        >>> import torch
        >>> from blo import alternating, hypergradient
        >>> f, g = lambda x, y: y[0], lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0),), (torch.tensor(3.0),)
        >>> class Observed:
        ...     requirements = Requirements()
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
