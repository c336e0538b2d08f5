"""What the engine remembers of an update, and what it tells about a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blo.derivatives.random_state import RandomState
from blo.linear.tensors import Tensors
from blo.methods.context import Info


@dataclass(frozen=True)
class Draw:
    """What a loss was evaluated on in one update: enough to evaluate it again.

    Attributes:
        batches: one for each accumulated gradient.
        random_states: the generators' states before the evaluation on each.
        first_batch: number of the first batch in the problem's stream, counted from 0.
    """

    batches: tuple[Any, ...]
    random_states: tuple[RandomState, ...]
    first_batch: int

    @property
    def numbers(self) -> range:
        """The numbers of the batches in the problem's stream."""
        return range(self.first_batch, self.first_batch + len(self.batches))


@dataclass(frozen=True)
class PastUpdate:
    """One update of a problem, for methods that take it again.

    Attributes:
        draw: what the loss was evaluated on.
        options: the group options of each parameter.
        received: whether the optimizer received a gradient, for each parameter.
        lower: the problem's parameters before the update, where they were kept.
        states: the optimizer's state of each parameter then.
        below: the parameters, at the time, of the problems below that the loss depends on, by name.
        below_steps: the last updates, at the time, of those that respond, by name.
    """

    draw: Draw
    options: tuple[dict[str, Any], ...]
    received: tuple[bool, ...]
    lower: Tensors | None
    states: tuple[dict[str, Any], ...] | None
    below: Mapping[str, Tensors]
    below_steps: Mapping[str, Step]


@dataclass
class Past:
    """A problem's last updates, oldest first, where its method asked for them.

    Attributes:
        lower: the problem's parameters before the first of them.
        states: the optimizer's state of each parameter before the first.
        updates: the updates.
    """

    lower: Tensors
    states: tuple[dict[str, Any], ...]
    updates: list[PastUpdate] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """The last update of a problem before the problems above it move: all that its response is
    computed from.

    Attributes:
        draw: what the loss was evaluated on.
        learning_rates: of each parameter, during the update.
        lower: the problem's parameters before the update, where its method asked for them.
        upper: the parameters of the problems above that it depends on, before the update, by name;
            the top problem's are left out, since they do not move within a round.
        upper_gradient: gradient of the loss with respect to the problems above, by name, where the
            method asked for it.
        lower_gradient: gradient that the optimizer was handed, before its hooks, where the method
            asked for it.
        past: the updates up to this one, where the method asked for them.
    """

    draw: Draw
    learning_rates: tuple[float, ...]
    lower: Tensors | None = None
    upper: Mapping[str, Tensors] = field(default_factory=dict)
    upper_gradient: Mapping[str, Tensors] = field(default_factory=dict)
    lower_gradient: Tensors | None = None
    past: Past | None = None


@dataclass(frozen=True)
class Record:
    """One round: the updates up to and including the top problem's.

    Attributes:
        round: number of the round, from 1.
        losses: the last loss of each problem in the round, by name.
        metrics: other scalars in the dictionaries that the losses returned, by problem.
        responses: for each pair "problem <- lower problem", how the response in its last update was
            computed.
        learning_rates: the first learning rate of each problem's optimizer, by name.
        num_gradients: gradient evaluations so far (a forward and a backward pass on one update's
            batches).
        num_products: Hessian and mixed products on kept graphs so far.

    Example:
        >>> import torch
        >>> from blo import Engine, Problem, ProblemGraph
        >>> x, y = (torch.nn.ParameterList([torch.tensor(value)]) for value in (1.0, 2.0))
        >>> f, g = lambda _: 0.5 * (y[0] - 1) ** 2, lambda _: (y[0] - 3 * x[0]) ** 2
        >>> upper = Problem("upper", f, x, torch.optim.SGD(x.parameters(), 0.1), [None])
        >>> lower = Problem("lower", g, y, torch.optim.SGD(y.parameters(), 0.5), [None])
        >>> record = next(Engine(ProblemGraph([upper, lower])).rounds(1))
        >>> record.round, record.losses, list(record.responses)
        (1, {'lower': 1.0, 'upper': 2.0}, ['upper <- lower'])
    """

    round: int
    losses: dict[str, float]
    metrics: dict[str, dict[str, float]]
    responses: dict[str, Info]
    learning_rates: dict[str, float]
    num_gradients: int
    num_products: int
