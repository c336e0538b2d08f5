"""Problems and engines like others, on copies of their parameters and optimizers."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from blo.checkpoint import copied
from blo.engine import Engine
from blo.linear.tensors import Tensors
from blo.problem import Problem
from blo.steps.registry import unwrapped


def twin_problem(problem: Problem, lower: Tensors, states: Sequence[Mapping[str, Any]]) -> Problem:
    """Return a problem like `problem` that owns copies of `lower`, in their types, with an
    optimizer of the same kind and options, in the given states, without hooks and scheduler.
    """
    parameters = tuple(t.detach().clone().requires_grad_() for t in lower)
    original = unwrapped(problem.optimizer)
    known: dict[int, Any] = {id(p): p for g in original.param_groups for p in g["params"]}
    known |= {id(p): t for p, t in zip(problem.parameters, parameters, strict=True)}
    known[id(original.state)] = defaultdict(dict)
    optimizer = copy.deepcopy(original, known)
    for name, value in vars(original).items():  # torch copies no attributes of subclasses
        if not callable(value):  # schedulers put a step of their own there
            vars(optimizer).setdefault(name, value)
    for parameter, state in zip(parameters, states, strict=True):
        if state:
            optimizer.state[parameter] = {k: _like(v, parameter) for k, v in state.items()}
    twin = copy.copy(problem)
    twin.parameters, twin.optimizer, twin.scheduler = parameters, optimizer, None
    return twin


class TwinEngine:
    """An engine like another, whose modules it borrows for a block.

    In the block the modules hold its problems' parameters and copies of their buffers. Rounds run
    as in the other engine, by the same code, and leave nothing behind.

    Attributes:
        engine: for use in the block.
    """

    def __init__(self, engine: Engine) -> None:
        problems = engine.graph.problems
        twins = [twin_problem(p, p.parameters, p.optimizer_states()) for p in problems]
        self._parameters = tuple(t for p in problems for t in p.parameters)
        self._values = tuple(t for p in twins for t in p.parameters)
        self._space = engine.graph.space
        pairs = zip(self._parameters, self._values, strict=True)
        space = self._space.standing_in({id(p): t for p, t in pairs})
        graph = engine.graph.over(twins, space)
        self.engine = Engine(graph, precision=engine.precision, distributed=False)
        self.engine.method_states = copied(engine.method_states)

    @contextmanager
    def in_place(self) -> Iterator[Engine]:
        """Run a block with the twins in the modules."""
        with self._space.substituted(self._parameters, self._values):
            yield self.engine

    def place(self, values: Mapping[str, Tensors]) -> None:
        """Copy `values` into the parameters of the problems with these names."""
        with torch.no_grad():
            for name, tensors in values.items():
                for parameter, t in zip(self.engine.graph[name].parameters, tensors, strict=True):
                    parameter.copy_(t)


def _like(value: Any, parameter: Tensor) -> Any:
    """Return a copy of an entry of an optimizer's state, in the type of its parameter."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    own = value.detach().clone()
    alike = own.is_floating_point() and own.shape == parameter.shape
    return own.to(parameter.dtype) if alike else own
