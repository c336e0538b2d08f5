"""What the engine remembers of an update, and what it tells about a round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from blo.derivatives.kept import KeptGraph
from blo.derivatives.random_state import RandomState
from blo.linear.tensors import Tensors
from blo.methods.context import Info
from blo.steps.joined import JoinedSteps


@dataclass(frozen=True)
class Draw:
    """What a loss was evaluated on in one update: enough to evaluate it again.

    Attributes:
        batches: one for each accumulated gradient.
        random_states: the generators' states before the evaluation on each.
        buffers: the buffers that the evaluations change, before each of them, by their position in
            the graph's modules.
        first_batch: number of the first batch in the problem's stream, counted from 0.
    """

    batches: tuple[Any, ...]
    random_states: tuple[RandomState, ...]
    buffers: tuple[Mapping[int, Tensor], ...]
    first_batch: int

    @property
    def numbers(self) -> range:
        """The numbers of the batches in the problem's stream."""
        return range(self.first_batch, self.first_batch + len(self.batches))


@dataclass(frozen=True)
class Moment:
    """Where everything stood that one update of a problem read, just before its step.

    What no problem can change between the update and the problem's response is not copied.

    Attributes:
        draw: what the loss was evaluated on.
        options: the options of each parameter's group, learning rate included.
        received: whether the optimizer received a gradient, for each parameter.
        lower: the problem's parameters, where its method asked for them.
        states: the optimizer's state of each parameter, where a step is taken again from here and
            they are not told by those after it.
        values: the parameters of the other problems that the update depends on, by name, as far as
            they move before the response is asked for.
        below: the last updates of the problems below that it saw responding, by name.
        buffers_after: the buffers that the evaluations change, after them.
        upper_gradient: gradient of the loss with respect to the problems above, by name, where the
            method asked for it.
        lower_gradient: gradient that the optimizer was handed, before its hooks, where the method
            asked for it.
        handed: the same where the optimizer's states before the step are told by those after it,
            None for what was not received; the first response to ask for it gets it.
        history: the recorded updates up to and including this one, oldest first, where the method
            takes them again; the first holds `lower` and `states`.
        graph: the gradient in its graph, where the method asked for it and it could be kept.
        joined: the updates of `history` in one graph, where they could be joined.
    """

    draw: Draw
    options: tuple[dict[str, Any], ...]
    received: tuple[bool, ...]
    lower: Tensors | None = None
    states: tuple[dict[str, Any], ...] | None = None
    values: Mapping[str, Tensors] = field(default_factory=dict)
    below: Mapping[str, Moment] = field(default_factory=dict)
    buffers_after: Mapping[int, Tensor] = field(default_factory=dict)
    upper_gradient: Mapping[str, Tensors] = field(default_factory=dict)
    lower_gradient: Tensors | None = None
    handed: list[Tensor | None] | None = None
    history: tuple[Moment, ...] = ()
    graph: KeptGraph | None = None
    joined: JoinedSteps | None = None


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
        num_bytes: bytes that this process has handed to all-reduces so far; 0 in a single process.

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
        >>> print(record)
        round 1: lower 1, upper 2; upper <- lower: OneStep, 4 gradients
        >>> import json
        >>> json.loads(json.dumps(record.as_dict()))["losses"]
        {'lower': 1.0, 'upper': 2.0}
    """

    round: int
    losses: dict[str, float]
    metrics: dict[str, dict[str, float]]
    responses: dict[str, Info]
    learning_rates: dict[str, float]
    num_gradients: int
    num_products: int
    num_bytes: int = 0

    def __str__(self) -> str:
        """Return the round in one line: losses, other numbers, and how responses were computed."""
        parts = [", ".join(f"{name} {loss:.4g}" for name, loss in self.losses.items())]
        for problem, found in self.metrics.items():
            parts += [f"{problem} {name} {value:.4g}" for name, value in found.items()]
        parts += [f"{pair}: {info}" for pair, info in self.responses.items()]
        return f"round {self.round}: {'; '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        """Return the record as dictionaries, lists, numbers and strings, which JSON takes; numbers
        that are not finite are None.
        """
        found: dict[str, Any] = _plain(asdict(self))
        return found


def _plain(value: Any) -> Any:
    """Return what JSON has for `value`."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
