"""Hypergradients in reverse mode through the steps that the lower optimizer took.

With ``(y_t, s_t) = U(y_{t-1}, s_{t-1}, g_y(x, y_{t-1}))`` for t = 1 ... T, where `s` is the
optimizer's state, and the cotangent ``c = df/dy_T``, the response ``(dy_T/dx)^T c`` is summed from
the last step to the first. With adjoints `a` of ``y_t`` and `b` of ``s_t``, started at `c` and 0,

    (a', b', w) = the pull-back of U at step t to y_{t-1}, s_{t-1} and the gradient,
    value <- value + g_xy w,    a <- a' + g_yy w,    b <- b'.

The graphs of the gradients are those that the steps were taken along, joined where they can be
(`blo.steps.joined`), and freed as they are differentiated. With checkpoints, and where a graph
could not be kept, it is built anew, one at a time: of all other steps only iterates ``(y_t, s_t)``
are in memory then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from blo.derivatives.graphs import GradientGraph
from blo.derivatives.products import NO_PATH
from blo.derivatives.pullback import filled, pulled_back, reached
from blo.linear.settings import check_flag
from blo.linear.tensors import Tensors, add, leaves, zeros_like
from blo.methods.attached import Attached
from blo.methods.context import Context, Info, Requirements, Response
from blo.steps.history import History
from blo.steps.optimizers import Adjoint, UpdateMap
from blo.steps.replay import Drift, received, recorded, replayed, segments, step_pulled_back

# What methods that take the optimizer's steps again are differentiated in, beside its gradients.
TAKEN = frozenset({"start", "options"})


@dataclass(frozen=True)
class Unrolled:
    """The derivative of the last lower steps, in reverse mode.

    Args:
        steps: how many of the last steps are differentiated; None for all since the problems above
            moved. The parameters and the optimizer's state before them are taken as constants.
        checkpoint: keep about the square root of the number of iterates and take the steps between
            them again, instead of keeping all with the graphs of their gradients.

    Example:
        >>> import torch
        >>> from blo import Engine, Problem, ProblemGraph
        >>> x, y = (torch.nn.ParameterList([torch.zeros(1)]) for _ in range(2))
        >>> g = lambda _: (y[0] - x[0] - 1).square().sum()
        >>> upper_sgd = torch.optim.SGD(x.parameters(), 1.0)
        >>> lower_sgd = torch.optim.SGD(y.parameters(), 0.25)
        >>> upper = Problem("upper", lambda _: y[0].sum(), x, upper_sgd, [None])
        >>> lower = Problem("lower", g, y, lower_sgd, [None], steps=2, method=Unrolled())
        >>> record = next(Engine(ProblemGraph([upper, lower])).rounds(1))
        >>> -x[0].item()  # dy/dx after two steps: 1 - (1 - 0.25 * 2)^2
        0.75
    """

    steps: int | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        """Check the settings."""
        check_steps(self.steps)
        check_flag("checkpoint", self.checkpoint)

    @property
    def requirements(self) -> Requirements:
        """The steps, and the iterates before all or some of them."""
        stride = None if self.checkpoint else 1
        return Requirements(
            before=True,
            lower_gradient=True,
            history=self.steps,
            stride=stride,
            differentiates=TAKEN,
            graph=not self.checkpoint,
        )

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return ``(dy_T/dx)^T cotangent``.

        Raises:
            ValueError: without a record of the lower steps.
            TypeError: if the lower optimizer's steps cannot be taken again.
            RuntimeError: if no step depends on the upper parameters, or if the steps taken again
                lead elsewhere than the optimizer went.
        """
        history = recorded(context.history, "unrolled()")
        joined = self._response_of_joined(context, history, cotangent)
        if joined is not None:
            return joined
        update = UpdateMap(history.optimizer)
        drift = Drift(context.lower, history.end)
        x = leaves(context.before.upper)
        value, adjoint, met, num_gradients = zeros_like(x), Adjoint(cotangent), False, 0
        for segment in segments(history, update):
            iterates = replayed(segment, x, update)
            num_gradients += len(iterates) - 1
            for t in reversed(range(len(segment.steps))):
                step, iterate = segment.steps[t], iterates.pop()
                kept = None
                if step.graph is not None:
                    kept = step.graph.taken(step.objectives, step.reduction)
                if kept is None:
                    num_gradients += 1
                    z, y = x, leaves(iterate.lower)
                    graph = GradientGraph(step.objectives, y, x, y, step.reduction)
                else:
                    graph, z, y = kept
                gradient = received(step, graph.gradient(), y)
                adjoint, weights, of_options, end = step_pulled_back(
                    update, step, iterate, gradient, adjoint, x
                )
                value = add(value, of_options) if of_options else value
                if t == len(segment.steps) - 1:
                    if segment.last_gradient is not None:
                        handed = step.handed(segment.last_gradient)
                        end = update.step(iterate, handed, step.options)
                    drift.add(segment, end.lower)
                constant = segment.first + t == 0 and history.start_of is None
                grads = graph.product(weights, z if constant else z + y)
                met = met or step.options_of is not None or reached(grads[: len(x)])
                value = add(value, filled(grads[: len(x)], x))
                if not constant:
                    moved = add(adjoint.lower, filled(grads[len(x) :], y))
                    adjoint = Adjoint(moved, adjoint.slots)
        if history.start_of is not None:
            met = True
            value = add(value, _from_start(history.start_of, x, adjoint.lower))
        drift.check()
        if not met:
            raise RuntimeError(NO_PATH)
        return Response(value, None, self._info(num_gradients, history))

    def _response_of_joined(
        self, context: Context, history: History, cotangent: Tensors
    ) -> Response | None:
        """Return the response where the steps were joined in one graph; None where they were not,
        or the graph does not serve.
        """
        found = None if history.joined is None else history.joined(cotangent)
        if found is None:
            return None
        x = leaves(context.before.upper)
        value = filled(found[0], x)
        if history.start_of is not None:
            of_start = filled(found[1], history.lower)
            value = add(value, _from_start(history.start_of, x, of_start))
        elif not reached(found[0]):
            raise RuntimeError(NO_PATH)
        return Response(value, None, self._info(0, history))

    def _info(self, num_gradients: int, history: History) -> Info:
        return Info(
            method=repr(self),
            point="before",
            num_gradients=num_gradients,
            num_products=len(history.steps),
        )

    def attach(self, lower: Attached, upper: Tensors) -> Tensors:
        """Return the end of the recorded steps, taken again in one graph."""
        return lower.steps_again(upper)


def unrolled(steps: int | None = None, *, checkpoint: bool = False) -> Unrolled:
    """Return reverse mode through the last `steps` lower steps: the exact derivative of what the
    lower optimizer did, for torch's SGD, Adam, AdamW, NAdam, Adamax, RMSprop and Adagrad, and those
    of `register_update`.

    Momentum, weight decay, parameter groups, schedulers and the state that the optimizer already
    had are all accounted for. With T steps: T products, on the graphs of the gradients that the
    steps were taken along, which are kept, with T copies of the lower parameters and of the
    optimizer's state. Where the loss changes buffers, reads a solution below that responds, or has
    sparse gradients, a graph is built anew, at a gradient more. With `checkpoint`: fewer than 2 T
    gradients, T products, one graph and fewer than 2 sqrt(T) + 2 copies.

    It refuses other optimizers, and steps that something besides the optimizer had a hand in
    (clipping by a hook). Truncation to `steps` leaves out what earlier steps owe to the upper
    parameters, a part that falls geometrically with `steps` where the lower loss is strongly
    convex.

    Under bfloat16 autocast it is as good as its rounding with SGD (1 % on a small transformer). The
    first steps of a fresh Adam make whole steps of gradients that are nothing but rounding, and
    their derivative is then noise: more than 100 % there, against 0.004 % in float32.

    Args:
        steps: how many of the last steps; None for all since the problems above moved.
        checkpoint: trade gradients for memory.

    Example:
        >>> unrolled(5, checkpoint=True)
        Unrolled(steps=5, checkpoint=True)

    Reference: Domke (2012); Maclaurin, Duvenaud and Adams (2015), arXiv:1502.03492; truncated:
    Shaban, Cheng, Hatch and Boots (2019), arXiv:1810.10667.
    """
    return Unrolled(steps, checkpoint)


def _from_start(start_of: Callable[[Tensors], Tensors], x: Tensors, adjoint: Tensors) -> Tensors:
    """Return what the upper tensors owe to where the steps start from, by its cotangent."""
    with torch.enable_grad():
        start = start_of(x)
    return filled(pulled_back(start, x, adjoint), x)


def check_steps(steps: int | None) -> None:
    """Raise unless `steps` is None or a positive integer."""
    if steps is None:
        return
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(
            f"steps must be an integer of at least 1, or None for all steps since the problems "
            f"above moved, got {steps!r}"
        )
