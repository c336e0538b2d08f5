"""The training loop over a problem graph."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blo import checkpoint, state_files
from blo.adjoints import total_gradient
from blo.arguments import described
from blo.batches import to_device
from blo.derivatives.differences import MOST_DISAGREEMENT
from blo.derivatives.pullback import Gradient, filled, reached
from blo.distributed import reduction_among, refuse_unequal, warn_of_identical
from blo.divergence import DivergenceWatch, remedy
from blo.graph import ProblemGraph, Update
from blo.linear.tensors import Tensors
from blo.loggers import check_bar, with_bar
from blo.methods.context import Info
from blo.passes import Evaluation, Readings, evaluate
from blo.problem import Problem
from blo.record import Draw, Record
from blo.recording import Recorder
from blo.step_watch import StepWatch, nothing
from blo.turns import Turns

logger = logging.getLogger("blo")

# By what a difference errs: where it was compared, and what mends it.
ROUNDING = (
    "twice",
    "rounding or many kinks, as of ReLU, are the reason: give a larger radius, or compute in a "
    "wider type",
)
CURVATURE = "half", "curvature or a kink is the reason: give a smaller radius or a smoother loss"


class Total(NamedTuple):
    """A problem's total gradient for one update, and what it was computed from.

    Attributes:
        value: what the optimizer receives.
        loss: the mean loss on the batches.
        metrics: other scalars in the dictionary that the loss returned.
        direct: partial derivatives of the loss, by problem, where problems below respond.
        draw: what the loss was evaluated on.
        infos: how each response was computed.
    """

    value: Gradient
    loss: float
    metrics: dict[str, float]
    direct: dict[str, Tensors]
    draw: Draw
    infos: dict[str, Info]


class Stop(Exception):  # noqa: N818  (a signal, as StopIteration is)
    """Raised by a callback to end the run after the round that it was called with.

    The other callbacks are called all the same, the round's record is yielded, and the engine can
    be saved or go on. In a loop of your own, with `Engine.step` or `Engine.backward`, look at
    `Engine.stopped`.

    Example:
        >>> import torch
        >>> from blo import Engine, Problem, ProblemGraph, Stop
        >>> y = torch.nn.ParameterList([torch.tensor(2.0)])
        >>> sgd = torch.optim.SGD(y.parameters(), 0.25)
        >>> problem = Problem("fit", lambda _: (y[0] - 1) ** 2, y, sgd, [None])
        >>> def until_small(record):
        ...     if record.losses["fit"] < 0.1:
        ...         raise Stop
        >>> print(Engine(ProblemGraph([problem]), callbacks=[until_small]).run(100))
        round 3: fit 0.0625
    """


class Engine:
    """Trains a problem graph by rounds: every problem takes its steps, bottom-up, and the top
    problem takes one.

    The engine fills ``.grad`` and calls ``optimizer.step()``: hooks of the optimizer (clipping,
    projection) work as in any loop. It builds no optimizer, and touches no parameter that no
    optimizer owns.

    Args:
        graph: the problems.
        precision: ``torch.bfloat16`` computes all losses under autocast; None leaves precision
            alone.
        callbacks: called with the `Record` of every round; one that raises `Stop` ends the run.
            Those with ``state_dict`` and ``load_state_dict`` (methods of such objects, too) are
            saved and loaded with the engine.
        divergence: a problem whose loss grows beyond this factor of its first size, or of 1 if that
            is smaller, in several updates on end, stops with a FloatingPointError
            (`DivergenceWatch`); None for never.
        distributed: average over the processes of this `torch.distributed.ProcessGroup`, each with
            batches of its own; None for the default group where one is initialised, False for none.
            A process that trains alone beside others needs False.
        progress: show a bar with the losses while `run` and `rounds` train; needs tqdm.

    Attributes:
        reduction: the means over processes, with their number and bytes.
        stopped: whether a callback raised `Stop` in the last round.

    Raises:
        ValueError: if the processes differ in their graphs or in the values of their parameters.
        ImportError: if `progress` is asked for and tqdm is not installed.

    Example:
        >>> import torch
        >>> from blo import Engine, Problem, ProblemGraph
        >>> x, y = (torch.nn.ParameterList([torch.tensor(value)]) for value in (1.0, 2.0))
        >>> f, g = lambda _: 0.5 * (y[0] - 1) ** 2, lambda _: (y[0] - 3 * x[0]) ** 2
        >>> upper = Problem("upper", f, x, torch.optim.SGD(x.parameters(), 0.1), [None])
        >>> lower = Problem("lower", g, y, torch.optim.SGD(y.parameters(), 0.5), [None])
        >>> for record in Engine(ProblemGraph([upper, lower])).rounds(3):
        ...     print(record.round, round(x[0].item(), 4))  # 1/3 minimises f at y*(x) = 3 x
        1 0.4
        2 0.34
        3 0.334
    """

    def __init__(
        self,
        graph: ProblemGraph,
        *,
        precision: torch.dtype | None = None,
        callbacks: Sequence[Callable[[Record], None]] = (),
        divergence: float | None = 1e6,
        distributed: Any = None,
        progress: bool = False,
    ) -> None:
        _refuse_unfit(graph, callbacks, divergence)
        if progress:
            check_bar()
        if precision not in (None, torch.bfloat16):
            raise ValueError(
                f"precision must be None or torch.bfloat16, got {precision}; float16 needs loss "
                "scaling, which is not supported"
            )
        self.graph = graph
        self.precision = precision
        self.callbacks = tuple(callbacks)
        self.progress = progress
        self.stopped = False
        self.round = 0
        self.num_gradients = 0
        self.num_products = 0
        self.reduction = reduction_among(distributed)
        self.recorder = Recorder(graph, joins=self.reduction.is_local)
        self.method_states: dict[str, Tensors | None] = {}
        self.watch = StepWatch()
        self._logged: set[str] = set()
        self._calling = False
        self._turns = Turns(graph)
        self._divergence = DivergenceWatch(divergence)
        self._saved: Path | None = None
        self._by_hand = (
            False  # by step() and backward(), which go on within a round; run() does not
        )
        self._compared: set[str] = set()
        refuse_unequal(graph, self.reduction)

    def run(self, num_rounds: int) -> Record:
        """Train for `num_rounds` rounds, or until a callback raises `Stop`, and return the last
        record.
        """
        _check_count(num_rounds, 1)
        for record in self.rounds(num_rounds):
            last = record
        return last

    def rounds(self, num_rounds: int) -> Iterator[Record]:
        """Yield the record of each of `num_rounds` rounds as it is done; a round is one update of
        the top problem.

        To end earlier, ``break`` out of the loop, or raise `Stop` in a callback: the engine is
        between two rounds then, and can be saved or go on.

        Raises:
            FloatingPointError: if a loss or a gradient is not finite, before anything is updated
                with it, or if a problem diverges.
            RuntimeError: if a callback of this engine calls it.
        """
        _check_count(num_rounds, 0)
        if self._calling:
            raise RuntimeError(
                "rounds of an engine cannot be run by a callback of the same engine, which they "
                "would call again; run them in the loop over engine.rounds(...)"
            )
        records = self._rounds(num_rounds)
        yield from with_bar(records, num_rounds) if self.progress else records

    def _rounds(self, num_rounds: int) -> Iterator[Record]:
        for _ in range(num_rounds):
            self._turns.restart()
            self._by_hand = False
            number = self.round
            try:
                while self.round == number:
                    self._take(self.graph[self.turn.problem])
            except StopIteration as error:
                raise RuntimeError(
                    f"StopIteration was raised in round {number + 1}, by a loss, its data or a "
                    "callback that called next() at an end; catch it there. A callback ends the "
                    "run by raise blo.Stop"
                ) from error
            yield self._record()
            if self.stopped:
                return

    @property
    def turn(self) -> Update:
        """The update that comes next: whose, which of its steps, and whether the problems above
        come after it.
        """
        return self._turns.next

    def step(self, name: str, batches: Sequence[Any] | None = None) -> Total:
        """Take one step of the problem whose turn it is, and return its total gradient with what
        it was computed from.

        With `backward` this is what a loop of your own calls in place of `run`: updates follow each
        other as `turn` says, a round ends with the top problem's, and callbacks get its `Record`.

        Args:
            name: of the problem, which must be the one in `turn`.
            batches: the batches of this update, whose gradients are averaged, for a problem with
                ``batches=None``; None takes the problem's own.

        Raises:
            RuntimeError: if it is another problem's turn, or the step after the last `backward`
                was not taken.

        Example:
            >>> import torch
            >>> from blo import Engine, Problem, ProblemGraph
            >>> x, y = (torch.nn.ParameterList([torch.tensor(value)]) for value in (1.0, 2.0))
            >>> f, g = lambda _: 0.5 * (y[0] - 1) ** 2, lambda t: (y[0] - t * x[0]) ** 2
            >>> upper = Problem("upper", f, x, torch.optim.SGD(x.parameters(), 0.1), [None])
            >>> sgd = torch.optim.SGD(y.parameters(), 0.5)
            >>> lower = Problem("lower", g, y, sgd, None, reads=["upper"])
            >>> engine = Engine(ProblemGraph([upper, lower]))
            >>> for t in (3.0, 3.0, 3.0):
            ...     fitted = engine.step("lower", [t])
            ...     total = engine.step("upper")
            ...     print(engine.round, round(x[0].item(), 4))
            1 0.4
            2 0.34
            3 0.334
        """
        return self._take(self._next(name, batches))

    def backward(self, name: str, batches: Sequence[Any] | None = None) -> Total:
        """Fill ``.grad`` of the problem whose turn it is with its total gradient, and return it
        with what it was computed from; the step is left to the caller.

        As ``loss.backward()`` in a loop of your own, before ``optimizer.step()``; ``.grad`` is set,
        not added to. Schedulers, and the clipping that the problem declares with ``clip``, are the
        caller's as well. The next call compares the step with the plain update of the optimizer,
        as `run` does.

        Args:
            name: of the problem, which must be the one in `turn`.
            batches: the batches of this update, whose gradients are averaged, for a problem with
                ``batches=None``; None takes the problem's own.

        Raises:
            RuntimeError: if it is another problem's turn, or the step after the last `backward`
                was not taken.

        Example:
            >>> import torch
            >>> from blo import Engine, Problem, ProblemGraph
            >>> x, y = (torch.nn.ParameterList([torch.tensor(value)]) for value in (1.0, 2.0))
            >>> f, g = lambda _: 0.5 * (y[0] - 1) ** 2, lambda _: (y[0] - 3 * x[0]) ** 2
            >>> above = torch.optim.SGD(x.parameters(), 0.1)
            >>> below = torch.optim.SGD(y.parameters(), 0.5)
            >>> graph = ProblemGraph(
            ...     [Problem("upper", f, x, above, [None]), Problem("lower", g, y, below, [None])]
            ... )
            >>> engine = Engine(graph)
            >>> for name, optimizer in (("lower", below), ("upper", above)):
            ...     total = engine.backward(name)
            ...     optimizer.step()
            >>> round(total.value[0].item(), 3), round(x[0].item(), 3)  # 3 (3 x - 1), and the step
            (6.0, 0.4)
        """
        problem = self._next(name, batches)
        total = self._next_gradient(problem)
        problem.hand(total.value)
        self._turns.watch(problem)
        self._turns.owe(problem, self._watched(problem, total.value))
        self._end(problem, total)
        return total

    def _next(self, name: str, batches: Sequence[Any] | None) -> Problem:
        """Return the problem called `name`, whose turn it must be, with its batches handed in."""
        self._turns.settle()
        self._by_hand = True
        turn = self.turn
        if turn.problem != name:
            raise RuntimeError(
                f"it is not the turn of problem {name!r}: step {turn.step} of problem "
                f"{turn.problem!r} comes next (see engine.turn)"
            )
        problem = self.graph[name]
        if batches is not None:
            if problem.batches is not None:
                raise ValueError(
                    f"batches were handed in for problem {name!r}, which has its own; make it with "
                    "batches=None, or leave them out"
                )
            if isinstance(batches, (Tensor, Mapping)) or not batches:
                raise TypeError(
                    f"batches of problem {name!r} must be a list of at least one batch, got "
                    f"{type(batches).__name__}; a single batch goes in a list: [batch]"
                )
            self.graph.probe(problem, batches[0])
            self.graph.streams[name].hand(batches)
        return problem

    def _take(self, problem: Problem) -> Total:
        """Take the step of `problem`, whose turn it is, along its total gradient."""
        total = self._next_gradient(problem, taken=True)
        compare = self._watched(problem, total.value)
        untouched = problem.step(total.value, total.loss)
        compare()
        self.recorder.end(problem, untouched=untouched)
        self._end(problem, total)
        return total

    def _next_gradient(self, problem: Problem, *, taken: bool = False) -> Total:
        """Return the total gradient of `problem`, whose turn it is, unless it diverges."""
        try:
            total = self.gradient(problem, self._turns.begin(), taken=taken)
            self._divergence.see(problem, total.loss, self.round + 1)
        except FloatingPointError as error:
            error.args = (f"{error}. {self._last_good()}",)
            raise
        return total

    def _end(self, problem: Problem, total: Total) -> None:
        """Take in what an update was; tell the callbacks where it ends a round."""
        self._turns.end(problem.name, total.loss, total.metrics, total.infos)
        if self._turns.left:
            return
        self.round += 1
        self._log(self._turns.infos)
        self._call_back()

    def _call_back(self) -> None:
        """Hand the round's record to the callbacks, and see whether one stops the run."""
        self.stopped, self._calling = False, True
        try:
            for callback in self.callbacks:
                try:
                    returned = callback(self._record())
                except Stop:
                    self.stopped = True
                    continue
                if isinstance(returned, bool):
                    raise TypeError(
                        f"callback {described(callback)} returned {returned}, and what callbacks "
                        "return is not looked at; raise blo.Stop to end the run, or return None"
                    )
        finally:
            self._calling = False

    def _record(self) -> Record:
        """Return the record of the round that ended last."""
        return Record(
            self.round,
            dict(self._turns.losses),
            dict(self._turns.metrics),
            dict(self._turns.infos),
            {p.name: p.learning_rate() for p in self.graph.problems},
            self.num_gradients,
            self.num_products,
            self.reduction.num_bytes,
        )

    def _watched(self, problem: Problem, gradient: Gradient) -> Callable[[], None]:
        """Return what compares the step of `problem` with the plain update of its optimizer, where
        a method takes the plain update for what the optimizer did.
        """
        role = self.graph.role(problem)
        if role.answers and role.needs.responds and role.needs.history == 0:
            return self.watch.before(problem, gradient)
        return nothing

    def gradient(
        self, problem: Problem, update: Update, *, keep: bool = False, taken: bool = False
    ) -> Total:
        """Return the total gradient of `problem` on its next batches, and remember what the
        response of `problem` will be computed from.

        The first half of an update. `keep` records the random states of the evaluation in any case,
        `taken` says that the engine takes the step itself.
        """
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            return self._gradient(problem, update, keep, taken)
        with torch.inference_mode(False), torch.enable_grad():
            return self._gradient(problem, update, keep, taken)

    def _gradient(self, problem: Problem, update: Update, keep: bool, own: bool) -> Total:
        stream, role = self.graph.streams[problem.name], self.graph.role(problem)
        if update.step == 1:
            problem.begin()
        problem.set_options()
        first = stream.count
        number = problem.accumulate if problem.batches is not None else stream.handed
        batches = tuple(to_device(stream.next(), problem.device) for _ in range(number))
        if problem.name not in self._compared:
            self._compared.add(problem.name)
            warn_of_identical(problem, batches[0], self.reduction)
        self.recorder.begin(problem, update)
        remember = self.recorder.wants(problem, update)
        keep = keep or remember or role.reads_again or bool(role.unread)
        above = role.reused if remember and update.last else ()
        taken = evaluate(
            self.graph,
            problem,
            (problem, *role.responding, *above),
            batches,
            self.precision,
            keep,
            self.reduction,
            self.recorder.graph_for(problem, update),
        )
        self.num_gradients += int(role.differentiable)
        if taken.found:
            self._note_reads(problem, taken.found)
            role = self.graph.role(problem)
        draw = Draw(batches, taken.random_states, taken.buffers, first)
        infos: dict[str, Info] = {}
        direct: dict[str, Tensors] = {}
        gradient: Gradient = taken.grads[problem.name]
        below = [q for q in role.responding if q.name in taken.grads]
        if below:
            direct = {
                p.name: filled(taken.grads[p.name], p.parameters)
                for p in (problem, *below)
                if reached(taken.grads[p.name])
            }
        states = dict(self.method_states)
        try:
            if below:
                gradient, infos = self._response(problem, direct, draw, taken)
            read = taken.read(gradient if below else ())
            self._check_finite(problem, read, batches)
            self._check_response(problem, read, infos)
        except BaseException:
            self.method_states = states
            raise
        self.num_gradients += sum(i.num_gradients for i in infos.values())
        self.num_products += sum(i.num_products for i in infos.values())
        if self.recorder.wants(problem, update):
            reused = {a.name: filled(taken.grads[a.name], a.parameters) for a in above}
            self.recorder.keep(
                problem,
                update,
                draw,
                gradient,
                reused,
                taken.buffers_after,
                taken.graph,
                taken=own,
            )
        return Total(gradient, read.loss, read.metrics, direct, draw, infos)

    def _response(
        self, problem: Problem, direct: dict[str, Tensors], draw: Draw, taken: Evaluation
    ) -> tuple[Tensors, dict[str, Info]]:
        """Return the total gradient of `problem` and how each response was computed.

        Whether the loss is finite is read with the response, in one wait for the device; where a
        method fails, before its own error is believed.
        """
        try:
            return total_gradient(
                self.graph,
                problem,
                direct,
                draw,
                self.recorder.moments,
                self.method_states,
                self.precision,
                reduction=self.reduction,
            )
        except Exception:
            self._check_finite(problem, taken.read(), draw.batches)
            raise

    def _note_reads(self, problem: Problem, found: tuple[Problem, ...]) -> None:
        """Take in that the loss of `problem` depends on problems that it did not read before."""
        names = [q.name for q in found]
        self.graph.add_read(problem, found)
        logger.warning(
            "in round %d the loss of problem %r reads %s, which it did not on its first batch; "
            "declare reads=%s to have it known from the start",
            self.round + 1,
            problem.name,
            names,
            sorted({*self.graph.reads[problem.name]} - {problem.name}),
        )

    def _check_finite(self, problem: Problem, read: Readings, batches: tuple[Any, ...]) -> None:
        if not math.isfinite(read.loss):
            raise FloatingPointError(
                f"the loss of problem {problem.name!r} is {read.loss} in round {self.round + 1}; "
                f"nothing was updated with it. {remedy(problem, batches)}"
            )
        if not math.isfinite(read.size):
            raise FloatingPointError(
                f"the gradient of the loss of problem {problem.name!r} is not finite in round "
                f"{self.round + 1}, though the loss is ({read.loss:.6g}); nothing was updated "
                "with it. Look for a root, a norm or a logarithm at zero, or a division by zero"
            )

    def _check_response(self, problem: Problem, read: Readings, infos: Mapping[str, Info]) -> None:
        if not math.isfinite(read.response):
            how = "; ".join(f"{key} by {info.method}" for key, info in infos.items())
            raise FloatingPointError(
                f"the hypergradient of problem {problem.name!r} is not finite in round "
                f"{self.round + 1}; nothing was updated with it ({how}). Lower the learning rate "
                "of the lower problem, or use a method with damping"
            )

    def _log(self, responses: dict[str, Info]) -> None:
        for key, info in responses.items():
            settings = f"{key}: {info.method}, at the point {info.point} the last lower step"
            if settings not in self._logged:
                self._logged.add(settings)
                kernels = "; attention on the math kernel where graphs are differentiated twice"
                logger.info("%s%s", settings, kernels if info.num_products else "")
            logger.debug("round %d, %s: %s", self.round, key, info)
            apart = info.disagreement
            if apart is not None and not apart.distance <= MOST_DISAGREEMENT:
                other, remedy = ROUNDING if apart.rounding else CURVATURE
                logger.warning(
                    "%s: the difference of gradients is %.0f%% away from the one at %s the "
                    "radius, so that the response may be that wrong; %s, or use t1t2() or another "
                    "method for exact products",
                    key,
                    100 * apart.distance,
                    other,
                    remedy,
                )

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that the next round depends on: parameters, buffers,
        optimizers, schedulers, streams, callbacks, and the random state of torch, Python, numpy and
        the generators of the losses and loaders.

        Only parameters that the problems own are in it; frozen weights are not. One taken within a
        round, after an interruption, says so (``within_round`` is -1), and no engine loads it.
        Where `step` and `backward` drive the engine, ``within_round`` is the number of updates
        taken, as long as none of them is remembered for a response.
        """
        return {
            "version": checkpoint.VERSION,
            "round": self.round,
            "within_round": self._place_in_round(),
            "num_gradients": self.num_gradients,
            "num_products": self.num_products,
            "method_states": checkpoint.copied(self.method_states),
            "callbacks": [
                [checkpoint.class_name(c), checkpoint.copied(c.state_dict())]
                for c in self._stateful_callbacks()
            ],
            "divergence": self._divergence.state_dict(),
            **checkpoint.state_of(self.graph),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, bit for bit where the operations are
        deterministic and the number of threads is the same.

        Raises:
            ValueError: if the state is not whole, or belongs to other problems, parameters or
                optimizers; nothing is changed then.
        """
        checkpoint.check(self.graph, state)
        callbacks, saved = self._stateful_callbacks(), state.get("callbacks", [])
        names = [checkpoint.class_name(c) for c in callbacks]
        if "callbacks" in state and [name for name, _ in saved] != names:
            raise ValueError(
                f"state holds the callbacks {[name for name, _ in saved]}, and those of the engine "
                f"that have a state are {names}; give it those it was saved with"
            )
        before = [checkpoint.copied(c.state_dict()) for c in callbacks]
        try:
            for callback, (_, value) in zip(callbacks, saved, strict="callbacks" in state):
                callback.load_state_dict(checkpoint.copied(value))
            checkpoint.load(self.graph, state)
        except BaseException:
            for callback, value in zip(callbacks, before, strict=True):
                callback.load_state_dict(value)
            raise
        self.round = state["round"]
        self.num_gradients, self.num_products = state["num_gradients"], state["num_products"]
        self.method_states = checkpoint.method_states(self.graph, state["method_states"])
        self._divergence.load_state_dict(state.get("divergence", {}))
        self.recorder = Recorder(self.graph, joins=self.reduction.is_local)
        self._turns.go_to(state.get("within_round", 0))
        refuse_unequal(self.graph, self.reduction)

    def save(self, path: str | Path) -> None:
        """Save `state_dict` to a file, whole or not at all: the file is written beside `path`,
        synchronised with the disk and renamed. The file that was at `path` is kept beside it, with
        ".previous" at the end of its name.

        ``torch.load(path, weights_only=True)`` reads it, too; a checksum is part of it.

        Raises:
            RuntimeError: within a round, after an interruption.
            TypeError: if a state holds what is read back only by running code from the file.
            ValueError: if `path` is a folder, a device or a pipe.
            OSError: if it cannot be written; what was saved before is as it was.

        Example:
            >>> import tempfile, torch
            >>> from blo import Engine, Problem, ProblemGraph
            >>> y = torch.nn.ParameterList([torch.tensor(2.0)])
            >>> sgd = torch.optim.SGD(y.parameters(), 0.25)
            >>> problem = Problem("fit", lambda _: (y[0] - 1) ** 2, y, sgd, [None])
            >>> engine = Engine(ProblemGraph([problem]))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     for record in engine.rounds(2):
            ...         engine.save(f"{folder}/state.pt")
            ...     _ = engine.run(5)
            ...     _ = engine.load(f"{folder}/state.pt")
            >>> engine.round, y[0].item()
            (2, 1.25)
        """
        if self._place_in_round() < 0:
            raise RuntimeError(
                f"the engine is within a round, after round {self.round}, and a state that is "
                "not of the end of a round cannot be gone on from; load the last one, or run the "
                "round to its end, before save()"
            )
        place = _path(path)
        if place.exists() and not place.is_file():
            kind = "folder" if place.is_dir() else "device"
            raise ValueError(f"path must be a file, got the {kind} {place}; write 'name/state.pt'")
        state_files.write(place, self.state_dict())
        self._saved = place

    def load(self, path: str | Path) -> Path:
        """Continue from a file that `save` wrote, and return the file that was read: the one before
        where that at `path` is damaged or missing, which is logged as a warning.

        Raises:
            FileNotFoundError: if nothing was saved there.
            ValueError: if no file is whole, or the state belongs to other problems; nothing is
                changed then.
        """
        given = _path(path)
        state, place = state_files.read(given)
        self.load_state_dict(state)
        self._saved = given
        return place

    def _place_in_round(self) -> int:
        """Return the number of updates taken in this round, 0 between two rounds; -1 where the rest
        of the round depends on more than a state holds: an update was broken off, a step is left to
        the caller, or one is remembered for the responses to come.
        """
        turns, taken = self._turns, self._turns.taken()
        remembered = any(self.recorder.wants(self.graph[u.problem], u) for u in taken)
        if not turns.are_settled() or remembered or (taken and not self._by_hand):
            return -1
        return len(taken)

    def _last_good(self) -> str:
        """Return where the last good state is, for messages."""
        if self._saved is None:
            return "No state was saved; save(path) after a round keeps one"
        return f"The last state saved is {self._saved}; load(path) goes on from it"

    def _stateful_callbacks(self) -> list[Any]:
        """Return the callbacks that have a state, or the objects whose methods they are, each
        once.
        """
        owners = (getattr(c, "__self__", c) for c in self.callbacks)
        found = {id(o): o for o in owners if o is not self}
        return [
            o
            for o in found.values()
            if all(callable(getattr(o, n, None)) for n in ("state_dict", "load_state_dict"))
        ]


def _path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a path, got {described(path)}; write 'folder/state.pt'")
    if not Path(path).name:
        raise ValueError(f"path must name a file, got {str(path)!r}; write 'folder/state.pt'")
    return Path(path)


def _check_count(num_rounds: int, least: int) -> None:
    if type(num_rounds) is not int or num_rounds < least:
        raise ValueError(f"num_rounds must be an integer of at least {least}, got {num_rounds!r}")


def _refuse_unfit(graph: Any, callbacks: Any, divergence: Any) -> None:
    """Raise unless the arguments of an engine are of the right kinds."""
    if not isinstance(graph, ProblemGraph):
        raise TypeError(
            f"graph must be a ProblemGraph, got {described(graph)}; write "
            "Engine(ProblemGraph([upper, lower]))"
        )
    if not isinstance(callbacks, (list, tuple)):
        raise TypeError(
            f"callbacks must be a list of functions of a Record, got {described(callbacks)}; "
            "write callbacks=[...]"
        )
    for callback in callbacks:
        if not callable(callback) or isinstance(callback, type):
            raise TypeError(
                f"callbacks must be functions of a Record, got {described(callback)}; an object "
                "of a class needs __call__"
            )
    is_factor = type(divergence) in (int, float) and 1 < divergence < math.inf
    if divergence is not None and not is_factor:
        raise ValueError(
            "divergence must be a factor above 1 that a loss may not grow by, or None for never, "
            f"got {described(divergence)}"
        )
