"""Problems and engines put back as they were found, bit for bit."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from blo.derivatives.random_state import RandomState
from blo.engine import Engine
from blo.problem import Problem
from blo.recording import Recorder


class ProblemSnapshot:
    """A problem's parameters, optimizer and scheduler.

    The optimizer's own dictionaries and tensors are refilled, not replaced, so that whoever refers
    to them finds them in place.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        optimizer = problem.optimizer
        self._parameters = [(p, p.detach().clone(), p.grad) for p in problem.parameters]
        self._groups = [{k: _kept(v) for k, v in g.items()} for g in optimizer.param_groups]
        self._state = {p: {k: _kept(v) for k, v in s.items()} for p, s in optimizer.state.items()}
        own = ("state", "param_groups")
        self._attributes = {k: v for k, v in vars(optimizer).items() if k not in own}
        scheduler = problem.scheduler
        self._scheduler = None if scheduler is None else copy.deepcopy(scheduler.state_dict())

    def restore(self) -> None:
        """Put everything back."""
        optimizer = self._problem.optimizer
        with torch.no_grad():
            for parameter, value, grad in self._parameters:
                parameter.copy_(value)
                parameter.grad = grad
        for group, kept in zip(optimizer.param_groups, self._groups, strict=True):
            _refill(group, kept)
        for parameter in list(optimizer.state):
            if parameter not in self._state:
                del optimizer.state[parameter]
        for parameter, kept in self._state.items():
            _refill(optimizer.state[parameter], kept)
        for name in set(vars(optimizer)) - {"state", "param_groups", *self._attributes}:
            delattr(optimizer, name)
        vars(optimizer).update(self._attributes)
        if self._scheduler is not None:
            self._problem.scheduler.load_state_dict(copy.deepcopy(self._scheduler))


@contextmanager
def untouched(engine: Engine) -> Iterator[None]:
    """Run a block that may train, and leave the engine as it was.

    That is parameters, buffers, optimizers, schedulers, streams, methods, counters, and the random
    state of torch, of Python and of numpy where it is loaded. The streams are put aside: the block
    must set streams of its own, and what it draws from a problem's batches it draws itself.
    """
    graph = engine.graph
    devices = dict.fromkeys(t.device for p in graph.problems for t in p.parameters)
    states = RandomState.capture(devices)
    python, numpy = random.getstate(), sys.modules.get("numpy.random")
    numbers = None if numpy is None else numpy.get_state()
    problems = [ProblemSnapshot(p) for p in graph.problems]
    settings = [(p, p.method, p.accumulate) for p in graph.problems]
    buffers, streams, attributes = graph.space.buffers(), dict(graph.streams), dict(vars(engine))
    generators = [(g, g.get_state()) for s in streams.values() for g in s.generators().values()]
    engine.recorder = Recorder(graph)
    engine.recorder.moments.update(attributes["recorder"].moments)
    engine.method_states = dict(engine.method_states)
    try:
        yield
    finally:
        for snapshot in problems:
            snapshot.restore()
        for problem, method, accumulate in settings:
            problem.method, problem.accumulate = method, accumulate
        graph.space.load_buffers(buffers)
        graph.streams.update(streams)
        vars(engine).update(attributes)
        for generator, state in generators:
            generator.set_state(state)
        states.restore()
        random.setstate(python)
        if numpy is not None:
            numpy.set_state(numbers)


def _kept(value: Any) -> Any:
    """Return a value together with a copy of what it holds, where it holds a tensor."""
    return (value, value.detach().clone()) if isinstance(value, Tensor) else (value, None)


def _refill(target: dict[Any, Any], kept: dict[Any, Any]) -> None:
    for key in set(target) - set(kept):
        del target[key]
    for key, (value, copied) in kept.items():
        if copied is not None:
            with torch.no_grad():
                value.copy_(copied)
        target[key] = value
