"""The state of the problems of a graph: copied out, checked, and put back."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blo.arguments import described
from blo.derivatives.random_state import RandomState
from blo.derivatives.stored_random_state import recalled, recalled_generator, stored
from blo.graph import ProblemGraph
from blo.problem import Problem

logger = logging.getLogger("blo")

VERSION = 2
READ = (1, 2)

KEYS = (
    *("version", "round", "num_gradients", "num_products", "method_states"),
    *("problems", "buffers", "random_state"),
)
PROBLEM_KEYS = ("parameters", "optimizer", "scheduler", "stream")
LATER_KEYS = (
    *("optimizer_class", "scheduler_class", "method", "generators"),
    *("reads", "changes", "draws", "computed_in"),
)


def copied(value: Any) -> Any:
    """Return a deep copy of a state: tensors are cloned, other objects copied."""
    return copy.deepcopy(value)


def state_of(graph: ProblemGraph) -> dict[str, Any]:
    """Return copies of parameters, buffers, optimizers, schedulers, streams and random state."""
    problems = {}
    for p in graph.problems:
        own = RandomState.capture(generators=p.generators, foreign=False)
        problems[p.name] = {
            "parameters": {graph.space.names[id(t)]: t.detach().clone() for t in p.parameters},
            "optimizer": copied(p.optimizer.state_dict()),
            "optimizer_class": class_name(p.optimizer),
            "scheduler": None if p.scheduler is None else copied(p.scheduler.state_dict()),
            "scheduler_class": None if p.scheduler is None else class_name(p.scheduler),
            "stream": copied(graph.streams[p.name].state_dict()),
            "method": class_name(p.method),
            "generators": stored(own)["own"],
            "reads": list(graph.reads[p.name]),
            "changes": list(graph.changes[p.name]),
            "draws": p.draws,
            "computed_in": p.computed_in,
        }
    now = RandomState.capture(_devices(graph))
    plain = stored(now)
    return {
        "problems": problems,
        "buffers": graph.space.buffers(),
        "random_state": plain["torch"],
        "random_state_of_libraries": {"python": plain["python"], "numpy": plain["numpy"]},
        "devices": [device.type for device, _ in now.states],
    }


def load(graph: ProblemGraph, state: Mapping[str, Any]) -> None:
    """Put the problems where `state_of` found them; `check` comes before.

    Raises:
        ValueError: if a part does not take its state; the problems are as they were then.
    """
    before = state_of(graph)
    try:
        _put(graph, state)
    except Exception as error:
        _put_back(graph, before)
        raise ValueError(
            f"state does not fit, and nothing was changed: {type(error).__name__}: {error}"
        ) from error


def _put(graph: ProblemGraph, state: Mapping[str, Any]) -> None:
    for p in graph.problems:
        graph.streams[p.name].load_state_dict(state["problems"][p.name]["stream"])
    for p in graph.problems:
        _put_problem(graph, p, state["problems"][p.name])
    graph.space.load_buffers(state["buffers"])
    _put_reads(graph, state)
    libraries = state.get("random_state_of_libraries", {"python": None, "numpy": None})
    data = {"torch": state["random_state"], "own": [], **libraries}
    recalled(data, _devices(graph)).restore()
    if state["version"] == 1:
        logger.warning(
            "the state is of version 1, which kept torch's random state alone: draws of Python's "
            "and numpy's generators, and of your own, do not go on where they were"
        )


def _put_problem(graph: ProblemGraph, p: Problem, saved: Mapping[str, Any]) -> None:
    with torch.no_grad():
        for t in p.parameters:
            t.copy_(saved["parameters"][graph.space.names[id(t)]])
    p.optimizer.load_state_dict(copied(saved["optimizer"]))
    _keep_types(p, saved["optimizer"]["state"])
    if p.scheduler is not None:
        p.scheduler.load_state_dict(copied(saved["scheduler"]))
    own = zip(p.generators, saved.get("generators", ()), strict="generators" in saved)
    RandomState((), own=tuple((g, recalled_generator(g, s)) for g, s in own)).restore()
    graph.changes[p.name] = tuple(saved.get("changes", graph.changes[p.name]))
    p.draws = saved.get("draws", p.draws)
    p.computed_in = saved.get("computed_in", p.computed_in)


def _put_back(graph: ProblemGraph, before: Mapping[str, Any]) -> None:
    """Put the problems back; what cannot go back (a one-shot iterator) stays."""
    for p in graph.problems:
        try:
            graph.streams[p.name].load_state_dict(before["problems"][p.name]["stream"])
        except Exception:
            logger.warning("the batches of problem %r could not be put back", p.name)
        _put_problem(graph, p, before["problems"][p.name])
    graph.space.load_buffers(before["buffers"])
    _put_reads(graph, before)
    data = {"torch": before["random_state"], "own": [], **before["random_state_of_libraries"]}
    recalled(data, _devices(graph)).restore()


def _keep_types(p: Problem, saved: Mapping[Any, Any]) -> None:
    """Give the tensors of an optimizer's state the types they were saved in: torch casts them to
    those of the parameters.
    """
    held = [t for group in p.optimizer.param_groups for t in group["params"]]
    for number, values in saved.items():
        now = p.optimizer.state.get(held[number], {}) if isinstance(number, int) else {}
        for key, value in values.items() if isinstance(values, dict) else ():
            present = now.get(key)
            if not isinstance(value, Tensor) or not isinstance(present, Tensor):
                continue
            if present.dtype != value.dtype:
                now[key] = value.to(present.device, copy=True)


def _put_reads(graph: ProblemGraph, state: Mapping[str, Any]) -> None:
    reads = {p.name: tuple(state["problems"][p.name].get("reads", ())) for p in graph.problems}
    graph.set_reads({name: read or graph.reads[name] for name, read in reads.items()})


def check(graph: ProblemGraph, state: Any) -> None:
    """Raise unless a state is whole, and one of these problems, as far as can be seen without
    loading it.

    Raises:
        ValueError: naming what is missing or different.
        TypeError: if it is no dictionary.
    """
    if not isinstance(state, dict):
        raise TypeError(
            f"state must be a dictionary from state_dict(), got {described(state)}; load(path) "
            "reads files"
        )
    try:
        _check(graph, state)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"state is not whole: {type(error).__name__}: {error}") from error


def _check(graph: ProblemGraph, state: dict[str, Any]) -> None:
    version = state.get("version")
    if version not in READ or isinstance(version, bool):
        raise ValueError(
            f"state has version {version!r}, and this release reads versions "
            f"{' and '.join(map(str, READ))}; load it with the release that wrote it"
        )
    later = version > 1
    _lacks_none(state, KEYS, "state")
    for key in ("round", "num_gradients", "num_products"):
        if type(state[key]) is not int or state[key] < 0:
            raise ValueError(f"state has {key}={state[key]!r}, which is no count; it is damaged")
    if later:
        _lacks_none(
            state,
            ("random_state_of_libraries", "devices", "within_round", "callbacks", "divergence"),
            "state",
        )
        place = state["within_round"]
        if type(place) is not int or place >= len(graph.schedule()):
            raise ValueError(f"state has within_round={place!r}; it is damaged")
        if place < 0:
            raise ValueError(
                f"state was taken within round {state['round'] + 1}, after an interruption: the "
                "rest of that round depends on more than a state holds, so that it cannot be gone "
                "on from; load the state of the end of a round"
            )
    _check_random_state(graph, state)
    if not isinstance(state["problems"], dict) or set(state["problems"]) != {
        p.name for p in graph.problems
    }:
        raise ValueError(
            f"state must hold the problems {[p.name for p in graph.problems]}, got "
            f"{list(state['problems'])}"
        )
    for p in graph.problems:
        saved = state["problems"][p.name]
        whose = f"state of problem {p.name!r}"
        _lacks_none(saved, (*PROBLEM_KEYS, *(LATER_KEYS if later else ())), whose)
        _check_parameters(graph, p, saved)
        _check_optimizer(p, saved)
        _check_scheduler(p, saved)
        graph.streams[p.name].check(saved["stream"])
        if later:
            _check_generators(p, saved["generators"])
            unknown = {*saved["reads"]} - {q.name for q in graph.problems}
            if unknown:
                raise ValueError(f"{whose} reads {sorted(unknown)}, which the graph does not hold")
    _check_buffers(graph, state["buffers"])
    _check_method_states(graph, state)


def class_name(value: object) -> str:
    """Return the name of a value's class, with its module."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _lacks_none(state: Any, keys: Iterable[str], what: str) -> None:
    missing = [k for k in keys if not isinstance(state, dict) or k not in state]
    if missing:
        raise ValueError(f"{what} lacks {missing}; it is not whole")


def _check_random_state(graph: ProblemGraph, state: Mapping[str, Any]) -> None:
    now = RandomState.capture(_devices(graph), foreign=False).states
    kinds = [device.type for device, _ in now]
    given = state["random_state"]
    saved = state.get("devices", kinds)
    if saved != kinds or not isinstance(given, (list, tuple)) or len(given) != len(kinds):
        raise ValueError(
            f"state holds the random state of the devices {saved}, and the problems are on "
            f"{kinds}; move the modules to the devices it was saved on before making the problems"
        )
    for kind, value, (_, present) in zip(kinds, given, now, strict=True):
        _is_like(value, present, f"random state of device {kind!r}")
    libraries = state.get("random_state_of_libraries")
    if libraries is not None:
        try:
            recalled({"torch": given, "own": [], **libraries}, _devices(graph))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"state has a damaged random state of Python or numpy: {error!r}"
            ) from None


def _is_like(value: Any, wanted: Tensor, what: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"state has a {type(value).__name__} as {what}; it must be a tensor")
    if value.shape != wanted.shape or value.dtype != wanted.dtype:
        raise ValueError(
            f"state has {what} of shape {tuple(value.shape)} and {value.dtype}, and the engine's "
            f"has {tuple(wanted.shape)} and {wanted.dtype}; load it into the problems it was saved "
            "from"
        )


def _check_parameters(graph: ProblemGraph, p: Problem, saved: Mapping[str, Any]) -> None:
    now = {graph.space.names[id(t)]: t for t in p.parameters}
    then = saved["parameters"]
    shapes = {n: tuple(t.shape) for n, t in now.items()}
    if not isinstance(then, dict):
        raise ValueError(f"state has no parameters for problem {p.name!r}; it is not whole")
    given = {n: tuple(t.shape) if isinstance(t, Tensor) else None for n, t in then.items()}
    if shapes != given:
        odd = sorted(set(shapes.items()) ^ set(given.items()), key=str)[:3]
        raise ValueError(f"state has other parameters for problem {p.name!r}: {odd}")
    if list(now) != list(then):
        raise ValueError(
            f"state has the parameters of problem {p.name!r} in the order {list(then)}, and its "
            f"optimizer holds them as {list(now)}; hand them over in the order they were saved in"
        )
    for name, t in now.items():
        _is_like(then[name], t, f"parameter {name!r} of problem {p.name!r}")


def _check_optimizer(p: Problem, saved: Mapping[str, Any]) -> None:
    given, whose = saved["optimizer"], f"optimizer of problem {p.name!r}"
    name = saved.get("optimizer_class")
    if name is not None and name != class_name(p.optimizer):
        raise ValueError(
            f"state is of a {name} as the {whose}, which is a {class_name(p.optimizer)}; use the "
            "optimizer it was saved with"
        )
    _lacks_none(given, ("state", "param_groups"), f"state of the {whose}")
    now = p.optimizer.state_dict()
    sizes, wanted = ([len(group["params"]) for group in s["param_groups"]] for s in (given, now))
    if sizes != wanted:
        raise ValueError(
            f"state has groups of {sizes} parameters for the {whose}, which has {wanted}"
        )
    for i, (then, here) in enumerate(zip(given["param_groups"], now["param_groups"], strict=True)):
        # Schedulers add entries to a group.
        odd = (set(then) ^ set(here)) - {"initial_lr", "max_lr", "min_lr", "max_momentum"}
        odd -= {"base_momentum", "swa_lr", "decoupled_weight_decay"}
        if odd:
            raise ValueError(
                f"state has other options in group {i} of the {whose}: {sorted(odd)} are in one of "
                "them only; use the optimizer it was saved with"
            )
    held = [t for group in p.optimizer.param_groups for t in group["params"]]
    like_parameters = class_name(p.optimizer).startswith("torch.optim.")
    like_parameters &= not isinstance(p.optimizer, torch.optim.Adafactor)
    for number, values in given["state"].items():
        if not isinstance(number, int) or number not in range(len(held)):
            raise ValueError(f"state has an entry for parameter {number!r} of the {whose}")
        present = p.optimizer.state.get(held[number], {})
        for key, value in values.items() if isinstance(values, dict) else ():
            if not isinstance(value, Tensor) or value.numel() == 1:
                continue
            known = present.get(key)
            shape = known.shape if isinstance(known, Tensor) else held[number].shape
            if (like_parameters or isinstance(known, Tensor)) and value.shape != shape:
                raise ValueError(
                    f"state has {key!r} of shape {tuple(value.shape)} for parameter {number} of "
                    f"the {whose}, whose shape is {tuple(shape)}"
                )


def _check_scheduler(p: Problem, saved: Mapping[str, Any]) -> None:
    given, whose = saved["scheduler"], f"problem {p.name!r}"
    if (given is None) != (p.scheduler is None):
        has, lacks = ("the problem", "the state") if given is None else ("the state", "the problem")
        raise ValueError(f"{has} has a scheduler for {whose}, and {lacks} has none")
    if p.scheduler is None:
        return
    name = saved.get("scheduler_class")
    if name is not None and name != class_name(p.scheduler):
        raise ValueError(
            f"state is of a {name} as the scheduler of {whose}, which is a "
            f"{class_name(p.scheduler)}; use the scheduler it was saved with"
        )
    if not isinstance(given, dict) or set(given) != set(p.scheduler.state_dict()):
        raise ValueError(
            f"state has another kind of scheduler for {whose}; use the one it was saved with"
        )


def _check_generators(p: Problem, given: Sequence[Any]) -> None:
    if len(given) != len(p.generators):
        raise ValueError(
            f"state has {len(given)} random generators of problem {p.name!r}, whose loss draws "
            f"from {len(p.generators)} of its own"
        )
    for g, value in zip(p.generators, given, strict=True):
        try:
            recalled_generator(g, value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"state does not fit problem {p.name!r}: {error}") from None


def _check_buffers(graph: ProblemGraph, given: Any) -> None:
    now = graph.space.buffers()
    if not isinstance(given, (list, tuple)) or len(given) != len(now):
        count = len(given) if isinstance(given, (list, tuple)) else given
        raise ValueError(
            f"state has {count} buffers, and the modules have {len(now)}; load it into the modules "
            "it was saved from (buffers that forward registers: run it once before)"
        )
    for i, (value, present) in enumerate(zip(given, now, strict=True)):
        _is_like(value, present, f"buffer {i}")


def _check_method_states(graph: ProblemGraph, state: Mapping[str, Any]) -> None:
    given = state["method_states"]
    names = [p.name for p in graph.problems]
    pairs = {f"{a} <- {b}": graph[b] for a in names for b in names}
    for key, value in given.items() if isinstance(given, dict) else [(None, None)]:
        if key not in pairs:
            raise ValueError(f"state has the state of a method for {key!r}, which is no pair of it")
        if value is None:
            continue
        p = pairs[key]
        method = state["problems"][p.name].get("method", class_name(p.method))
        if method != class_name(p.method):
            raise ValueError(
                f"state holds what {method} keeps between rounds for problem {p.name!r}, whose "
                f"method is {p.method!r}; use the method it was saved with"
            )
        if not isinstance(value, tuple) or not all(isinstance(t, Tensor) for t in value):
            raise ValueError(f"state of the method of {key!r} must be a tuple of tensors")
        shapes, wanted = ([tuple(t.shape) for t in v] for v in (value, p.parameters))
        draws = [t.dtype for t in value] == [torch.uint8]  # of a generator
        if method.startswith("blo.") and not draws and shapes != wanted:
            raise ValueError(
                f"state of the method of {key!r} has tensors of shapes {shapes}, and the "
                f"parameters of problem {p.name!r} have {wanted}"
            )


def method_states(
    graph: ProblemGraph, given: Mapping[str, tuple[Tensor, ...] | None]
) -> dict[str, tuple[Tensor, ...] | None]:
    """Return copies of the states of methods, where the parameters of their problems are."""
    found: dict[str, tuple[Tensor, ...] | None] = {}
    for key, value in given.items():
        device = graph[key.partition(" <- ")[2]].device
        found[key] = None if value is None else tuple(_moved(t, device) for t in value)
    return found


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy on a device; the states of generators stay on the CPU."""
    if tensor.dtype == torch.uint8:
        return tensor.detach().clone()
    return tensor.detach().to(device, copy=True)


def _devices(graph: ProblemGraph) -> tuple[torch.device, ...]:
    return tuple(dict.fromkeys(t.device for p in graph.problems for t in p.parameters))
