"""The state of the problems of a graph: copied out, and put back."""

from __future__ import annotations

import copy
from typing import Any

import torch

from blo.derivatives.random_state import RandomState
from blo.graph import ProblemGraph

VERSION = 1


def copied(value: Any) -> Any:
    """Return a deep copy of a state: tensors are cloned, other objects copied."""
    return copy.deepcopy(value)


def state_of(graph: ProblemGraph) -> dict[str, Any]:
    """Return copies of parameters, buffers, optimizers, schedulers, streams and random state."""
    problems = {}
    for p in graph.problems:
        problems[p.name] = {
            "parameters": {graph.space.names[id(t)]: t.detach().clone() for t in p.parameters},
            "optimizer": copied(p.optimizer.state_dict()),
            "scheduler": None if p.scheduler is None else copied(p.scheduler.state_dict()),
            "stream": copied(graph.streams[p.name].state_dict()),
        }
    devices = dict.fromkeys(t.device for p in graph.problems for t in p.parameters)
    return {
        "problems": problems,
        "buffers": graph.space.buffers(),
        "random_state": [s for _, s in RandomState.capture(devices).states],
    }


def load(graph: ProblemGraph, state: dict[str, Any]) -> None:
    """Put the problems where `state_of` found them.

    Raises:
        ValueError: if the state belongs to other problems or parameters; nothing is changed then.
    """
    _check(graph, state)
    for p in graph.problems:
        saved = state["problems"][p.name]
        with torch.no_grad():
            for t in p.parameters:
                t.copy_(saved["parameters"][graph.space.names[id(t)]])
        p.optimizer.load_state_dict(copied(saved["optimizer"]))
        if p.scheduler is not None:
            p.scheduler.load_state_dict(copied(saved["scheduler"]))
        graph.streams[p.name].load_state_dict(copied(saved["stream"]))
    graph.space.load_buffers(state["buffers"])
    devices = dict.fromkeys(t.device for p in graph.problems for t in p.parameters)
    places = [device for device, _ in RandomState.capture(devices).states]
    RandomState(tuple(zip(places, state["random_state"], strict=True))).restore()


def _check(graph: ProblemGraph, state: dict[str, Any]) -> None:
    """Raise unless the state is one of these problems and parameters."""
    if state.get("version") != VERSION:
        raise ValueError(
            f"state has version {state.get('version')!r}, and this release reads version {VERSION}"
        )
    if set(state["problems"]) != {p.name for p in graph.problems}:
        raise ValueError(
            f"state must hold the problems {[p.name for p in graph.problems]}, got "
            f"{list(state['problems'])}"
        )
    for p in graph.problems:
        names = {graph.space.names[id(t)]: tuple(t.shape) for t in p.parameters}
        saved = {n: tuple(t.shape) for n, t in state["problems"][p.name]["parameters"].items()}
        if names != saved:
            odd = sorted(set(names.items()) ^ set(saved.items()))[:3]
            raise ValueError(f"state has other parameters for problem {p.name!r}: {odd}")
