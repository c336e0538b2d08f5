"""The loop: rounds of the engine, a log line now and then, selection, checkpoints, resuming."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from applications.errors import UsageError
from applications.families.metrics import Evaluation
from applications.options.arguments import Options
from applications.runs.graphs import Plan
from applications.runs.outputs import RunFolder
from applications.runs.phases import Model, Phase
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
Score = Callable[[], Evaluation]


@dataclass(frozen=True)
class Costs:
    """What one phase, or several together, took."""

    lower_steps: int = 0
    upper_steps: int = 0
    num_gradients: int = 0
    num_hvps: int = 0
    seconds: float = 0.0
    """Time spent in updates; evaluations, checkpoints and loading are left out."""

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(
            self.lower_steps + other.lower_steps,
            self.upper_steps + other.upper_steps,
            self.num_gradients + other.num_gradients,
            self.num_hvps + other.num_hvps,
            self.seconds + other.seconds,
        )


@dataclass
class Selection:
    """The step with the best score on held-out data, and when to stop waiting for a better one."""

    metric: str
    patience: int | None = None
    best: float | None = None
    lower_steps: int = 0
    waited: int = 0

    def improved(self, found: Evaluation, lower_steps: int) -> bool:
        """Whether this is the best evaluation so far; a tie is not better.

        Raises:
            UsageError: the task has no such metric.
        """
        scores = {"loss": found.loss, **found.metrics}
        if self.metric not in scores:
            raise UsageError(
                f"argument --metric_for_best_model: no metric {self.metric!r}; choose one of "
                f"{', '.join(scores)}"
            )
        score = scores[self.metric]
        if score is not None and self.metric in SMALLER_IS_BETTER:
            score = -score
        if score is None or (self.best is not None and score <= self.best):
            self.waited += 1
            return False
        self.best, self.lower_steps, self.waited = score, lower_steps, 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience


SMALLER_IS_BETTER = ("loss", "ece", "brier", "perplexity")


@dataclass
class Trained:
    """What the loop leaves for the summary."""

    costs: Costs
    hypergradient: dict[str, Any] | None
    """How the first response was computed: method, scale, radius, point. None for one level."""
    selected: int | None
    """The lower steps of the phase at the selected step."""


@dataclass
class Loop:
    """Trains the phases of one run, one after the other.

    Args:
        folder: where log lines and checkpoints go.
        options: all are kept in the checkpoints.
        before: the costs of the phases already trained.
        index: the number of phases already trained.
    """

    folder: RunFolder
    options: Options
    before: Costs = field(default_factory=Costs)
    index: int = 0

    def train(self, phase: Phase, engine: Engine, validate: Score | None) -> Trained:
        """Train one phase to its end, from its last checkpoint where ``resume`` is set.

        Args:
            phase: what is trained.
            engine: freshly built; its state is replaced when a checkpoint is found.
            validate: evaluates on the held-out data, every ``eval_steps`` updates.
        """
        run, updates, folder = self.options.run, phase.updates, self.folder
        rounds, seconds, hypergradient, stopped = 0, 0.0, None, False
        selection = None
        if phase.last and validate is not None and run.metric_for_best_model is not None:
            selection = Selection(run.metric_for_best_model, run.early_stopping_patience)
        checkpoints = folder.checkpoints(self.index) if run.resume else []
        if checkpoints:
            state = self.read_checkpoint()
            engine.load_state_dict(state["engine"])
            for item, kept in zip(phase.stateful, state["stateful"], strict=True):
                item.load_state_dict(kept)
            rounds, seconds, stopped = state["round"], state["seconds"], state["stopped"]
            hypergradient = state["hypergradient"]
            if selection is not None:
                selection = Selection(**state["selection"])
        if run.resume:
            folder.forget_after(self.index, rounds)
        every = None if run.eval_steps is None else max(1, run.eval_steps // max(1, updates.steps))
        with tqdm(
            total=updates.rounds,
            initial=rounds,
            desc=f"{self.options.adapter.method} {phase.name}",
            unit="update",
            disable=True if run.disable_tqdm else None,
        ) as bar:
            started = time.perf_counter()
            for record in engine.rounds(0 if stopped else updates.rounds - rounds):
                seconds += time.perf_counter() - started
                rounds = record.round
                last = rounds == updates.rounds
                if hypergradient is None and record.responses:
                    hypergradient = how(next(iter(record.responses.values())))
                    hypergradient["method"] = self.options.levels.hypergradient
                costs = self.costs(updates, rounds, engine, seconds)
                if last or rounds == 1 or rounds % run.logging_steps == 0:
                    folder.log(self.place(phase, rounds, costs) | line(record))
                    bar.set_postfix({name: f"{loss:.3f}" for name, loss in record.losses.items()})
                if validate is not None and every and (last or rounds % every == 0):
                    found = validate()
                    scores = {"loss": found.loss, **found.metrics}
                    folder.log(self.place(phase, rounds, costs) | {"validation": scores})
                    if selection is not None:
                        if selection.improved(found, costs.lower_steps):
                            folder.save_selected(trained_values(phase.model))
                        stopped = selection.exhausted and not last
                if last or stopped or rounds % run.save_steps == 0:
                    state = {
                        "engine": engine.state_dict(),
                        "stateful": [item.state_dict() for item in phase.stateful],
                        "round": rounds,
                        "seconds": seconds,
                        "hypergradient": hypergradient,
                        "selection": None if selection is None else asdict(selection),
                        "stopped": stopped,
                        "options": self.options.as_dict(),
                    }
                    keep = run.save_total_limit
                    folder.save_checkpoint(self.index, rounds, state, keep=keep)
                bar.update()
                if stopped:
                    break
                started = time.perf_counter()
        costs = self.costs(updates, rounds, engine, seconds)
        self.before, self.index = self.before + costs, self.index + 1
        selected = None
        if selection is not None and selection.best is not None:
            selected = selection.lower_steps
        return Trained(costs, hypergradient, selected)

    def costs(self, updates: Plan, rounds: int, engine: Engine, seconds: float) -> Costs:
        """The costs of the running phase so far."""
        upper = rounds if updates.bi_level else 0
        counts = (rounds * updates.steps, upper, engine.num_gradients, engine.num_products)
        return Costs(*counts, seconds)

    def place(self, phase: Phase, rounds: int, costs: Costs) -> dict[str, Any]:
        """Where a log line stands: the phase, its round, and the costs of the run so far."""
        whole = self.before + costs
        return {
            "phase": phase.name,
            "phase_index": self.index,
            "round": rounds,
            "lower_steps": costs.lower_steps,
            "num_gradients": whole.num_gradients,
            "num_hvps": whole.num_hvps,
            "seconds": round(whole.seconds, 3),
        }

    def read_checkpoint(self) -> dict[str, Any]:
        """The newest checkpoint of the phase.

        Raises:
            UsageError: it belongs to a run with other options.
        """
        path = self.folder.checkpoints(self.index)[-1]
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        now, then = self.options.as_dict(), state["options"]
        changed = [n for n in now if n not in FREE_ON_RESUME and now[n] != then.get(n)]
        if changed:
            name = changed[0]
            raise UsageError(
                f"argument --resume: {path} was written with {name}={then.get(name)!r}, not "
                f"{now[name]!r}; use the same options, or another --output_dir"
            )
        return state


def line(record: Record) -> dict[str, Any]:
    """One log line: losses, learning rates, and how each response was computed."""
    responses = {
        name: {
            **how(info),
            "status": None if info.status is None else info.status.value,
            "residual": number(info.residual),
        }
        for name, info in record.responses.items()
    }
    return {
        "losses": dict(record.losses),
        "learning_rates": dict(record.learning_rates),
        "responses": responses,
    }


def how(info: Info) -> dict[str, Any]:
    """Method, scale, radius and point of a response."""
    return {name: getattr(info, name) for name in ("method", "scale", "radius", "point")}


def number(value: float) -> float | None:
    """The value, or None where it is not finite, which JSON cannot say."""
    return value if math.isfinite(value) else None


def trained_values(model: Model) -> dict[str, torch.Tensor]:
    """Copies of what the phase trains."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def put_values(model: Model, values: Mapping[str, torch.Tensor]) -> None:
    """Write copies that `trained_values` took back into the model."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
