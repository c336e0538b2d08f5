"""What the engine remembers of an update, and what it tells about a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blo.methods.context import Info
from blo.methods.objective import RandomState
from blo.methods.tensors import Tensors


@dataclass(frozen=True)
class Step:
    """The last update of a problem before the problems above it move: all that its response is computed from.

    Attributes:
        batches: the batches of the update, one for each accumulated gradient.
        random_states: the generators' states when the loss was evaluated on each.
        first_batch: number of the first batch in the problem's stream, counted from 0.
        learning_rates: of each parameter, during the update.
        lower: the problem's parameters before the update, where a method asked for them.
        upper: the parameters of the problems above that it depends on, before the update, by name; the top problem's are left out, since
            they do not move within a round.
        upper_gradient: gradient of the loss with respect to the problems above, by name, where a method asked for it.
    """

    batches: tuple[Any, ...]
    random_states: tuple[RandomState, ...]
    first_batch: int
    learning_rates: tuple[float, ...]
    lower: Tensors | None = None
    upper: Mapping[str, Tensors] = field(default_factory=dict)
    upper_gradient: Mapping[str, Tensors] | None = None


@dataclass(frozen=True)
class Record:
    """One round: the updates up to and including the top problem's.

    Attributes:
        round: number of the round, from 1.
        losses: the last loss of each problem in the round, by name.
        metrics: other scalars in the dictionaries that the losses returned, by problem.
        responses: for each pair "problem <- lower problem", how the response in its last update was computed.
        learning_rates: the first learning rate of each problem's optimizer, by name.
        num_gradients: gradient evaluations so far (a forward and a backward pass on one update's batches).
        num_products: Hessian and mixed products on kept graphs so far.
    """

    round: int
    losses: dict[str, float]
    metrics: dict[str, dict[str, float]]
    responses: dict[str, Info]
    learning_rates: dict[str, float]
    num_gradients: int
    num_products: int
