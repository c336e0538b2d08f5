"""What a hypergradient method is given, and what it returns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.objective import Objective
from blo.derivatives.products import Disagreement
from blo.linear.system import Status
from blo.linear.tensors import Tensors
from blo.steps.history import History


@dataclass(frozen=True)
class Context:
    """One lower problem as a method sees it, at the moment a problem above it wants its response.

    Args:
        lower: the lower objective ``g`` on the batches of the last lower step.
        after: the point ``y+`` that the upper loss was evaluated at.
        before: the point ``y`` that the last lower step started from; `after` itself when no step
            is known.
        learning_rates: the lower optimizer's learning rate for each lower tensor in the last step,
            if there is an optimizer; None for a tensor whose rate the optimizer chooses by itself.
        history: the last lower steps, where the method asked for them.
        readers: the loss of the problem that wants the response, on each of its batches, as a
            function of the same upper and lower parameters, where the method asked for it.
        name: of the lower problem, for messages.
        first: whether this is the first response of the problem to the one above; differences then
            compare two radii (`Info.disagreement`).

    Example:
        >>> from dataclasses import replace
        >>> import torch
        >>> from blo import hypergradient, t1t2
        >>> f, g = lambda x, y: y[0], lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0),), (torch.tensor(3.0),)
        >>> class Slower:  # T1-T2 at the learning rate 0.1
        ...     requirements = t1t2().requirements
        ...     def response(self, context, cotangent, state):
        ...         context = replace(context, learning_rates=(0.1,))
        ...         return t1t2().response(context, cotangent, state)
        >>> hypergradient(f, g, x, y, method=Slower()).grads  # 0.1 * 6
        (tensor(0.6000),)
    """

    lower: LowerObjective
    after: Point
    before: Point
    learning_rates: tuple[float | None, ...] | None = None
    history: History | None = None
    readers: tuple[Objective, ...] = ()
    name: str = "lower"
    first: bool = False

    def known_rates(self, remedy: str) -> tuple[float, ...] | None:
        """Return the learning rates as numbers; None where no optimizer is known.

        Raises:
            ValueError: if the optimizer has none, naming the problem and the `remedy`.
        """
        if self.learning_rates is None:
            return None
        rates = tuple(lr for lr in self.learning_rates if lr is not None)
        if len(rates) < len(self.learning_rates):
            raise ValueError(
                f"the optimizer of problem {self.name!r} has no learning rate (lr=None: it chooses "
                f"its steps by itself), and the method takes its step from it; {remedy}"
            )
        return rates


# Of a method's settings: its class, its solver's, and the most products of that.
_SETTINGS = re.compile(r"(\w*)(?:\(solver=(\w+))?(?:\((max_products=\d+))?")


@dataclass(frozen=True)
class Info:
    """How a response was computed: everything needed to read the number in a log.

    Args:
        method: the method with its settings.
        point: "before" or "after" the last lower step.
        scale: factor in place of the inverse Hessian, or of the Neumann series; None where there is
            none.
        radius: length of the finite-difference step along the normalised direction; None for exact
            products.
        status: how the linear solve ended; None where nothing is solved (one-step methods, recorded
            steps).
        residual: relative residual of the linear solve; NaN where it is not known.
        num_gradients: gradient evaluations spent (a forward and a backward pass on the lower
            batch).
        num_products: Hessian and mixed products taken on graphs that were kept.
        batches: numbers of the lower batches, in the lower problem's stream; empty for plain
            functions.
        disagreement: `distance` of the mixed product from the one at half the radius, in the first
            response of a problem by differences at the default radius; None otherwise. Above a
            tenth, whether `rounding` is the reason, and then the distance from the one at twice the
            radius.

    Example:
        >>> import torch
        >>> from blo import cg, hypergradient
        >>> f, g = lambda x, y: y[0], lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0),), (torch.tensor(3.0),)
        >>> info = hypergradient(f, g, x, y, method=cg(5)).info
        >>> info.point, info.status.value, info.residual, info.num_gradients, info.num_products
        ('after', 'converged', 0.0, 1, 2)
        >>> print(info)
        CG: residual 0, converged after 2 products and 1 gradient
    """

    method: str
    point: str
    scale: float | tuple[float, ...] | None = None
    radius: float | None = None
    status: Status | None = None
    residual: float = math.nan
    num_gradients: int = 0
    num_products: int = 0
    batches: tuple[int, ...] = ()
    disagreement: Disagreement | None = None

    def __str__(self) -> str:
        """Return in words what was solved, how well, and what it cost: of a truncated solve, which
        is normal, that all products which it may take were taken.
        """
        kind, solver, limit = _SETTINGS.match(self.method).groups()  # type: ignore[union-attr]
        counts = ((self.num_products, "product"), (self.num_gradients, "gradient"))
        spent = [f"{count} {what}{'s' * (count > 1)}" for count, what in counts if count]
        cost = " and ".join(spent) or "nothing computed"
        if self.status is None:
            return f"{kind}, {cost}"
        known = "" if math.isnan(self.residual) else f" residual {self.residual:.2g},"
        most = "" if limit is None else f", all that {limit} allow"
        ends = {
            Status.CONVERGED: f"converged after {cost}",
            Status.TRUNCATED: f"{cost}{most}",
            Status.INDEFINITE: f"stopped at negative curvature after {cost}",
            Status.DIVERGED: f"diverged after {cost}",
        }
        return f"{solver or kind}:{known} {ends[self.status]}"

    def on_batches(self, batches: Iterable[int]) -> Info:
        """Return the same with the numbers of the batches."""
        return replace(self, batches=tuple(batches))


class Response(NamedTuple):
    """The contribution ``+(d lower*/d upper)^T cotangent`` in the shapes of the upper
    parameters.

    Example:
        >>> import torch
        >>> from blo import cg, hypergradient
        >>> f, g = lambda x, y: y[0], lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0),), (torch.tensor(3.0),)
        >>> class Clipped:
        ...     requirements = cg().requirements
        ...     def response(self, context, cotangent, state):
        ...         value, state, info = cg().response(context, cotangent, state)
        ...         return Response(tuple(v.clamp(-1, 1) for v in value), state, info)
        >>> hypergradient(f, g, x, y, method=Clipped()).grads  # not 3
        (tensor(1.),)
    """

    value: Tensors
    state: Tensors | None
    info: Info


@dataclass(frozen=True)
class Requirements:
    """What a method needs recorded.

    Attributes:
        before: the lower parameters before the last step (`Context.before`).
        upper_gradient: ``dg/d(upper)`` of the last step (`Point.upper_gradient`).
        lower_gradient: ``dg/d(lower)`` of the last step (`Point.lower_gradient`), as the optimizer
            received it.
        history: number of lower steps to record (`Context.history`); None for all since the
            problems above moved.
        stride: keep the parameters and the optimizer's state before every so many of those steps
            (`LowerStep.lower`); None for about the square root of their number, 0 for none but
            the first.
        readers: the loss above (`Context.readers`).
        zeroth_order: the method evaluates the loss above itself, by its readers, so that this may
            have no gradient (an accuracy). Where it has none, the cotangent is zero and the
            response is the whole derivative of the loss above, its direct part included.
        responds: whether the solution responds at all; False for the control that takes it as a
            constant on purpose.
        differentiates: what the method is differentiated in beside the lower loss: "start", where
            the lower steps start from (`Problem.start`), "options", the options of the lower
            optimizer (`Problem.options`).
        first_order: the method takes gradients of losses and nothing else, so that parameters may
            be sharded (``fully_shard``).
        graph: the graphs of the lower gradients of the recorded steps are kept, where they can be
            (`Point.graph`, `LowerStep.graph`): the method differentiates them again.
        by_end: the only recorded step is told by where it ended, where it can be: `History.states`
            are a `StartStates` then, which holds the gradient.

    Example:
        >>> from blo import cg, darts, unrolled
        >>> darts().requirements.before, cg().requirements.before
        (True, False)
        >>> unrolled(5).requirements.history, unrolled().requirements.history
        (5, None)
    """

    before: bool = False
    upper_gradient: bool = False
    lower_gradient: bool = False
    history: int | None = 0
    stride: int | None = 0
    readers: bool = False
    zeroth_order: bool = False
    responds: bool = True
    differentiates: frozenset[str] = frozenset()
    first_order: bool = False
    graph: bool = False
    by_end: bool = False


class Method(Protocol):
    """How a lower solution responds to the problems above it.

    Example:
        >>> import torch
        >>> from blo import hypergradient
        >>> f, g = lambda x, y: y[0], lambda x, y: (y[0] - 3 * x[0]) ** 2  # y*(x) = 3 x
        >>> x, y = (torch.tensor(1.0),), (torch.tensor(3.0),)
        >>> class Known:  # dy*/dx = 3
        ...     requirements = Requirements()
        ...     def response(self, context, cotangent, state):
        ...         return Response((3 * cotangent[0],), None, Info("Known", "after"))
        >>> hypergradient(f, g, x, y, method=Known()).grads
        (tensor(3.),)
    """

    @property
    def requirements(self) -> Requirements:
        """What must be recorded at the last lower step before `response` is called."""

    def response(self, context: Context, cotangent: Tensors, state: Tensors | None) -> Response:
        """Return ``+(d lower*/d upper)^T cotangent``, with the state for the next call.

        Args:
            context: the lower problem.
            cotangent: gradient of the upper loss with respect to the lower parameters.
            state: what the last call returned as its state (a warm start), or None.
        """
