"""The loop: rounds of the engine, a log line now and then, checkpoints, resuming."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from applications.common.arguments import Options
from applications.common.errors import UsageError
from applications.common.graphs import Plan
from applications.common.metrics import Evaluation
from applications.common.outputs import RunFolder
from blo import Engine, Info, Record

# Options that may differ between a run and its continuation: they change no number.
FREE_ON_RESUME = (
    "output_dir",
    "save_steps",
    "save_total_limit",
    "resume",
    "disable_tqdm",
    "device",
)


@dataclass(frozen=True)
class Training:
    """What the loop leaves for the summary."""

    seconds: float
    """Time spent in updates; evaluations, checkpoints and loading are left out."""
    hypergradient: dict[str, Any] | None
    """How the first response was computed: method, scale, radius, point. None for one level."""


def train(
    engine: Engine,
    *,
    updates: Plan,
    folder: RunFolder,
    options: Options,
    validate: Callable[[], Evaluation] | None,
) -> Training:
    """Train for the planned rounds, from the last checkpoint where ``resume`` is set.

    Args:
        engine: freshly built; its state is replaced when a checkpoint is found.
        updates: how many rounds.
        folder: where log lines and checkpoints go.
        options: ``run`` is read; all are kept in the checkpoint.
        validate: evaluates on the validation split, every ``eval_steps`` rounds.
    """
    run = options.run
    done, seconds, hypergradient = 0, 0.0, None
    if run.resume and folder.checkpoints():
        state = read_checkpoint(folder, options)
        engine.load_state_dict(state["engine"])
        done, seconds, hypergradient = state["round"], state["seconds"], state["hypergradient"]
        folder.forget_after(done)
    with tqdm(
        total=updates.rounds,
        initial=done,
        desc=str(options.adapter.method),
        unit="update",
        disable=True if run.disable_tqdm else None,
    ) as bar:
        started = time.perf_counter()
        for record in engine.rounds(updates.rounds - done):
            seconds += time.perf_counter() - started
            last = record.round == updates.rounds
            if hypergradient is None and record.responses:
                hypergradient = how(next(iter(record.responses.values())))
                hypergradient["method"] = options.levels.hypergradient
            if last or record.round == 1 or record.round % run.logging_steps == 0:
                folder.log(line(record, updates, seconds))
                bar.set_postfix({name: f"{loss:.3f}" for name, loss in record.losses.items()})
            if validate is not None and run.eval_steps and record.round % run.eval_steps == 0:
                found = validate()
                scores = {"loss": found.loss, **found.metrics}
                folder.log({"round": record.round, "validation": scores})
            if last or record.round % run.save_steps == 0:
                state = {
                    "engine": engine.state_dict(),
                    "round": record.round,
                    "seconds": seconds,
                    "hypergradient": hypergradient,
                    "options": options.as_dict(),
                }
                folder.save_checkpoint(record.round, state, keep=run.save_total_limit)
            bar.update()
            started = time.perf_counter()
    return Training(seconds, hypergradient)


def line(record: Record, updates: Plan, seconds: float) -> dict[str, Any]:
    """One log line: losses, learning rates, costs so far, and how each response was computed."""
    responses = {
        name: {**how(info), "status": info.status.value, "residual": number(info.residual)}
        for name, info in record.responses.items()
    }
    return {
        "round": record.round,
        "lower_steps": record.round * updates.steps,
        "losses": dict(record.losses),
        "learning_rates": dict(record.learning_rates),
        "responses": responses,
        "num_gradients": record.num_gradients,
        "num_hvps": record.num_products,
        "seconds": round(seconds, 3),
    }


def how(info: Info) -> dict[str, Any]:
    """Method, scale, radius and point of a response."""
    return {name: getattr(info, name) for name in ("method", "scale", "radius", "point")}


def number(value: float) -> float | None:
    """The value, or None where it is not finite, which JSON cannot say."""
    return value if math.isfinite(value) else None


def read_checkpoint(folder: RunFolder, options: Options) -> dict[str, Any]:
    """The newest checkpoint.

    Raises:
        UsageError: it belongs to a run with other options.
    """
    path = folder.checkpoints()[-1]
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    now, then = options.as_dict(), state["options"]
    changed = [name for name in now if name not in FREE_ON_RESUME and now[name] != then.get(name)]
    if changed:
        name = changed[0]
        raise UsageError(
            f"argument --resume: {path} was written with {name}={then.get(name)!r}, not "
            f"{now[name]!r}; use the same options, or another --output_dir"
        )
    return state
