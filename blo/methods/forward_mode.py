"""Hypergradients in forward mode through the steps that the lower optimizer took.

With ``(y_t, s_t) = U(y_{t-1}, s_{t-1}, g_y(x, y_{t-1}))`` and one tangent for each number in the
upper parameters, ``Z_t = d(y_t, s_t)/dx``,

    Z_t = A_t Z_{t-1} + B_t,    A_t = dU/d(y, s) + dU/dg g_yy,    B_t = dU/dg g_yx,

the response is ``(dy_T/dx)^T c = Z_T^T c``. No iterate is kept; what is kept does not grow with T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from blo.derivatives.graphs import GradientGraph
from blo.derivatives.products import NO_PATH
from blo.derivatives.pullback import reached
from blo.linear.tensors import Tensors, leaves, numel, unflatten
from blo.methods.attached import Attached
from blo.methods.context import Context, Info, Requirements, Response
from blo.methods.unrolling import TAKEN, check_steps
from blo.steps.optimizers import Gradient, Iterate, Tangent, UpdateMap
from blo.steps.replay import Drift, received, recorded, segments, step_pushed_forward
from blo.steps.tangents import pushed_forward


@dataclass(frozen=True)
class ForwardMode:
    """The derivative of the last lower steps, in forward mode.

    Args:
        steps: how many of the last steps are differentiated; None for all since the problems above
            moved. The parameters and the optimizer's state before them are taken as constants.
        max_size: refuse more upper numbers than this: each costs a product a step.

    Example:
        >>> import torch
        >>> from blo import Engine, Problem, ProblemGraph
        >>> x, y = (torch.nn.ParameterList([torch.zeros(1)]) for _ in range(2))
        >>> g = lambda _: (y[0] - x[0] - 1).square().sum()
        >>> upper_sgd = torch.optim.SGD(x.parameters(), 1.0)
        >>> lower_sgd = torch.optim.SGD(y.parameters(), 0.25)
        >>> upper = Problem("upper", lambda _: y[0].sum(), x, upper_sgd, [None])
        >>> lower = Problem("lower", g, y, lower_sgd, [None], steps=2, method=ForwardMode())
        >>> record = next(Engine(ProblemGraph([upper, lower])).rounds(1))
        >>> -x[0].item()  # dy/dx after two steps: 1 - (1 - 0.25 * 2)^2
        0.75
    """

    steps: int | None = None
    max_size: int = 64

    def __post_init__(self) -> None:
        """Check the settings."""
        check_steps(self.steps)
        if not isinstance(self.max_size, int) or self.max_size < 1:
            raise ValueError(f"max_size must be an integer of at least 1, got {self.max_size!r}")

    @property
    def requirements(self) -> Requirements:
        """The steps, and the first iterate alone."""
        return Requirements(
            before=True, lower_gradient=True, history=self.steps, differentiates=TAKEN
        )

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return ``Z_T^T cotangent``.

        Raises:
            ValueError: without a record of the lower steps, or with too many upper numbers.
            TypeError: if the lower optimizer's steps cannot be taken again.
            RuntimeError: if no step depends on the upper parameters, or if the steps taken again
                lead elsewhere than the optimizer went.
        """
        history = recorded(context.history, "forward_mode()")
        update = UpdateMap(history.optimizer)
        x = leaves(context.before.upper)
        n = numel(x)
        if n > self.max_size:
            raise ValueError(
                f"forward_mode() carries one tangent for each of the {n} upper numbers, above "
                f"max_size={self.max_size}; use unrolled(), whose cost does not depend on their "
                "number, or raise max_size"
            )
        drift, directions = Drift(context.lower, history.end), _unit_vectors(x)
        stacked = tuple(torch.stack(column) for column in zip(*directions, strict=True))
        tangent: Tangent | None = None
        met = False
        for segment in reversed(list(segments(history, update))):
            iterate = segment.start
            if tangent is None:
                tangent = _zeros(iterate, n)
                if history.start_of is not None:
                    met = True
                    with torch.enable_grad():
                        start = history.start_of(x)
                    tangent = Tangent(pushed_forward(start, x, stacked), tangent.slots)
            for t, step in enumerate(segment.steps):
                y = leaves(iterate.lower)
                graph = GradientGraph(step.objectives, x + y, x, y, step.reduction)
                columns = []
                for j in range(n):
                    of_y = tuple(z[j] for z in tangent.lower) if met else (None,) * len(y)
                    columns.append(graph.product((*directions[j], *of_y), y, keep=j < n - 1))
                met = met or step.options_of is not None or any(reached(c) for c in columns)
                gradient = received(step, graph.gradient()[len(x) :], y)
                end = update.step(iterate, step.handed(gradient), step.options)
                if t == len(segment.steps) - 1:
                    known, last = segment.last_gradient, end
                    if known is not None:
                        last = update.step(iterate, step.handed(known), step.options)
                    drift.add(segment, last.lower)
                of_gradient = _stacked(columns, y)
                tangent = step_pushed_forward(
                    update, step, iterate, gradient, tangent, of_gradient, x, stacked
                )
                iterate = end
        drift.check()
        if not met or tangent is None:
            raise RuntimeError(NO_PATH)
        pairs = zip(tangent.lower, cotangent, strict=True)
        value = torch.stack([z.reshape(len(z), -1) @ c.flatten() for z, c in pairs]).sum(0)
        info = Info(
            method=repr(self),
            point="before",
            num_gradients=len(history.steps),
            num_products=n * len(history.steps),
        )
        found = zip(unflatten(value, x), x, strict=True)
        return Response(tuple(v.to(t.dtype) for v, t in found), None, info)

    def attach(self, lower: Attached, upper: Tensors) -> Tensors:
        """Return the end of the recorded steps, taken again in one graph."""
        return lower.steps_again(upper)


def forward_mode(steps: int | None = None, *, max_size: int = 64) -> ForwardMode:
    """Return forward mode through the last `steps` lower steps: what `unrolled` returns, in memory
    that does not grow with the number of steps.

    For a handful of hyperparameters. With T steps and n numbers in the upper parameters: T
    gradients and n T products, and n copies of the lower parameters and of the optimizer's state.
    The product is that of the loss's joint second derivative, taken to be symmetric, as it is for
    every loss that is a function of its parameters. It refuses what `unrolled` refuses.

    Args:
        steps: how many of the last steps; None for all since the problems above moved.
        max_size: refuse more upper numbers than this.

    Example:
        >>> forward_mode()
        ForwardMode(steps=None, max_size=64)

    Reference: Franceschi, Donini, Frasconi and Pontil (2017), arXiv:1703.01785, section 3.2.
    """
    return ForwardMode(steps, max_size)


def _unit_vectors(x: Tensors) -> list[Tensors]:
    eye = torch.eye(numel(x), dtype=x[0].dtype, device=x[0].device)
    return [unflatten(row, x) for row in eye]


def _zeros(iterate: Iterate, n: int) -> Tangent:
    lower = tuple(t.new_zeros(n, *t.shape) for t in iterate.lower)
    slots = tuple(tuple(t.new_zeros(n, *t.shape) for t in s.slots) for s in iterate.states)
    return Tangent(lower, slots)


def _stacked(columns: Sequence[Gradient], y: Tensors) -> Tensors:
    """Return the tangents of the gradient, one along the first dimension for each column."""
    filled = [
        [torch.zeros_like(t) if g is None else g for g, t in zip(column, y, strict=True)]
        for column in columns
    ]
    return tuple(torch.stack(parts) for parts in zip(*filled, strict=True))
