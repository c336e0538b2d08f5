"""The loop: rounds of the engine, with a log, a selection and checkpoints along the way."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from applications import processes
from applications.errors import UsageError
from applications.families.metrics import Evaluation
from applications.options.arguments import FREE_ON_RESUME, Options
from applications.runs.costs import Costs
from applications.runs.ending import begun_anew
from applications.runs.interruption import Signals
from applications.runs.outputs import RunFolder
from applications.runs.phases import Model, Phase
from applications.runs.screen import Screen, screen
from applications.runs.selection import Selection
from applications.runs.trackers import Trackers
from blo import Engine, Info, Record

# What each process has of its own in an engine's state.
OWN_STATE = ("random_state", "random_state_of_libraries", "buffers")
Score = Callable[[], Evaluation]


@dataclass
class Trained:
    """What the loop leaves for the summary."""

    costs: Costs
    hypergradient: dict[str, Any] | None
    """How the first response was computed: method, scale, radius, point. None for one level."""
    selected: int | None
    """The updates of the phase at the selected step."""


@dataclass
class Loop:
    """Trains the phases of one run, one after the other.

    Args:
        folder: where log lines and checkpoints go.
        options: all are kept in the checkpoints.
        signals: those that end the run, looked at after every round.
        say: is told of checkpoints that are damaged.
        before: the costs of the phases already trained.
        index: the number of phases already trained.
        trackers: what is sent the log lines too.
    """

    folder: RunFolder
    options: Options
    signals: Signals = field(default_factory=Signals)
    say: Callable[[str], None] = print
    before: Costs = field(default_factory=Costs)
    index: int = 0
    trackers: Trackers = field(default_factory=Trackers)

    def train(self, phase: Phase, engine: Engine, validate: Score | None) -> Trained:
        """Train one phase to its end, from its last checkpoint where ``resume`` is set.

        A signal ends it after the round under way, with a checkpoint, by a KeyboardInterrupt.

        Args:
            phase: what is trained.
            engine: freshly built; its state is replaced when a checkpoint is found.
            validate: evaluates on the held-out data, every ``eval_steps`` updates.
        """
        training = Training(self, phase, engine, validate)
        if self.options.run.resume:
            training.resume()
        with self.signals.waiting(True):
            training.evaluate_pending()
            for record in training.rounds():
                self.signals.agree()
                training.log(record)
                training.evaluate()
                training.save()
                self.signals.check()
            self.signals.agree()
            self.signals.check()
        costs = training.costs()
        self.before, self.index = self.before + costs, self.index + 1
        return Trained(costs, training.hypergradient, training.selected())


@dataclass
class Training:
    """One phase under way: where it stands, and what is done between two of its rounds.

    Args:
        loop: the run it belongs to.
        phase: what is trained.
        engine: its rounds.
        validate: evaluates on the held-out data.

    Attributes:
        round: the rounds done.
        seconds: the time they took.
        stopped: whether patience has run out before the last round.
        evaluated: False where a signal came before the round was scored.
        hypergradient: how the first response was computed.
        selection: the best step so far, where one is selected.
        screen: what the screen shows, while there are rounds.
    """

    loop: Loop
    phase: Phase
    engine: Engine
    validate: Score | None
    round: int = 0
    seconds: float = 0.0
    stopped: bool = False
    evaluated: bool = True
    hypergradient: dict[str, Any] | None = None
    selection: Selection | None = None
    screen: Screen | None = None

    def __post_init__(self) -> None:
        run = self.loop.options.run
        if self.phase.last and self.validate is not None and run.metric_for_best_model is not None:
            self.selection = Selection(run.metric_for_best_model, run.early_stopping_patience)

    @property
    def last(self) -> bool:
        """Whether all rounds are done."""
        return self.round == self.phase.updates.rounds

    def rounds(self) -> Iterator[Record]:
        """The rounds that are left, timed, with what the screen shows of them."""
        options, total, name = self.loop.options, self.phase.updates.rounds, self.phase.name
        label, hidden = f"{options.adapter.method} {name}", options.run.disable_tqdm
        say = self.loop.say
        with screen(name, total, self.round, say, label=label, hidden=hidden) as shown:
            self.screen = shown
            started = time.perf_counter()
            for record in self.engine.rounds(0 if self.stopped else total - self.round):
                seconds = time.perf_counter() - started
                self.seconds += seconds
                self.round = record.round
                if self.hypergradient is None and record.responses:
                    first = next(iter(record.responses.values()))
                    method = options.levels.hypergradient
                    self.hypergradient = how(first) | {"method": method}
                shown.round(self.round, seconds, record.losses if self.logged else None)
                yield record
                if self.stopped:
                    return
                started = time.perf_counter()

    @property
    def logged(self) -> bool:
        """Whether the round has a line in the log."""
        every = self.loop.options.run.logging_steps
        return self.last or self.round == 1 or self.round % every == 0

    def log(self, record: Record) -> None:
        """Write the round's line, where it has one."""
        if self.logged:
            self.note(line(record))

    def evaluate(self) -> None:
        """Score the round on the held-out data, where it is its turn, and select the best one."""
        options = self.loop.options.run
        every = options.eval_steps
        if self.validate is None or every is None:
            return
        in_rounds = max(1, every // max(1, self.phase.updates.steps))
        if not self.last and self.round % in_rounds != 0:
            return
        found = self.scored(self.validate)
        scores = {"loss": found.loss, **found.metrics}
        self.note({"validation": scores})
        best, updates = None, self.updates
        if self.selection is not None:
            best = self.selection.improved(found, updates)
            if best:
                self.loop.folder.save_selected(trained_values(self.phase.model))
            self.stopped = self.selection.exhausted and not self.last
        if self.screen is not None:
            metric = options.metric_for_best_model
            self.screen.evaluated(updates, scores, metric or next(iter(found.metrics)), best)

    def note(self, found: dict[str, Any]) -> None:
        """Write a line of the log, and send it to the trackers."""
        noted = self.place() | found
        self.loop.folder.log(noted)
        self.loop.trackers.log(noted, self.loop.before.lower_steps + self.updates)

    @property
    def updates(self) -> int:
        """The updates of the phase so far: a phase of the upper level alone counts its own."""
        return self.round * max(1, self.phase.updates.steps)

    def scored(self, validate: Score) -> Evaluation:
        """The score of the round. A signal is not kept waiting: the round is scored on resuming.

        Several processes have to end together, and score the round first.
        """
        signals = self.loop.signals
        try:
            signals.check()
            with signals.waiting(processes.count() > 1):
                return validate()
        except KeyboardInterrupt:
            self.evaluated = False
            self.save(now=True)
            raise

    def evaluate_pending(self) -> None:
        """Score the round of the checkpoint where that was cut off."""
        if not self.evaluated:
            self.evaluated = True
            self.evaluate()
            self.save(now=True)

    def selected(self) -> int | None:
        """The updates at the selected step."""
        if self.selection is None or self.selection.best is None:
            return None
        return self.selection.lower_steps

    def costs(self) -> Costs:
        """The costs of the phase so far."""
        updates, engine = self.phase.updates, self.engine
        upper = self.round if updates.bi_level else 0
        counts = (self.round * updates.steps, upper, engine.num_gradients, engine.num_products)
        return Costs(*counts, self.seconds)

    def place(self) -> dict[str, Any]:
        """Where a log line stands: the phase, its round, and the costs of the run so far."""
        costs = self.costs()
        whole = self.loop.before + costs
        return {
            "phase": self.phase.name,
            "phase_index": self.loop.index,
            "round": self.round,
            "lower_steps": costs.lower_steps,
            "num_gradients": whole.num_gradients,
            "num_hvps": whole.num_hvps,
            "seconds": round(whole.seconds, 3),
        }

    def save(self, *, now: bool = False) -> None:
        """Write a checkpoint, where it is its turn or the run is asked to end."""
        run, asked = self.loop.options.run, self.loop.signals.ending
        if not (now or asked or self.last or self.stopped or self.round % run.save_steps == 0):
            return
        engine = self.engine.state_dict()
        state = {
            "engine": engine,
            "processes": processes.gathered({name: engine[name] for name in OWN_STATE}),
            "stateful": [item.state_dict() for item in self.phase.stateful],
            "round": self.round,
            "seconds": self.seconds,
            "hypergradient": self.hypergradient,
            "selection": None if self.selection is None else asdict(self.selection),
            "stopped": self.stopped,
            "evaluated": self.evaluated,
            "options": self.loop.options.as_dict(),
        }
        keep = run.save_total_limit
        self.loop.folder.save_checkpoint(self.loop.index, self.round, state, keep=keep)

    def resume(self) -> None:
        """Go on from the phase's last checkpoint, if there is one; drop the log lines after it."""
        folder, index, options = self.loop.folder, self.loop.index, self.loop.options
        state = processes.from_first(lambda: read_checkpoint(folder, index, options, self.loop.say))
        if state is not None:
            own = state["processes"][processes.rank()]
            self.engine.load_state_dict(state["engine"] | own)
            for item, kept in zip(self.phase.stateful, state["stateful"], strict=True):
                item.load_state_dict(kept)
            for name in ("round", "seconds", "stopped", "evaluated", "hypergradient"):
                setattr(self, name, state[name])
            if self.selection is not None:
                self.selection = Selection(**state["selection"])
        folder.forget_after(index, self.round)


def read_checkpoint(
    folder: RunFolder, index: int, options: Options, say: Callable[[str], None] = print
) -> dict[str, Any] | None:
    """The newest whole checkpoint of a phase, if there is one; damaged ones are set aside.

    Raises:
        UsageError: it belongs to a run with other options, or of another number of processes, or
            all are damaged.
    """
    found, damaged = folder.checkpoints(index), list[Path]()
    if not found:
        return None
    for path in reversed(found):
        state = folder.read_checkpoint(path)
        if state is not None:
            break
        say(f"warning: {path} is damaged; looking for the checkpoint before it")
        damaged.append(path)
    else:
        raise UsageError(
            f"argument --resume: {damaged[0]} is damaged, and there is no checkpoint before it; "
            f"put a whole copy there, or {begun_anew(folder.path)}"
        )
    for other in damaged:
        other.rename(other.with_suffix(".damaged"))
    then_processes = len(state["processes"])
    if then_processes != processes.count():
        raise UsageError(
            f"argument --resume: {path} was written by {then_processes} processes, and there are "
            f"{processes.count()}; start as many, or use another --output_dir"
        )
    now, then = options.as_dict(), state["options"]
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
