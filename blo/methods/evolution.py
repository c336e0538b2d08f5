"""Hypergradients from values alone: evolution strategies through the lower steps, taken again.

With ``F(x) = f(x, y(x))``, `y` the map of the recorded lower steps, and normal directions `e`, the
gradient of `F` smoothed over the length `s` is

    d/dx E[F(x + s e)] = E[e (F(x + s e) - F(x - s e))] / 2s,

which asks for no derivative of `f`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from blo.derivatives.nested import AttachedObjective
from blo.linear.settings import check_flag, is_finite
from blo.linear.tensors import (
    Tensors,
    add,
    average,
    axpy,
    detach,
    dot,
    leaves,
    scale,
    subtract,
    zeros_like,
)
from blo.methods.context import Context, Info, Requirements, Response
from blo.methods.unrolling import TAKEN, check_steps
from blo.steps.optimizers import UpdateMap
from blo.steps.replay import Drift, Segment, lower_gradient, recorded

Fitness: TypeAlias = Callable[[Tensors, Tensors], Tensor]  # of a shift of x, and of y


@dataclass(frozen=True)
class Evolution:
    """The estimate of evolution strategies; see `evolution` for the arguments.

    Example:
        >>> import torch
        >>> from blo import Engine, Problem, ProblemGraph
        >>> x, y = (torch.nn.ParameterList([torch.zeros(1)]) for _ in range(2))
        >>> g = lambda _: (y[0] - x[0] - 1).square().sum()
        >>> upper_sgd = torch.optim.SGD(x.parameters(), 1.0)
        >>> lower_sgd = torch.optim.SGD(y.parameters(), 0.25)
        >>> upper = Problem("upper", lambda _: y[0].sum(), x, upper_sgd, [None])
        >>> lower = Problem("lower", g, y, lower_sgd, [None], steps=2, method=Evolution(200))
        >>> record = next(Engine(ProblemGraph([upper, lower])).rounds(1))
        >>> abs(-x[0].item() - 0.75) < 0.2  # dy/dx after two steps: 1 - (1 - 0.25 * 2)^2
        True
    """

    num_directions: int = 8
    sigma: float = 0.1
    steps: int | None = None
    antithetic: bool = True
    linearised: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        n = self.num_directions
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"num_directions must be an integer of at least 1, got {n!r}")
        if not (is_finite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma must be positive and finite, got {self.sigma!r}")
        check_steps(self.steps)
        check_flag("antithetic", self.antithetic)
        check_flag("linearised", self.linearised)

    @property
    def requirements(self) -> Requirements:
        """The lower steps and the loss above, which may have no gradient; nothing of that loss
        where it is linearised.
        """
        above = not self.linearised
        return Requirements(
            before=True, history=self.steps, readers=above, zeroth_order=above, differentiates=TAKEN
        )

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return the mean of ``e (F(x + s e) - F(x - s e)) / 2s`` over the directions.

        The state is that of the generator of directions.

        Raises:
            ValueError: without a record of the lower steps, or if they see solutions below them.
            TypeError: if the lower optimizer's steps cannot be taken again.
            RuntimeError: if the steps, taken again where they were taken, lead elsewhere.
            FloatingPointError: if `F` is not finite at a shifted point.
        """
        solution, at_rest, num_steps = _steps_again(context)
        fitness, num_gradients = _fitness(context, cotangent, linearised=self.linearised)
        zero = zeros_like(context.before.upper)
        middle = None if self.antithetic else fitness(zero, at_rest)
        generator = torch.Generator()
        if state is None:
            generator.manual_seed(self.seed)
        else:
            generator.set_state(state[0])
        value, slopes = zero, []
        for _ in range(self.num_directions):
            direction = _normal(zero, generator)
            shift = scale(self.sigma, direction)
            ahead = fitness(shift, solution(shift))
            if middle is None:
                back = scale(-1.0, shift)
                slope = (ahead - fitness(back, solution(back))) / (2 * self.sigma)
            else:
                slope = (ahead - middle) / self.sigma
            slopes.append(slope)
            value = axpy(slope / self.num_directions, direction, value)
        if not bool(torch.isfinite(torch.stack(slopes)).all()):
            raise FloatingPointError(
                "the upper loss is not finite after lower steps at shifted upper parameters; lower "
                f"sigma={self.sigma} or the lower learning rate"
            )
        trajectories = 1 + self.num_directions * (2 if self.antithetic else 1)
        info = Info(
            method=repr(self),
            point="before",
            radius=self.sigma,
            num_gradients=num_gradients + trajectories * num_steps,
        )
        return Response(value, (generator.get_state(),), info)


def _steps_again(context: Context) -> tuple[Callable[[Tensors], Tensors], Tensors, int]:
    """Return the lower solution as a function of a shift of `x`, its value without shift, and the
    number of lower steps; each evaluation costs one gradient a step.
    """
    history = recorded(context.history, "evolution()")
    if any(isinstance(o, AttachedObjective) for step in history.steps for o in step.objectives):
        raise ValueError(
            "evolution() takes the lower steps again at shifted upper parameters, and solutions "
            "below that the steps read would not move with them; take a method with derivatives, "
            "such as cg(10), or set through_response=False on the problem"
        )
    update = UpdateMap(history.optimizer)
    first = history.steps[0]
    start = update.start(history.lower, history.states, first.options)

    def solution(shift: Tensors) -> Tensors:
        x = add(context.before.upper, shift)
        with torch.no_grad():
            iterate = update.start(history.start_at(x), history.states, first.options)
        for step in history.steps:
            gradient = step.handed(lower_gradient(step, x, iterate.lower))
            with torch.no_grad():
                iterate = update.step(iterate, gradient, step.options_at(x))
        return iterate.lower

    at_rest = solution(zeros_like(context.before.upper))
    drift = Drift(context.lower, history.end)
    drift.add(Segment(0, start, history.steps, context.after.lower, None), at_rest)
    drift.check()
    return solution, at_rest, len(history.steps)


def _fitness(context: Context, cotangent: Tensors, *, linearised: bool) -> tuple[Fitness, int]:
    """Return `F` as a function of a shift of `x` and the lower solution there, with the gradients
    that it took to set up.

    Where `f` has a gradient, the direct part is known from elsewhere: `x` is shifted for the lower
    steps only. What the cotangent holds beyond ``f_y``, the responses of problems further below,
    enters as a linear term.
    """
    x, device = context.after.upper, context.before.upper[0].device
    if linearised or not context.readers:
        return lambda shift, y: dot(cotangent, y).to(device), 0

    def loss(x: Tensors, y: Tensors) -> Tensor:
        values = []
        for reader in context.readers:
            with torch.no_grad(), reader.scope(x, y) as evaluate:
                values.append(evaluate().to(device))
        (value,) = context.lower.reduction.means((torch.stack(values).mean(),))
        return value

    known = _lower_gradient_above(context)
    if known is None:
        return lambda shift, y: loss(add(x, shift), y), 0
    rest = subtract(cotangent, known)
    return lambda shift, y: loss(x, y) + dot(rest, y).to(device), 1


def _lower_gradient_above(context: Context) -> Tensors | None:
    """Return ``f_y(x, y)``; None if the loss above has no gradient."""
    pieces = []
    for reader in context.readers:
        y = leaves(context.after.lower)
        with reader.scope(detach(context.after.upper), y) as evaluate:
            loss = evaluate()
            if not loss.requires_grad:
                return None
            pieces.append(torch.autograd.grad(loss, y, allow_unused=True, materialize_grads=True))
    return context.lower.reduction.means(average(pieces))


def _normal(like: Tensors, generator: torch.Generator) -> Tensors:
    """Return independent standard normal numbers, the same on every device."""
    return tuple(torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in like)


def evolution(
    num_directions: int = 8,
    *,
    sigma: float = 0.1,
    steps: int | None = None,
    antithetic: bool = True,
    linearised: bool = False,
    seed: int = 0,
) -> Evolution:
    """Return evolution strategies: a hypergradient from values of the upper loss, for one that has
    no gradient (an accuracy, a BLEU score).

    The gradient of ``F(x) = f(x, y(x))`` smoothed with a normal of standard deviation `sigma`,
    unbiased, from `num_directions` random directions; `y(x)` takes the recorded lower steps again
    from where they started, for optimizers whose update is known, on the same batches and masks.

    The top problem's loss may have no gradient at all; it then declares what it reads, and its
    direct dependence on `x` is estimated with the rest. A loss with a gradient for some levels only
    goes under ``torch.no_grad()``.

    With T lower steps: ``T (2 num_directions + 1)`` gradients, one more where `f` has a gradient,
    and ``2 num_directions`` forward passes of `f`, which the count leaves out. Half the steps where
    not antithetic. First derivatives of the lower loss only: fused attention, compiled,
    checkpointed and sharded modules stay as they are.

    The variance grows with the number of upper parameters: some tens of them, not thousands. Where
    `f` is flat over a length of `sigma` the estimate is zero, and where it is smooth any method
    with derivatives is better.

    Args:
        num_directions: random directions a call.
        sigma: standard deviation of the shifts, in the units of the upper parameters.
        steps: how many of the last lower steps to take again; None for all since the problems above
            moved.
        antithetic: differences over ``x + s e`` and ``x - s e``; otherwise over ``x + s e`` and
            `x`, at half the cost and a larger variance.
        linearised: take ``<c, y(x)>`` with the cotangent `c` in place of `f`: needs a gradient of
            `f`, none of the lower steps. With ``antithetic=False`` that is PZOBO.
        seed: of the directions, which are drawn apart from torch's own generators.

    Example:
        >>> evolution(16, sigma=0.05)  # doctest: +ELLIPSIS
        Evolution(num_directions=16, sigma=0.05, ...)

    Reference: Salimans, Ho, Chen, Sidor and Sutskever (2017), arXiv:1703.03864; PZOBO: Sow, Ji and
    Liang (2022), arXiv:2110.07004.
    """
    return Evolution(num_directions, sigma, steps, antithetic, linearised, seed)
