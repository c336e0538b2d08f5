"""The losses of an engine's problems as functions of given parameters, in float64 where they can be
computed in it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from blo.check.evidence import full_precision
from blo.check.landscape import Partials, Values
from blo.derivatives.lower import LowerObjective
from blo.evaluation import ModuleObjective
from blo.graph import ProblemGraph
from blo.linear.tensors import Tensors, axpy, detach, dot, leaves, scale, zeros_like
from blo.problem import Problem
from blo.record import Draw


class Losses:
    """What the problems minimise, on fixed batches and random draws, without autocast.

    Args:
        graph: the problems.
        checked: the one whose hypergradient is checked.
        draws: what the losses are evaluated on, by problem.
        buffers: of the modules.
    """

    def __init__(
        self,
        graph: ProblemGraph,
        checked: Problem,
        draws: Mapping[str, Draw],
        buffers: Sequence[Tensor],
    ) -> None:
        self._graph = graph
        self._checked = checked
        self.draws = dict(draws)
        self._devices = {t.device for p in graph.problems for t in p.parameters}
        self._buffers = tuple(buffers)
        self._others: dict[int, tuple[Tensor, Tensor]] = {}
        self._wide = False

    def cast(self, values: Values) -> dict[str, Tensors]:
        """Return `values` in the type that the losses are computed in."""
        if not self._wide:
            return dict(values)
        return {k: tuple(t.double() for t in v) for k, v in values.items()}

    def widen(self, values: Values) -> str | None:
        """Compute in float64 from now on, if the losses agree to do so; else return why not."""
        narrow = {name: self.evaluate(name, values, ())[0] for name in self.draws}
        kept = self.draws, self._buffers
        self._wide = True
        self._buffers = tuple(_wide(b) for b in self._buffers)
        self._others = {id(p): (p, _wide(p.detach())) for p in self._graph.space.parameters()}
        self.draws = {name: _wide_draw(draw) for name, draw in self.draws.items()}
        reason = None
        for name, value in narrow.items():
            try:
                wide = self.evaluate(name, self.cast(values), ())[0]
            except (RuntimeError, TypeError, ValueError) as error:
                reason = f"the loss of {name!r} raises {str(error).splitlines()[0]!r}"
                break
            if not math.isclose(wide, value, rel_tol=1e-2, abs_tol=1e-3):
                reason = f"the loss of {name!r} is {wide:.4g} in float64 and {value:.4g} without"
                break
        if reason is not None:
            self._wide, self._others = False, {}
            self.draws, self._buffers = kept
        return reason

    def redraw(self, name: str, draw: Draw) -> None:
        """Evaluate the loss of problem `name` on another draw from now on."""
        self.draws[name] = _wide_draw(draw) if self._wide else draw

    def evaluate(self, name: str, values: Values, wanted: Sequence[str]) -> tuple[float, Partials]:
        """Return what problem `name` minimises at `values`, and its derivatives for the problems
        `wanted`.

        That is its loss, for the checked problem; for the others with the sign that its optimizer
        gives it and the penalty of coupled weight decay.
        """
        problem = self._graph[name]
        used = {k: leaves(v) if k in wanted else detach(v) for k, v in values.items()}
        loss, grads = self._mean(problem, used, tuple(t for w in wanted for t in used[w]))
        partials: Partials = {}
        for w in wanted:
            partials[w], grads = grads[: len(used[w])], grads[len(used[w]) :]
        if problem is self._checked:
            return loss, partials
        options = problem.options()
        lower = LowerObjective((), problem.weight_decay(options), problem.signs(options))
        loss *= lower.sign
        partials = {w: lower.signed(g) for w, g in partials.items()}
        if lower.decay is not None:
            loss += 0.5 * float(dot(scale(lower.decay, values[name]), values[name]))
            if name in partials:
                partials[name] = lower.decayed(partials[name], values[name])
        return loss, partials

    def _mean(self, problem: Problem, used: Values, inputs: Tensors) -> tuple[float, Tensors]:
        """Return the mean loss over the batches of the draw, and its gradient for `inputs`."""
        placed = tuple(p for name in used for p in self._graph[name].parameters)
        known = {id(p) for p in placed}
        others = [(p, v) for key, (p, v) in self._others.items() if key not in known]
        draw = self.draws[problem.name]
        loss, grads, share = 0.0, zeros_like(inputs), 1.0 / len(draw.batches)
        for batch, state in zip(draw.batches, draw.random_states, strict=True):
            objective = ModuleObjective(
                space=self._graph.space,
                upper=(),
                lower=placed,
                loss=problem.loss,
                batch=batch,
                random_state=state,
                precision=None,
                name=problem.name,
                held=tuple(p for p, _ in others),
                values=tuple(v for _, v in others),
            )
            values = tuple(t for v in used.values() for t in v)
            with (
                full_precision(self._devices),
                self._graph.space.with_buffers(self._buffers),
                objective.scope((), values) as evaluate,
            ):
                value = evaluate()
                loss += share * float(value.detach())
                if inputs and value.requires_grad:
                    found = torch.autograd.grad(
                        value, inputs, allow_unused=True, materialize_grads=True
                    )
                    grads = axpy(share, found, grads)
        return loss, grads


def _wide_draw(draw: Draw) -> Draw:
    return replace(draw, batches=tuple(_wide(b) for b in draw.batches))


def _wide(batch: Any) -> Any:
    """Return `batch` with its floating-point tensors in float64."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, MutableMapping):
        widened = copy.copy(batch)
        widened.update({k: _wide(v) for k, v in batch.items()})
        return widened
    if isinstance(batch, (list, tuple)):
        items = [_wide(v) for v in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch
