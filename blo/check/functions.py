"""Two plain functions as a subject of the check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

import torch

from blo.check.landscape import Landscape, Partials, Values
from blo.check.subject import (
    Claim,
    Parts,
    Settings,
    Stand,
    coarsest,
    full_precision,
)
from blo.check.witnesses import Log
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.objective import FunctionObjective, LossFn
from blo.derivatives.random_state import devices_of
from blo.linear.tensors import Tensors, detach, leaves, scale, subtract, zeros_like
from blo.methods.context import Context, Method
from blo.methods.implicit import OneStep
from blo.two_level import total_derivative

Solve = Callable[[Tensors], Sequence[torch.Tensor]]

UPPER, LOWER = "upper", "lower"


class FunctionSubject:
    """``f(x, y*(x))`` by one method at one `x`; see `Subject` and `Run`."""

    name = UPPER
    below: tuple[str, ...] = (LOWER,)
    felt: Mapping[str, tuple[str, ...]] = {UPPER: (LOWER,), LOWER: ()}
    inputs: Mapping[str, tuple[str, ...]] = {UPPER: (), LOWER: (UPPER,)}
    saddles: frozenset[str] = frozenset()

    def __init__(
        self,
        losses: tuple[LossFn, LossFn],
        upper: Tensors,
        lower: Tensors,
        method: Method,
        solve: Solve | None,
        settings: Settings,
    ) -> None:
        self.devices = devices_of(upper + lower)
        self._objectives = {
            name: FunctionObjective(
                loss,
                settings.random_state(10 + i, self.devices),
                lower[0].device,
                f"{name}_loss",
            )
            for i, (name, loss) in enumerate(zip((UPPER, LOWER), losses, strict=True))
        }
        self._method, self._solver, self._settings = method, solve, settings
        claim = Claim.GRADIENT_STEP if isinstance(method, OneStep) else Claim.SOLUTION
        self.claims: Mapping[str, Claim] = {LOWER: claim}
        self.methods: Mapping[str, Method] = {LOWER: method}
        self.start = {UPPER: detach(upper), LOWER: detach(lower)}
        self.dtype = coarsest(upper + lower)
        self.precision = self._objectives[LOWER].precision
        self.notes: list[str] = []
        self.symptoms: list[str] = []

    def reads(self, name: str) -> tuple[str, ...]:
        """Return both problems."""
        return UPPER, LOWER

    def look(self, name: str) -> object:
        """Return a loss with the random numbers of now."""
        return self._objectives[name].loss(leaves(self.start[UPPER]), leaves(self.start[LOWER]))

    def evaluate(self, name: str, values: Values, wanted: Sequence[str]) -> tuple[float, Partials]:
        """Return a loss and its partial derivatives, without autocast."""
        used = {k: leaves(v) if k in wanted else detach(v) for k, v in values.items()}
        inputs = tuple(t for w in wanted for t in used[w])
        objective = self._objectives[name]
        with full_precision(self.devices), objective.scope(used[UPPER], used[LOWER]) as evaluate:
            loss = evaluate()
            grads: Tensors = zeros_like(inputs)
            if inputs and loss.requires_grad:
                grads = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        partials: Partials = {}
        for w in wanted:
            partials[w], grads = grads[: len(used[w])], grads[len(used[w]) :]
        return float(loss.detach()), partials

    def solve(self, values: Values) -> dict[str, Tensors] | None:
        """Return `values` with the lower tensors as the caller's solver finds them."""
        if self._solver is None:
            return None
        state = self._objectives[LOWER].random_state
        with full_precision(self.devices), state.replay():
            found = tuple(self._solver(values[UPPER]))
        shapes, wanted = ([tuple(t.shape) for t in v] for v in (found, self.start[LOWER]))
        if shapes != wanted:
            raise ValueError(f"solve must return tensors of shapes {wanted}, got {shapes}")
        return {**values, LOWER: detach(found)}

    @contextmanager
    def run(self, stepped: Set[str], landscape: Landscape, log: Log) -> Iterator[FunctionSubject]:
        """Yield the method at work: this, since nothing is put anywhere."""
        self._watched = log.watched(self._method, LOWER)
        yield self

    def take(self, name: str, values: Values, steps: str) -> Stand:
        """Return the given lower tensors, and one gradient step taken again at each `x`, shifted so
        that the step at the present `x` leads to them.
        """
        x, y, method = values[UPPER], values[LOWER], self._method
        length: float | tuple[float, ...] = 0.0
        if isinstance(method, OneStep):
            length = method.step(Context(LowerObjective(()), Point(x, y), Point(x, y)))
        known = self.evaluate(LOWER, values, (LOWER,))[1][LOWER]

        def again(there: Values) -> Tensors:
            _, gradient = self.evaluate(LOWER, {**there, LOWER: y}, (LOWER,))
            return subtract(y, scale(length, subtract(gradient[LOWER], known)))

        return Stand(y, again)

    def hypergradient(self, values: Values) -> tuple[Parts, Parts]:
        """Return the hypergradient at `values`, by two methods that differ in their witnesses."""
        return self._parts(values, self._method, 0), self._parts(values, self._watched, 1)

    def _parts(self, values: Values, method: Method, number: int) -> Parts:
        state = None
        for last in (*(False,) * self._settings.warm_up, True):
            random_state = self._settings.random_state(number * last, self.devices)
            with random_state.replay():
                result = total_derivative(
                    self._objectives[UPPER],
                    self._objectives[LOWER],
                    values[UPPER],
                    values[LOWER],
                    method=method if last else self._method,
                    state=state,
                )
            state = result.state
        response = subtract(result.grads, result.direct)
        return Parts(result.direct, response, {f"{UPPER} <- {LOWER}": result.info})
