"""The updates of optimizers as differentiable functions of all tensors of a problem.

One step takes the parameters, the optimizer's state and the gradient to new parameters and a new
state,

    (y_t, s_t) = U(y_{t-1}, s_{t-1}, g_t; o_t),

tensor by tensor, by the optimizer's update rule (`blo.steps.rules`). The options ``o_t`` may be
functions of other tensors, and `U` is differentiable in those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from blo.linear.tensors import Tensors, add, detach, leaves, zeros_like
from blo.steps.ends import StartStates, tells_start
from blo.steps.registry import Rule, rule_of
from blo.steps.rules import Initial, Options, State
from blo.steps.tangents import pushed_forward
from blo.steps.together import ClosedForm, together

Gradient: TypeAlias = Sequence[Tensor | None]  # None for a tensor that the optimizer passed over


class Iterate(NamedTuple):
    """What a step starts from: the lower parameters and the optimizer's state of each."""

    lower: Tensors
    states: tuple[State, ...]


class Adjoint(NamedTuple):
    """A cotangent of an `Iterate`; None in place of slots that are all zero."""

    lower: Tensors
    slots: tuple[Tensors, ...] | None = None


class Tangent(NamedTuple):
    """Several tangents of an `Iterate`, stacked along a new first dimension."""

    lower: Tensors
    slots: tuple[Tensors, ...]


class Pullback(NamedTuple):
    """What `UpdateMap.pulled_back` returns.

    Attributes:
        adjoint: cotangent of the iterate before the step, at fixed gradient and options.
        gradient: cotangent of each tensor's gradient; None where that is None.
        end: the iterate after the step, without graph.
        options: cotangent of each of the tensors that the options are functions of.
    """

    adjoint: Adjoint
    gradient: tuple[Tensor | None, ...]
    end: Iterate
    options: Tensors = ()


@dataclass(frozen=True)
class UpdateMap:
    """The update `U` of an optimizer, with its derivatives.

    Args:
        optimizer: a class whose rule is known: `torch.optim.SGD`, `Adam`, `AdamW`, `NAdam`,
            `Adamax`, `RMSprop`, `Adagrad`, one that `register_update` was called with, or a
            subclass that takes the same step.

    Raises:
        TypeError: for any other optimizer, naming those.

    Example:
        >>> optimizer = torch.optim.SGD([torch.ones(1)], lr=0.1, momentum=0.9)
        >>> update = UpdateMap(torch.optim.SGD)
        >>> start = update.start((torch.ones(1),), ({},), (optimizer.defaults,))
        >>> update.step(start, (torch.ones(1),), (optimizer.defaults,)).lower
        (tensor([0.9000]),)
    """

    optimizer: type

    def __post_init__(self) -> None:
        """Check that the optimizer is known."""
        rule_of(self.optimizer)

    @property
    def is_adaptive(self) -> bool:
        """Whether the step is divided by the size of the gradients seen."""
        return self._rule.untouched is not None

    def tells_start(self, lower: Sequence[Tensor], options: Sequence[Options]) -> bool:
        """Return whether the optimizer's states before a step can be told from those after it.

        Args:
            lower: the parameters.
            options: of each tensor's parameter group.
        """
        by_end = self._rule.by_end
        return by_end is not None and tells_start(lower, [by_end(o) for o in options])

    def start_states(
        self,
        lower: Tensors,
        handed: list[Tensor | None],
        again: Callable[[], Gradient],
        options: Sequence[Options],
        after: Sequence[Mapping[str, Any]],
    ) -> StartStates:
        """Return the optimizer's states before a step, where `tells_start`.

        Args:
            lower: the parameters before the step.
            handed: what the step was taken with; empty where that is not held any more.
            again: evaluates it anew.
            options: of each tensor's parameter group.
            after: the optimizer's states after the step.
        """
        by_end = self._rule.by_end
        assert by_end is not None
        return StartStates(lower, handed, again, [by_end(o) for o in options], after)

    def start(
        self, lower: Tensors, states: Sequence[Mapping[str, Any]], options: Sequence[Options]
    ) -> Iterate:
        """Return the iterate of some parameters and the optimizer's own states (empty before its
        first step).

        Args:
            lower: the parameters.
            states: the optimizer's state of each.
            options: the options of each for the step to come.
        """
        counts = _num_steps(states)
        columns = zip(lower, states, options, counts, strict=True)
        return Iterate(lower, tuple(State(n, self._slots(y, s, o)) for y, s, o, n in columns))

    def step(self, iterate: Iterate, gradient: Gradient, options: Sequence[Options]) -> Iterate:
        """Return the next iterate, in the graph of the arguments.

        Args:
            iterate: the one before.
            gradient: of the lower loss, for each tensor; one whose gradient is None stays as it is.
            options: of each tensor's parameter group. Numbers that are tensors in a graph stay in
                it; all others are read as plain numbers.

        Raises:
            ValueError: if the learning rate is None.
        """
        rule = self._rule
        columns = zip(*iterate, gradient, options, strict=True)
        taken = [(y, s) if g is None else rule.step(y, s, g, o) for y, s, g, o in columns]
        return Iterate(tuple(y for y, _ in taken), tuple(s for _, s in taken))

    def plain_step(
        self,
        lower: Tensors,
        states: Sequence[Mapping[str, Any]],
        gradient: Gradient,
        options: Sequence[Options],
    ) -> Tensors:
        """Return where the optimizer alone would go, without graph, to compare with where it went.

        Args:
            lower: the parameters before the step.
            states: the optimizer's state of each before the step.
            gradient: what the optimizer gets.
            options: of each tensor's parameter group.
        """
        with torch.no_grad():
            return self.step(self.start(lower, states, options), gradient, options).lower

    def without_history(
        self, iterate: Iterate, options: Sequence[Options]
    ) -> tuple[Tensor | None, ...]:
        """Return where an adaptive optimizer has seen no gradient but zero, a mask for each tensor;
        None for the tensors of others.

        Args:
            iterate: after a step.
            options: of each tensor's parameter group.
        """
        untouched = self._rule.untouched
        if untouched is None:
            return (None,) * len(iterate.lower)
        columns = zip(iterate.states, options, strict=True)
        return tuple(untouched(state.slots, o) for state, o in columns)

    def pulled_back(
        self,
        iterate: Iterate,
        gradient: Gradient,
        options: Sequence[Options],
        adjoint: Adjoint,
        variables: Tensors = (),
    ) -> Pullback:
        """Return the cotangent of `iterate` at fixed gradient and the cotangent of the gradient,
        with the iterate after the step.

        Args:
            iterate: before the step.
            gradient: what the step is taken with.
            options: of each tensor's parameter group.
            adjoint: cotangent of the iterate after the step.
            variables: tensors that some of the options are, or are functions of; the graph between
                is freed. See `options_in_graph`.
        """
        closed = self.closed_form(options)
        if closed is not None and not variables:
            return _pulled_back_together(closed, iterate, gradient, options, adjoint)
        start, g = _as_leaves(iterate, gradient)
        with torch.enable_grad():
            end = self.step(start, g, options)
        outputs, weights = end.lower, adjoint.lower
        if adjoint.slots is not None:
            outputs += tuple(t for state in end.states for t in state.slots)
            weights += tuple(t for slots in adjoint.slots for t in slots)
        grads = iter(_weighted(outputs, weights, _inputs(start, g) + variables))
        lower = tuple(next(grads) for _ in start.lower)
        slots = tuple(tuple(next(grads) for _ in state.slots) for state in start.states)
        of_gradient = tuple(None if t is None else next(grads) for t in g)
        return Pullback(Adjoint(lower, slots), of_gradient, _detached(end), tuple(grads))

    def closed_form(self, options: Sequence[Options]) -> ClosedForm | None:
        """Return the step on many tensors at once with its pull-back, for options that are plain
        numbers; None where it is not written for one of these.
        """
        closed = self._rule.closed
        if closed is None or not all(map(closed.serves, {id(o): o for o in options}.values())):
            return None
        return closed

    def gradient_pulled_back(
        self,
        iterate: Iterate,
        gradient: Gradient,
        options: Sequence[Options],
        weights: Tensors,
        variables: Tensors = (),
    ) -> Pullback:
        """Return what `pulled_back` does without the cotangent of the iterate before the step,
        tensor by tensor, so that no more than one of them is in a graph at a time.

        Args:
            iterate: before the step.
            gradient: what the step is taken with.
            options: of each tensor's parameter group.
            weights: cotangent of the parameters after the step.
            variables: as for `pulled_back`; the graph between is kept.
        """
        rule, of_options = self._rule, zeros_like(variables)
        ends: list[tuple[Tensor, State]] = []
        of_gradient: list[Tensor | None] = []
        for y, state, g, group, weight in zip(*iterate, gradient, options, weights, strict=True):
            if g is None:
                ends.append((y, state))
                of_gradient.append(None)
                continue
            if rule.by_gradient is not None and not variables:
                with torch.no_grad():
                    known = rule.by_gradient(y, state, g, group, weight)
                if known is not None:
                    of_gradient.append(known.g)
                    ends.append((known.end, known.state))
                    continue
            leaf = g.detach().requires_grad_()
            with torch.enable_grad():
                end, after = rule.step(y.detach(), state, leaf, group)
            found = _weighted((end,), (weight,), (leaf, *variables), keep=bool(variables))
            of_gradient.append(found[0])
            of_options = add(of_options, found[1:])
            ends.append((end.detach(), State(after.num_steps, detach(after.slots))))
        end_of_all = Iterate(tuple(y for y, _ in ends), tuple(s for _, s in ends))
        return Pullback(Adjoint(()), tuple(of_gradient), end_of_all, of_options)

    def pushed_forward(
        self,
        iterate: Iterate,
        gradient: Gradient,
        options: Sequence[Options],
        tangent: Tangent,
        gradient_tangent: Tensors,
        variables: Tensors = (),
        variables_tangent: Tensors = (),
    ) -> Tangent:
        """Return the tangents of the iterate after the step.

        Args:
            iterate: before the step.
            gradient: what the step is taken with.
            options: of each tensor's parameter group.
            tangent: tangents of `iterate`.
            gradient_tangent: tangents of the gradient, stacked in the same way.
            variables: as for `pulled_back`.
            variables_tangent: their tangents, stacked in the same way.
        """
        start, g = _as_leaves(iterate, gradient)
        with torch.enable_grad():
            end = self.step(start, g, options)
        of_gradient = zip(g, gradient_tangent, strict=True)
        along = tangent.lower + tuple(t for slots in tangent.slots for t in slots)
        along += tuple(t for known, t in of_gradient if known is not None) + variables_tangent
        outputs = end.lower + tuple(t for state in end.states for t in state.slots)
        pushed = iter(pushed_forward(outputs, _inputs(start, g) + variables, along))
        lower = tuple(next(pushed) for _ in end.lower)
        return Tangent(lower, tuple(tuple(next(pushed) for _ in s.slots) for s in end.states))

    @property
    def _rule(self) -> Rule:
        return rule_of(self.optimizer)

    def _slots(self, y: Tensor, state: Mapping[str, Any], options: Options) -> Tensors:
        slots = self._rule.slots(options).items()
        found = [state[name] if name in state else _filled(y, value) for name, value in slots]
        return tuple(t for t in found if t is not None)


def options_in_graph(options: Sequence[Options]) -> Tensors:
    """Return the tensors among the options that are in a graph, each once.

    Args:
        options: of each tensor's parameter group; its parameters are passed over.

    Example:
        >>> lr = torch.tensor(0.1, requires_grad=True)
        >>> options_in_graph([{"lr": lr, "betas": (0.9, 0.999)}, {"lr": lr}])
        (tensor(0.1000, requires_grad=True),)
    """
    values = [value for group in options for name, value in group.items() if name != "params"]
    flat = [v for value in values for v in (value if isinstance(value, tuple | list) else (value,))]
    return tuple({id(v): v for v in flat if isinstance(v, Tensor) and v.requires_grad}.values())


def _pulled_back_together(
    closed: ClosedForm,
    iterate: Iterate,
    gradient: Gradient,
    options: Sequence[Options],
    adjoint: Adjoint,
) -> Pullback:
    """Return what `UpdateMap.pulled_back` does by the closed form of the rule."""
    y, states = list(iterate.lower), list(iterate.states)
    of_y, of_g = list(adjoint.lower), list(gradient)
    of_slots = [
        zeros_like(s.slots) if adjoint.slots is None else adjoint.slots[i]
        for i, s in enumerate(states)
    ]
    with torch.no_grad():
        for at in together(y, states, gradient, options):
            group, count = options[at[0]], states[at[0]].num_steps
            slots = tuple(zip(*(states[i].slots for i in at), strict=True))
            g = tuple(t for t in (gradient[i] for i in at) if t is not None)
            taken = closed.step(tuple(y[i] for i in at), slots, g, group, count)
            after = None
            if adjoint.slots is not None:
                after = tuple(zip(*(adjoint.slots[i] for i in at), strict=True))
            ends = tuple(of_y[i] for i in at)
            found = closed.pulled_back(taken, bool(slots), group, count, ends, after)
            for k, i in enumerate(at):
                y[i], of_y[i], of_g[i] = taken.lower[k], found.lower[k], found.gradient[k]
                states[i] = State(count + 1, tuple(column[k] for column in taken.slots))
                of_slots[i] = tuple(column[k] for column in found.slots)
    end = Iterate(tuple(y), tuple(states))
    return Pullback(Adjoint(tuple(of_y), tuple(of_slots)), tuple(of_g), end)


def _filled(y: Tensor, value: Initial) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    return torch.full_like(y, value)


def _num_steps(states: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the steps that each tensor has taken, with one transfer for those counted on a
    device.
    """
    counts = [state.get("step", 0) for state in states]
    tensors = [c for c in counts if isinstance(c, Tensor)]
    values = iter(torch.stack(tensors).tolist() if tensors else [])
    return [int(next(values)) if isinstance(c, Tensor) else int(c) for c in counts]


def _inputs(start: Iterate, gradient: Gradient) -> Tensors:
    """Return all tensors that a step is a function of."""
    slots = tuple(t for state in start.states for t in state.slots)
    return start.lower + slots + tuple(t for t in gradient if t is not None)


def _weighted(
    outputs: Tensors, weights: Tensors, inputs: Tensors, *, keep: bool = False
) -> Tensors:
    """Return ``sum_i d<output_i, weight_i>/d(inputs)``."""
    columns = [(o, w) for o, w in zip(outputs, weights, strict=True) if o.requires_grad]
    attached, factors = zip(*columns, strict=True)
    return torch.autograd.grad(
        attached, inputs, factors, retain_graph=keep, allow_unused=True, materialize_grads=True
    )


def _as_leaves(iterate: Iterate, gradient: Gradient) -> tuple[Iterate, Gradient]:
    states = tuple(State(s.num_steps, leaves(s.slots)) for s in iterate.states)
    g = tuple(None if t is None else t.detach().requires_grad_() for t in gradient)
    return Iterate(leaves(iterate.lower), states), g


def _detached(iterate: Iterate) -> Iterate:
    states = tuple(State(s.num_steps, detach(s.slots)) for s in iterate.states)
    return Iterate(detach(iterate.lower), states)
