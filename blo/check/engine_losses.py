"""The losses of an engine's problems at any values: fixed batches, random draws and buffers, in
float64 where they agree to it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from blo.batches import fresh
from blo.check.landscape import Values
from blo.check.selection import Selection
from blo.check.subject import Claim, coarsest, full_precision
from blo.derivatives.pullback import Gradient, mean, pulled_back
from blo.derivatives.random_state import RandomState, devices_of
from blo.engine import Engine
from blo.evaluation import ModuleObjective
from blo.linear.tensors import Tensors, detach, leaves
from blo.problem import Problem
from blo.record import Draw


class EngineLosses:
    """The losses of the problems that a check is about; modules keep their own values.

    Args:
        engine: of the problems.
        names: of the problems concerned.
        moving: of those beside that are put elsewhere, too.
        chosen: their batches.
        claims: what the methods of those below claim.
        states: the random state that each loss is evaluated with.

    Attributes:
        draws: what each loss is evaluated on, in the type of the references.
        start: all parameters, in that type.
        narrow: all parameters as they are.
        dtype: the coarsest type of the parameters concerned.
        devices: where all parameters are.
        unwidened: why the references are not computed in float64; None where they are.
    """

    def __init__(
        self,
        engine: Engine,
        names: Sequence[str],
        moving: Sequence[str],
        chosen: Selection,
        claims: Mapping[str, Claim],
        states: Mapping[str, RandomState],
    ) -> None:
        self._graph, self._space = engine.graph, engine.graph.space
        self._precision, self._chosen, self._claims = engine.precision, chosen, claims
        self._states = states
        self.devices = devices_of(self._space.parameters())
        self.narrow = {p.name: detach(p.parameters) for p in self._graph.problems}
        self._wide = False
        self._buffers = self._space.copies_of(range(len(self._space.versions())))
        self._others = {id(t): (t, t.detach()) for t in self._space.parameters()}
        self.draws = {name: self._first_draw(self._graph[name]) for name in names}
        self.dtype = coarsest(tuple(t for name in names for t in self.narrow[name]))
        present = {n: self.narrow[n] for n in dict.fromkeys((*names, *moving))}
        self.unwidened = None if self.dtype == torch.float64 else self._widen(present)
        self.start = self.cast(present)

    def slope(
        self, name: str, values: Values, draw: Draw, wanted: Sequence[str]
    ) -> tuple[float, Gradient]:
        """Return the mean loss of a problem on a draw at `values` and its gradient for the problems
        `wanted`, in the type of the references.
        """
        used = {k: leaves(v) if k in wanted else detach(v) for k, v in values.items()}
        placed = tuple(t for k in used for t in self._graph[k].parameters)
        known = {id(t) for t in placed} if self._wide else self._others
        others = [pair for key, pair in self._others.items() if key not in known]
        inputs = tuple(t for w in wanted for t in used[w])
        devices = self.devices if self._wide else ()
        loss, pieces = 0.0, []
        for batch, state, buffers in zip(
            draw.batches, draw.random_states, draw.buffers, strict=True
        ):
            objective = ModuleObjective(
                space=self._space,
                upper=(),
                lower=placed,
                loss=self._graph[name].loss,
                batch=batch,
                random_state=state,
                autocast=None if self._wide else self._precision,
                name=name,
                held=tuple(t for t, _ in others),
                values=tuple(v for _, v in others),
                buffers=buffers,
                copies=True,
            )
            with full_precision(devices), objective.scope((), flat(used)) as evaluate:
                value = evaluate()
                loss += float(value.detach()) / len(draw.batches)
                pieces.append(pulled_back((value,), inputs, (torch.ones_like(value),)))
        return loss, mean(pieces)

    def _first_draw(self, p: Problem) -> Draw:
        """Return what the references of `p` are evaluated on: the batches of its first step, or,
        where a method differentiates steps, of its last.
        """
        batches = self.batches_of(p.name, p.steps)
        states = [self._states[p.name]]
        with states[0].replay(), torch.no_grad(), self._space.substituted((), ()):
            for batch in batches[:-1]:
                p.loss(fresh(batch))
                states.append(RandomState.capture(self.devices, p.generators))
        return Draw(batches, tuple(states), (self._buffers,) * len(batches), 0)

    def batches_of(self, name: str, step: int) -> tuple[Any, ...]:
        """Return copies of the batches of a step of problem `name`, counted from 1."""
        share, known = self._chosen.shares[name], self._chosen.batches[name]
        first = (
            0 if self._claims.get(name, Claim.SOLUTION) is Claim.SOLUTION else (step - 1) * share
        )
        return tuple(fresh(known[(first + i) % len(known)]) for i in range(share))

    def _widen(self, values: Values) -> str | None:
        """Evaluate in float64 from now on if the losses agree to do so; else return why not."""
        kept = self._buffers, self._others, self.draws
        narrow = {name: self.slope(name, values, draw, ())[0] for name, draw in self.draws.items()}
        self._wide = True
        self._buffers = {i: _wide(b) for i, b in self._buffers.items()}
        self._others = {key: (p, _wide(v)) for key, (p, v) in self._others.items()}
        self.draws = {name: self.cast_draw(draw) for name, draw in self.draws.items()}
        reason = self._disagreement(narrow, self.cast(values))
        if reason is not None:
            self._wide = False
            self._buffers, self._others, self.draws = kept
        return reason

    def _disagreement(self, narrow: Mapping[str, float], values: Values) -> str | None:
        """Return how the losses at `values` in float64 differ from what they were, None if not."""
        for name, value in narrow.items():
            try:
                wide = self.slope(name, values, self.draws[name], ())[0]
            except (RuntimeError, TypeError, ValueError) as error:
                return f"the loss of {name!r} raises {str(error).splitlines()[0]!r}"
            if not math.isclose(wide, value, rel_tol=1e-2, abs_tol=1e-3):
                return f"the loss of {name!r} is {wide:.4g} in float64 and {value:.4g} without"
        return None

    def cast(self, values: Values) -> dict[str, Tensors]:
        """Return `values` in the type that the references are computed in."""
        return {k: tuple(_wide(t) if self._wide else t for t in v) for k, v in values.items()}

    def cast_draw(self, draw: Draw) -> Draw:
        """Return `draw` in the type that the references are computed in, with all buffers."""
        buffers: list[Mapping[int, Tensor]] = [{**self._buffers, **known} for known in draw.buffers]
        batches = draw.batches
        if self._wide:
            buffers = [{i: _wide(b) for i, b in known.items()} for known in buffers]
            batches = tuple(_wide(b) for b in batches)
        return replace(draw, batches=batches, buffers=tuple(buffers))


def flat(values: Values) -> Tensors:
    """Return all tensors of `values`, problem by problem."""
    return tuple(t for v in values.values() for t in v)


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
