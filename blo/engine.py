"""The training loop over a problem graph."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from blo.adjoints import total_gradient
from blo.batches import own_copy, to_device
from blo.derivatives.objective import scalar
from blo.derivatives.precision import fresh_autocast
from blo.derivatives.random_state import RandomState
from blo.graph import ProblemGraph, Update
from blo.linear.tensors import Tensors, average
from blo.methods.context import Info
from blo.problem import Problem
from blo.record import Draw, Past, PastUpdate, Record, Step

logger = logging.getLogger("blo")

Gradient: TypeAlias = tuple[Tensor | None, ...]  # None where the loss does not reach a parameter


class _Evaluation(NamedTuple):
    """A problem's loss on the batches of one update, and its gradients by problem."""

    loss: float
    metrics: dict[str, float]
    grads: dict[str, Gradient]
    random_states: tuple[RandomState, ...]


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
        callbacks: called with the `Record` of every round.

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
    ) -> None:
        if precision not in (None, torch.bfloat16):
            raise ValueError(
                f"precision must be None or torch.bfloat16, got {precision}; float16 needs loss "
                "scaling, which is not supported"
            )
        self.graph = graph
        self.precision = precision
        self.callbacks = tuple(callbacks)
        self.round = 0
        self.num_gradients = 0
        self.num_products = 0
        self._schedule = graph.schedule()
        self._responding = {p.name: graph.responding(p) for p in graph.problems}
        self._inputs = {p.name: graph.inputs(p) for p in graph.problems}
        self._felt = {p.name: graph.felt(p) for p in graph.problems}
        self._answers = {p.name for p in graph.problems if graph.inputs(p)}
        self._read_again = {
            p.name
            for p in graph.problems
            if any(q.method.requirements.readers for q in self._responding[p.name])
        }
        self._differentiable = {p.name: graph.entry(p) is None for p in graph.problems}
        self._steps: dict[str, Step] = {}
        self._past: dict[str, Past] = {}
        self._states: dict[str, Tensors | None] = {}
        self._logged: set[str] = set()

    def run(self, num_rounds: int) -> Record:
        """Train for `num_rounds` rounds and return the record of the last."""
        if num_rounds < 1:
            raise ValueError(f"num_rounds must be at least 1, got {num_rounds}")
        for record in self.rounds(num_rounds):
            last = record
        return last

    def rounds(self, num_rounds: int) -> Iterator[Record]:
        """Yield the record of each of `num_rounds` rounds as it is done; a round is one update of
        the top problem.

        Raises:
            FloatingPointError: if a loss is not finite, before it is used.
        """
        for _ in range(num_rounds):
            record = self._round()
            for callback in self.callbacks:
                callback(record)
            yield record

    def _round(self) -> Record:
        losses: dict[str, float] = {}
        metrics: dict[str, dict[str, float]] = {}
        responses: dict[str, Info] = {}
        for update in self._schedule:
            problem = self.graph[update.problem]
            losses[problem.name], metrics[problem.name], infos = self._update(problem, update)
            responses.update(infos)
        self.round += 1
        self._log(responses)
        rates = {p.name: float(p.optimizer.param_groups[0]["lr"]) for p in self.graph.problems}
        return Record(
            self.round, losses, metrics, responses, rates, self.num_gradients, self.num_products
        )

    def _update(
        self, problem: Problem, update: Update
    ) -> tuple[float, dict[str, float], dict[str, Info]]:
        """Take one step of `problem` along its total gradient."""
        total = self.gradient(problem, update)
        _step(problem, total.value, total.loss)
        return total.loss, total.metrics, total.infos

    def gradient(self, problem: Problem, update: Update, *, keep: bool = False) -> Total:
        """Return the total gradient of `problem` on its next batches, and remember what the
        response of `problem` will be computed from.

        The first half of an update. `keep` records the random states of the evaluation in any case.
        """
        stream = self.graph.streams[problem.name]
        first = stream.count
        batches = tuple(to_device(stream.next(), problem.device) for _ in range(problem.accumulate))
        answers = problem.name in self._answers
        below = self._responding[problem.name]
        above = self._reused_gradients(problem) if answers and update.last else ()
        past = self._past_of(problem, update) if answers else None
        kept = (None, None) if past is None else self._iterate_kept(problem, update, past)
        keep = keep or (answers and update.last) or past is not None
        keep = keep or problem.name in self._read_again
        taken = self._evaluate(problem, (problem, *below, *above), batches, keep)
        draw = Draw(batches, taken.random_states, first)
        infos: dict[str, Info] = {}
        direct: dict[str, Tensors] = {}
        gradient = taken.grads[problem.name]
        if below:
            direct = {
                p.name: _filled(taken.grads[p.name], p.parameters)
                for p in (problem, *below)
                if _any(taken.grads[p.name])
            }
            gradient, infos = total_gradient(
                self.graph, problem, direct, draw, self._steps, self._states, self.precision
            )
            self.num_gradients += sum(i.num_gradients for i in infos.values())
            self.num_products += sum(i.num_products for i in infos.values())
        if past is not None:
            past.updates.append(self._past_update(problem, draw, gradient, *kept))
        if answers and update.last:
            reused = {a.name: _filled(taken.grads[a.name], a.parameters) for a in above}
            self._steps[problem.name] = self._step_kept(problem, draw, gradient, reused, past)
        return Total(gradient, taken.loss, taken.metrics, direct, draw, infos)

    def _reused_gradients(self, problem: Problem) -> tuple[Problem, ...]:
        """Return the problems above whose gradients the method takes over from the lower step."""
        wanted = problem.method.requirements.upper_gradient and not self.graph.below(problem)
        return self._inputs[problem.name] if wanted else ()

    def _past_of(self, problem: Problem, update: Update) -> Past | None:
        """Return the record of the last updates if this one belongs to it, begun anew where due."""
        length = problem.method.requirements.history
        first = 1 if length is None else max(1, problem.steps - length + 1)
        if length == 0 or update.step < first:
            return None
        if update.step == first:
            self._steps.pop(problem.name, None)  # else two records would be held at a time
            lower = _copies(problem.parameters)
            self._past[problem.name] = Past(lower, problem.optimizer_states())
        return self._past[problem.name]

    def _iterate_kept(
        self, problem: Problem, update: Update, past: Past
    ) -> tuple[Tensors | None, tuple[dict[str, Any], ...] | None]:
        """Return what `problem` stands at before this update, if it is one of those to be kept."""
        needs = problem.method.requirements
        length = problem.steps if needs.history is None else min(needs.history, problem.steps)
        stride = math.isqrt(length - 1) + 1 if needs.stride is None else needs.stride
        position = len(past.updates)
        if position == 0 or stride == 0 or position % stride:
            return None, None
        return _copies(problem.parameters), problem.optimizer_states()

    def _past_update(
        self,
        problem: Problem,
        draw: Draw,
        gradient: Gradient,
        lower: Tensors | None,
        states: tuple[dict[str, Any], ...] | None,
    ) -> PastUpdate:
        felt = self._felt[problem.name]
        return PastUpdate(
            draw=draw,
            options=problem.options(),
            received=tuple(g is not None for g in gradient),
            lower=lower,
            states=states,
            below={q.name: _copies(q.parameters) for q in felt},
            below_steps={q.name: self._steps[q.name] for q in felt if q.name in self._steps},
        )

    def _step_kept(
        self,
        problem: Problem,
        draw: Draw,
        gradient: Gradient,
        reused: dict[str, Tensors],
        past: Past | None,
    ) -> Step:
        """Return what the response of `problem` will be computed from, just before it steps."""
        needs = problem.method.requirements
        moving = [a for a in self._inputs[problem.name] if needs.before and a is not self.graph.top]
        own = problem.parameters
        return Step(
            draw=draw,
            learning_rates=problem.learning_rates(),
            lower=_copies(own) if needs.before else None,
            upper={a.name: _copies(a.parameters) for a in moving},
            upper_gradient=reused,
            # A copy: hooks of the optimizer may change the gradient in place.
            lower_gradient=_copies(_filled(gradient, own)) if needs.lower_gradient else None,
            past=past,
        )

    def _evaluate(
        self, problem: Problem, wanted: Sequence[Problem], batches: tuple[Any, ...], keep: bool
    ) -> _Evaluation:
        """Return the loss and its partial derivatives for the parameters of `wanted`.

        One forward and one backward pass a batch, whatever is wanted; no backward pass for a loss
        without gradient.
        """
        differentiable = self._differentiable[problem.name]
        parameters = tuple(t for p in wanted for t in p.parameters)
        losses: list[float] = []
        pieces: list[Gradient] = []
        states: list[RandomState] = []
        metrics: dict[str, float] = {}
        for batch in batches:
            if keep:
                states.append(RandomState.capture(dict.fromkeys(t.device for t in parameters)))
            with fresh_autocast(problem.device, self.precision), _gradients_on(differentiable):
                output = problem.loss(own_copy(batch))
            loss = scalar(output, f"loss of problem {problem.name!r}")
            losses.append(self._finite(loss, problem))
            metrics = _scalars(output)
            pieces.append(
                torch.autograd.grad(loss, parameters, allow_unused=True)
                if differentiable
                else (None,) * len(parameters)
            )
        self.num_gradients += int(differentiable)
        grads = pieces[0] if len(pieces) == 1 else _average(pieces, parameters)
        split: dict[str, Gradient] = {}
        for p in wanted:
            split[p.name], grads = grads[: len(p.parameters)], grads[len(p.parameters) :]
        return _Evaluation(sum(losses) / len(losses), metrics, split, tuple(states))

    def _finite(self, loss: Tensor, problem: Problem) -> float:
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss of problem {problem.name!r} is {value} in round {self.round + 1}; "
                "nothing was updated with it. "
                "Lower the learning rate or clip gradients"
            )
        return value

    def _log(self, responses: dict[str, Info]) -> None:
        for key, info in responses.items():
            settings = f"{key}: {info.method}, at the point {info.point} the last lower step"
            if settings not in self._logged:
                self._logged.add(settings)
                kernels = "; attention on the math kernel where graphs are differentiated twice"
                logger.info("%s%s", settings, kernels if info.num_products else "")
            logger.debug("round %d, %s: %s", self.round, key, info)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next round depends on: parameters, buffers, optimizers,
        schedulers, streams, random state.

        Only parameters that the problems own are in it; frozen weights are not.
        """
        graph = self.graph
        problems = {}
        for p in graph.problems:
            problems[p.name] = {
                "parameters": {graph.space.names[id(t)]: t.detach().clone() for t in p.parameters},
                "optimizer": p.optimizer.state_dict(),
                "scheduler": None if p.scheduler is None else p.scheduler.state_dict(),
                "stream": graph.streams[p.name].state_dict(),
            }
        devices = dict.fromkeys(t.device for p in graph.problems for t in p.parameters)
        return {
            "version": 1,
            "round": self.round,
            "num_gradients": self.num_gradients,
            "num_products": self.num_products,
            "problems": problems,
            "buffers": graph.space.buffers(),
            "method_states": dict(self._states),
            "random_state": [s for _, s in RandomState.capture(devices).states],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, bit for bit where the operations are
        deterministic.

        Raises:
            ValueError: if the state belongs to other problems or parameters; nothing is changed
                then.
        """
        graph = self.graph
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
        for p in graph.problems:
            saved = state["problems"][p.name]
            with torch.no_grad():
                for t in p.parameters:
                    t.copy_(saved["parameters"][graph.space.names[id(t)]])
            p.optimizer.load_state_dict(saved["optimizer"])
            if p.scheduler is not None:
                p.scheduler.load_state_dict(saved["scheduler"])
            graph.streams[p.name].load_state_dict(saved["stream"])
        graph.space.load_buffers(state["buffers"])
        self.round = state["round"]
        self.num_gradients, self.num_products = state["num_gradients"], state["num_products"]
        self._states = dict(state["method_states"])
        devices = dict.fromkeys(t.device for p in graph.problems for t in p.parameters)
        places = [device for device, _ in RandomState.capture(devices).states]
        RandomState(tuple(zip(places, state["random_state"], strict=True))).restore()


def _step(problem: Problem, gradient: Gradient, loss: float) -> None:
    """Hand the gradient to the user's optimizer, and its scheduler after it."""
    for parameter, g in zip(problem.parameters, gradient, strict=True):
        parameter.grad = g
    problem.optimizer.step()
    for parameter in problem.parameters:
        parameter.grad = None
    if isinstance(problem.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        problem.scheduler.step(loss)
    elif problem.scheduler is not None:
        problem.scheduler.step()


def _gradients_on(wanted: bool) -> AbstractContextManager[object]:
    """Return a context with gradients on or off; none where they are so already."""
    return nullcontext() if torch.is_grad_enabled() == wanted else torch.set_grad_enabled(wanted)


def _copies(parameters: tuple[Tensor, ...]) -> Tensors:
    return tuple(p.detach().clone() for p in parameters)


def _any(grads: Iterable[Tensor | None]) -> bool:
    return any(g is not None for g in grads)


def _filled(grads: Gradient, like: tuple[Tensor, ...]) -> Tensors:
    pairs = zip(grads, like, strict=True)
    return tuple(torch.zeros_like(t) if g is None else g.detach() for g, t in pairs)


def _average(pieces: list[Gradient], like: tuple[Tensor, ...]) -> Gradient:
    """Return the mean of several gradients; None where no batch reached a parameter."""
    reached = [_any(column) for column in zip(*pieces, strict=True)]
    mean = average([_filled(piece, like) for piece in pieces])
    return tuple(m if r else None for m, r in zip(mean, reached, strict=True))


def _scalars(output: Any) -> dict[str, float]:
    """Return the numbers beside the loss in a dictionary."""
    if not isinstance(output, dict):
        return {}
    return {
        str(k): float(v.detach() if isinstance(v, Tensor) else v)
        for k, v in output.items()
        if k != "loss"
        and (isinstance(v, (int, float)) or (isinstance(v, Tensor) and v.numel() == 1))
    }
