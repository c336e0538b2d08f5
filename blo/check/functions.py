"""Two plain functions as a subject of the check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from blo.check.evidence import coarsest, full_precision, witnessed
from blo.check.landscape import Partials, Values
from blo.check.report import LinearSolve
from blo.check.subject import Claim, Parts, Settings, Stand
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
    """``f(x, y*(x))`` by one method at one `x`; see `Subject`."""

    name = UPPER
    below: tuple[str, ...] = (LOWER,)
    felt: Mapping[str, tuple[str, ...]] = {UPPER: (LOWER,), LOWER: ()}
    inputs: Mapping[str, tuple[str, ...]] = {UPPER: (), LOWER: (UPPER,)}

    def __init__(
        self,
        upper_loss: LossFn,
        lower_loss: LossFn,
        upper: Tensors,
        lower: Tensors,
        method: Method,
        solve: Solve | None,
        settings: Settings,
    ) -> None:
        self.devices = devices_of(upper + lower)
        device = lower[0].device
        states = [settings.random_state(10 + i, self.devices) for i in (0, 1)]
        self._objectives = {
            UPPER: FunctionObjective(upper_loss, states[0], device, "upper_loss"),
            LOWER: FunctionObjective(lower_loss, states[1], device, "lower_loss"),
        }
        self._method, self._solver, self._settings = method, solve, settings
        one_step = isinstance(method, OneStep)
        self.claims: Mapping[str, Claim] = {
            LOWER: Claim.GRADIENT_STEP if one_step else Claim.SOLUTION
        }
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

    def stand(self, name: str, values: Values, stands: Mapping[str, Stand], *, steps: str) -> Stand:
        """Return the given lower tensors, and one gradient step taken again at each `x`, shifted so
        that the step at the present `x` leads to them.
        """
        x, y, method = values[UPPER], values[LOWER], self._method
        length: float | tuple[float, ...] = 0.0
        if isinstance(method, OneStep):
            point = Point(x, y)
            length = method.step(Context(LowerObjective(()), point, point))
        known = self.evaluate(LOWER, values, (LOWER,))[1][LOWER]

        def again(there: Values) -> Tensors:
            gradient = self.evaluate(LOWER, {**there, LOWER: y}, (LOWER,))[1][LOWER]
            return subtract(y, scale(length, subtract(gradient, known)))

        return Stand(y, again, None)

    def hypergradient(
        self, values: Values, stands: Mapping[str, Stand], number: int, log: list[LinearSolve]
    ) -> Parts:
        """Return the hypergradient at `values`."""
        state = None
        for last in (*(False,) * self._settings.warm_up, True):
            watched = number != 0 and last
            method = witnessed(self._method, LOWER, log) if watched else self._method
            with self._settings.random_state(number if last else 0, self.devices).replay():
                result = total_derivative(
                    self._objectives[UPPER],
                    self._objectives[LOWER],
                    values[UPPER],
                    values[LOWER],
                    method=method,
                    state=state,
                )
            state = result.state
        response = subtract(result.grads, result.direct)
        return Parts(result.direct, response, {f"{UPPER} <- {LOWER}": result.info})
