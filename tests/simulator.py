"""Rounds of a problem graph by plain torch, to compare the engine with.

Nothing of the library is used: no adjoint is ever formed, no module edited, no product taken.
Every loss is a function of the values of all problems, and every solution that another problem
sees is written as a *map* ``S(u)`` of the problems above it, a tensor with the value that the
solution has and the derivatives that its method stands for. The total gradient of a problem is
then what autograd finds when the maps of the problems below it are put into its loss.

The maps, at a moment with values ``u0`` above and ``y0`` of the problem itself:

    implicit    the solution of F(u, y) = F(u0, y0) for y, with F the gradient that the
                optimizer descends: the loss's, with its sign and coupled weight decay. Reached by
                Newton steps with the matrix at (u0, y0), kept: each step makes one more order of
                the derivatives right.
    one step    y0 + P(u) - P(u0), P(u) = y' - s g_y(u, y') with y' before the last step.
    unrolled    the same with P the optimizer's steps, taken again from the start of its record.
    alternating y0.

A problem that reads others below it has the loss ``g(u, y, S_r(u, y))``: maps hold maps.

Conventions
-----------
What the definitions leave open, fixed here:

1.  *Order.* Of two problems on different levels the lower is deeper if either reads the other, or
    if the solution of the lower depends on the upper through solutions below. Depth is the
    longest such chain from the top; problems of one depth advance together, in the order of the
    graph, and before each of their steps the next depth runs through all of its own.
2.  *Moment.* Each update has a moment: the values of all problems, and their records, just before
    it. A problem's record is its steps since the problems above it last moved, each with its
    moment, batches, options and optimizer state.
3.  *Implicit maps* are taken at the moment of the update that they are for: all problems at the
    values that the loss above saw, on the batches of the last lower step.
4.  *One-step and unrolled maps* are taken where the steps were: every problem that a step read
    stands as it stood in it, siblings and solutions below included (these with the records of
    then); so does each learning rate, and the matrices of implicit maps inside.
5.  *One-step and unrolled maps inside the loss of another problem* are taken again from the
    values that the problem's own map is taken at, as far as these move with it
    (``retaken="there"``); all other problems stand as they stood in the steps. With
    ``retaken="then"`` all stand as in the steps. Both have the same derivative unless something
    moved between the steps and the moment.
6.  *Side by side.* A solution does not respond to a problem on its own level, even where a
    problem below reads both: such a problem is a constant, with the value of the moment.
7.  *Batches.* The mean over the batches of an update, whatever their sizes; the same for
    responses.
8.  *Scale.* One step's `s` is the learning rate of each parameter in that step, before its
    scheduler.
9.  *Start.* Parameters and optimizer state before the first recorded step are constants.
10. *Without response* (``through_response=False``): the problem's map, not its own update, takes
    the solutions below as constants with their values at the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Values = Mapping[str, Tensors]


@dataclass(frozen=True)
class How:
    """How a solution responds: "implicit", "one step", "unrolled" or "alternating".

    `steps` is the number of steps that are unrolled, all of them if None; `scale` replaces the
    learning rates of one step.
    """

    kind: str
    steps: int | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Node:
    """A problem: its loss as a function of the values of all, and how it is updated.

    `options` are the settings of its torch optimizer, one dictionary a parameter; `pace` is what a
    scheduler multiplies the learning rates with after so many updates.
    """

    name: str
    level: int
    reads: frozenset[str]
    loss: Callable[[Values, Any], Tensor]
    start: Tensors
    batches: Sequence[Any]
    how: How
    optimizer: str = "sgd"
    options: tuple[dict[str, Any], ...] = ()
    steps: int = 1
    accumulate: int = 1
    pace: Callable[[int], float] = lambda _: 1.0
    through_response: bool = True


@dataclass(frozen=True)
class Moment:
    """The values of all problems before an update, and the steps on record of each."""

    values: dict[str, Tensors]
    records: dict[str, tuple[Step, ...]]


@dataclass(frozen=True)
class Step:
    """One update: where everything stood, on what, and with which settings."""

    moment: Moment
    batches: tuple[Any, ...]
    options: tuple[dict[str, Any], ...]
    states: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Update:
    """What an update of a problem came to: its total gradient, and its parameters after it."""

    name: str
    gradient: Tensors
    parameters: Tensors


class Simulator:
    """The rounds of a graph of `Node`, given from top to bottom."""

    def __init__(self, nodes: Sequence[Node], *, retaken: str = "there") -> None:
        self.nodes = {n.name: n for n in nodes}
        self.retaken = retaken
        self._felt: dict[str, list[str]] = {}
        self._inputs: dict[str, set[str]] = {}
        for p in reversed(self.nodes):  # from the bottom
            self._felt[p] = self._find_felt(p)
            self._inputs[p] = self._find_inputs(p)

    # Who moves with whom.

    def felt(self, p: str) -> list[str]:
        """The problems below whose solutions the loss of `p` depends on, top to bottom."""
        return self._felt[p]

    def inputs(self, q: str) -> set[str]:
        """The problems above that the solution of `q` depends on."""
        return self._inputs[q]

    def _find_felt(self, p: str) -> list[str]:
        found = set(self.nodes[p].reads)
        for r in reversed(self._below(p)):
            if r in found:
                found |= self.inputs(r)
        return [r for r in self._below(p) if r in found]

    def _find_inputs(self, q: str) -> set[str]:
        found = set(self.nodes[q].reads)
        if self.nodes[q].through_response:
            for r in self.felt(q):
                found |= self.inputs(r)
        return {a for a in found if self._is_above(a, q)}

    def schedule(self) -> list[tuple[str, int]]:
        """The updates of a round, each with its number among the problem's steps."""
        depth: dict[str, int] = {}
        for q in self.nodes:
            linked = [
                depth[p]
                for p in self.nodes
                if self._is_above(p, q) and (p in self.inputs(q) or q in self.nodes[p].reads)
            ]
            depth[q] = 1 + max(linked) if linked else min(1, len(depth))

        def block(d: int) -> Iterator[tuple[str, int]]:
            here = [p for p in self.nodes if depth[p] == d]
            for t in range(1, 1 + max((self.nodes[p].steps for p in here), default=0)):
                yield from block(d + 1)
                yield from ((p, t) for p in here if t <= self.nodes[p].steps)

        return list(block(0))

    def _below(self, p: str) -> list[str]:
        return [q for q in self.nodes if self._is_above(p, q)]

    def _is_above(self, p: str, q: str) -> bool:
        return self.nodes[p].level < self.nodes[q].level

    # The rounds.

    def run(self, num_rounds: int) -> Iterator[Update]:
        """Yield every update of some rounds, in order."""
        values = {n: p.start for n, p in self.nodes.items()}
        states = {n: tuple({} for _ in p.start) for n, p in self.nodes.items()}
        records: dict[str, tuple[Step, ...]] = {}
        drawn, done = dict.fromkeys(self.nodes, 0), dict.fromkeys(self.nodes, 0)
        for _ in range(num_rounds):
            for name, t in self.schedule():
                node = self.nodes[name]
                batches = tuple(
                    node.batches[(drawn[name] + i) % len(node.batches)]
                    for i in range(node.accumulate)
                )
                moment = Moment(dict(values), dict(records))
                rate = node.pace(done[name])
                options = tuple({**o, "lr": o["lr"] * rate} for o in node.options)
                gradient = self.total_gradient(name, moment, batches)
                step = Step(moment, batches, options, states[name])
                records[name] = (() if t == 1 else records[name]) + (step,)
                values[name], states[name] = stepped(
                    node.optimizer, values[name], states[name], gradient, options
                )
                drawn[name] += node.accumulate
                done[name] += 1
                yield Update(name, gradient, values[name])

    def total_gradient(self, p: str, moment: Moment, batches: Sequence[Any]) -> Tensors:
        """The derivative of the loss of `p` with the solutions below moving with it."""
        own = _leaves(moment.values[p])
        env = self._with_solutions(p, moment, {**moment.values, p: own}, {p}, 1, inside=False)
        loss = _mean([self.nodes[p].loss(env, b) for b in batches])
        return torch.autograd.grad(loss, own, allow_unused=True, materialize_grads=True)

    # The maps.

    def _with_solutions(
        self, p: str, moment: Moment, env: Values, live: set[str], order: int, *, inside: bool
    ) -> dict[str, Tensors]:
        """`env` with the maps of all problems below that the loss of `p` depends on.

        Those in `live` move; `order` is how often the result can be differentiated.
        """
        env, live = dict(env), set(live)
        for r in self.felt(p):
            env[r] = moment.values[r]
            if live & self.inputs(r) and r in moment.records:
                env[r] = self._solution(r, moment, env, live, order, inside=inside)
                live.add(r)
        return env

    def _solution(
        self, q: str, moment: Moment, env: Values, live: set[str], order: int, *, inside: bool
    ) -> Tensors:
        """The map of `q` at `moment`, as far as the problems in `live` move."""
        how, record = self.nodes[q].how, moment.records[q]
        live = {a for a in live if self._is_above(a, q)}
        if how.kind == "alternating":
            return moment.values[q]
        if how.kind == "implicit":
            return self._implicit(q, moment, record[-1], env, live, order)
        count = 1 if how.kind == "one step" else how.steps
        return self._retaken(
            q, moment, record if count is None else record[-count:], env, live, order, inside
        )

    def _implicit(
        self, q: str, moment: Moment, last: Step, env: Values, live: set[str], order: int
    ) -> Tensors:
        node, y = self.nodes[q], moment.values[q]

        def descended(env: Values, y: Tensors) -> Tensor:
            g = self._gradient(q, moment, last.batches, env, live, y, order)
            terms = zip(g, y, last.options, strict=True)
            return _flat([_sign(o) * g + _coupled(node.optimizer, o) * y for g, y, o in terms])

        there = {a: v if a in live else moment.values[a] for a, v in env.items()}
        fixed = {a: _detached(v) for a, v in there.items()}
        point = _leaves(y)
        base = descended(fixed, point)
        rows = [torch.autograd.grad(b, point, retain_graph=True) for b in base]
        inverse = torch.linalg.inv(torch.stack([_flat(row) for row in rows]))
        value = _flat(y)
        for _ in range(order):
            value = value - inverse @ (descended(there, _split(value, y)) - base.detach())
        return _split(value, y)

    def _retaken(
        self,
        q: str,
        moment: Moment,
        record: Sequence[Step],
        env: Values,
        live: set[str],
        order: int,
        inside: bool,
    ) -> Tensors:
        node = self.nodes[q]
        y, states = record[0].moment.values[q], record[0].states
        for step in record:
            then = step.moment
            point = dict(then.values)
            for a in live:
                if inside and self.retaken == "there":
                    point[a] = env[a]
                else:
                    pairs = zip(then.values[a], env[a], strict=True)
                    point[a] = tuple(t + (v - v.detach()) for t, v in pairs)
            g = self._gradient(q, then, step.batches, point, live, y, order)
            if node.how.kind == "one step":
                scales = [
                    o["lr"] if node.how.scale is None else node.how.scale for o in step.options
                ]
                terms = zip(y, scales, step.options, g, strict=True)
                y = tuple(y - s * _sign(o) * g for y, s, o, g in terms)
            else:
                y, states = stepped(node.optimizer, y, states, g, step.options)
        pairs = zip(moment.values[q], y, strict=True)
        return tuple(now + (end - end.detach()) for now, end in pairs)

    def _gradient(
        self,
        q: str,
        moment: Moment,
        batches: Sequence[Any],
        env: Values,
        live: set[str],
        y: Tensors,
        order: int,
    ) -> Tensors:
        """The gradient of the loss of `q` for its own parameters at `y`, in the graph of all."""
        node = self.nodes[q]
        own = tuple(t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in y)
        env = {**env, q: own}
        if node.through_response:
            env = self._with_solutions(q, moment, env, live | {q}, order + 1, inside=True)
        else:
            env |= {r: moment.values[r] for r in self._below(q)}
        loss = _mean([node.loss(env, b) for b in batches])
        return torch.autograd.grad(
            loss, own, create_graph=True, allow_unused=True, materialize_grads=True
        )


# The optimizers, by the formulas of torch's documentation.


def stepped(
    optimizer: str,
    y: Tensors,
    states: Sequence[dict[str, Any]],
    gradient: Tensors,
    options: Sequence[dict[str, Any]],
) -> tuple[Tensors, tuple[dict[str, Any], ...]]:
    """The parameters and the optimizer's states after a step, in the graph of all arguments."""
    rule = _sgd if optimizer == "sgd" else _adam
    pairs = [
        rule(t, s, _sign(o) * g + _coupled(optimizer, o) * t, o, optimizer)
        for t, s, g, o in zip(y, states, gradient, options, strict=True)
    ]
    return tuple(t for t, _ in pairs), tuple(s for _, s in pairs)


def _sgd(y: Tensor, state: dict, g: Tensor, o: dict, _: str) -> tuple[Tensor, dict]:
    momentum = o.get("momentum", 0.0)
    if not momentum:
        return y - o["lr"] * g, {}
    b = g if not state else momentum * state["b"] + (1 - o.get("dampening", 0.0)) * g
    return y - o["lr"] * (g + momentum * b if o.get("nesterov") else b), {"b": b}


def _adam(y: Tensor, state: dict, g: Tensor, o: dict, optimizer: str) -> tuple[Tensor, dict]:
    beta1, beta2 = o.get("betas", (0.9, 0.999))
    zero = torch.zeros_like(y)
    t = state.get("t", 0) + 1
    m = beta1 * state.get("m", zero) + (1 - beta1) * g
    v = beta2 * state.get("v", zero) + (1 - beta2) * g * g
    if optimizer == "adamw":
        y = y * (1 - o["lr"] * o.get("weight_decay", 0.01))
    y = y - o["lr"] * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + o.get("eps", 1e-8))
    return y, {"t": t, "m": m, "v": v}


def _sign(options: Mapping[str, Any]) -> float:
    return -1.0 if options.get("maximize") else 1.0


def _coupled(optimizer: str, options: Mapping[str, Any]) -> float:
    return 0.0 if optimizer == "adamw" else options.get("weight_decay", 0.0)


def _mean(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).mean()


def _leaves(tensors: Tensors) -> Tensors:
    return tuple(t.detach().requires_grad_() for t in tensors)


def _detached(tensors: Tensors) -> Tensors:
    return tuple(t.detach() for t in tensors)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _split(vector: Tensor, like: Tensors) -> Tensors:
    parts = vector.split([t.numel() for t in like])
    return tuple(part.view_as(t) for part, t in zip(parts, like, strict=True))
