"""The check of a hypergradient of plain functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from blo.check.evidence import (
    SOLVED_AGAIN,
    Evidence,
    Parts,
    Settings,
    coarsest,
    full_precision,
    witnessed,
    worst,
)
from blo.check.landscape import Landscape, Partials, Values
from blo.check.report import Comparison, LinearSolve, Report
from blo.derivatives.lower import LowerObjective, Point
from blo.derivatives.objective import FunctionObjective, LossFn
from blo.derivatives.random_state import devices_of
from blo.linear.tensors import Tensors, detach, leaves, scale, subtract, zeros_like
from blo.methods.context import Context, Method
from blo.methods.implicit import OneStep
from blo.two_level import Hypergradient, total_derivative

Solve = Callable[[Tensors], Sequence[torch.Tensor]]

UPPER, LOWER = "upper", "lower"


def check_functions(
    upper_loss: LossFn,
    lower_loss: LossFn,
    upper: Tensors,
    lower: Tensors,
    method: Method,
    solve: Solve | None,
    settings: Settings,
) -> Report:
    """Return the report on the hypergradient of plain functions; see `check_hypergradient`."""
    return _Check(upper_loss, lower_loss, upper, lower, method, solve, settings).report()


class _Check:
    """The hypergradient of ``f(x, y*(x))`` by one method at one `x`."""

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
        self._devices = devices_of(upper + lower)
        device = lower[0].device
        states = [settings.random_state(10 + i, self._devices) for i in (0, 1)]
        self._objectives = {
            UPPER: FunctionObjective(upper_loss, states[0], device, "upper_loss"),
            LOWER: FunctionObjective(lower_loss, states[1], device, "lower_loss"),
        }
        self._start = {UPPER: detach(upper), LOWER: detach(lower)}
        self._method, self._solve, self._settings = method, solve, settings
        self._landscape = Landscape(
            self._evaluate,
            felt={UPPER: (LOWER,), LOWER: ()},
            inputs={UPPER: (), LOWER: (UPPER,)},
            rtol=settings.solved(coarsest(lower)),
        )
        precision = self._objectives[LOWER].precision
        self._dtype = coarsest(upper + lower)
        self._evidence = Evidence(
            UPPER, self._start[UPPER], {LOWER: method}, self._dtype, precision, settings
        )

    def report(self) -> Report:
        """Return what was found."""
        for name, objective in self._objectives.items():
            self._evidence.compare_gradient(name, self._evaluate, self._start, (UPPER, LOWER))
            upper, lower = leaves(self._start[UPPER]), leaves(self._start[LOWER])
            again = partial(objective.loss, upper, lower)
            self._evidence.observe(name, again, objective.device)
        claimed = solved = None
        stepped = isinstance(self._method, OneStep)
        if self._settings.to_solution or not stepped:
            solution = self._base()
            first, second, solves = self._hypergradient(solution)
            claimed = self._against_solution(first, solution)
        if isinstance(self._method, OneStep):
            solved = claimed
            first, second, solves = self._hypergradient(self._start)
            claimed = self._against_step(first, self._method)
        assert claimed is not None
        self._evidence.solves += worst(solves)
        return self._evidence.report(claimed, solved, first, second)

    def _against_solution(self, value: Parts, solution: Values) -> Comparison:
        residual = self._landscape.distance(LOWER, solution)

        def resolved(x: Tensors) -> tuple[float, float]:
            return self._losses(self._solved({**solution, UPPER: x}))

        return self._evidence.compare(SOLVED_AGAIN, value, resolved, residual, dtype=self._dtype)

    def _against_step(self, value: Parts, method: OneStep) -> Comparison:
        """Return the comparison with one gradient step at each `x`, shifted so that the step at the
        present `x` leads to the given lower tensors.
        """
        x, y = self._start[UPPER], self._start[LOWER]
        length = method.step(Context(LowerObjective(()), Point(x, y), Point(x, y)))
        known = self._evaluate(LOWER, self._start, (LOWER,))[1][LOWER]

        def stepped(x: Tensors) -> tuple[float, float]:
            values = {**self._start, UPPER: x}
            moved = subtract(self._evaluate(LOWER, values, (LOWER,))[1][LOWER], known)
            return self._losses({**values, LOWER: subtract(y, scale(length, moved))})

        reference = "differences, one gradient step from the given lower tensors taken again"
        return self._evidence.compare(reference, value, stepped, 0.0, dtype=self._dtype)

    def _base(self) -> dict[str, Tensors]:
        """Return the tensors with the lower ones at their solution."""
        if self._solve is None:
            return self._landscape.settle((LOWER,), self._start)
        values = self._solved(self._start)
        self._landscape.prepare(LOWER, values)
        return values

    def _solved(self, values: Values) -> dict[str, Tensors]:
        """Return `values` with the lower tensors at their solution, by the caller's solver if there
        is one.
        """
        if self._solve is None:
            return self._landscape.solve(LOWER, values)
        state = self._objectives[LOWER].random_state
        with full_precision(self._devices), state.replay():
            found = tuple(self._solve(values[UPPER]))
        shapes, wanted = ([tuple(t.shape) for t in v] for v in (found, self._start[LOWER]))
        if shapes != wanted:
            raise ValueError(f"solve must return tensors of shapes {wanted}, got {shapes}")
        return {**values, LOWER: detach(found)}

    def _hypergradient(self, values: Values) -> tuple[Parts, Parts, list[LinearSolve]]:
        """Return the hypergradient at `values`, and again with other random numbers, its linear
        solves taken again.
        """
        log: list[LinearSolve] = []
        methods = (self._method, witnessed(self._method, LOWER, log))
        state = None
        for _ in range(self._settings.warm_up):
            state = self._total(values, self._method, 0, state).state
        found = []
        for number, method in enumerate(methods):
            result = self._total(values, method, number, state)
            response = subtract(result.grads, result.direct)
            found.append(Parts(result.direct, response, {f"{UPPER} <- {LOWER}": result.info}))
        return found[0], found[1], log

    def _total(
        self, values: Values, method: Method, number: int, state: Tensors | None
    ) -> Hypergradient:
        with self._settings.random_state(number, self._devices).replay():
            return total_derivative(
                self._objectives[UPPER],
                self._objectives[LOWER],
                values[UPPER],
                values[LOWER],
                method=method,
                state=state,
            )

    def _losses(self, values: Values) -> tuple[float, float]:
        """Return the upper loss with the upper tensors as given, and as they are."""
        here = {**values, UPPER: self._start[UPPER]}
        return self._evaluate(UPPER, values, ())[0], self._evaluate(UPPER, here, ())[0]

    def _evaluate(self, name: str, values: Values, wanted: Sequence[str]) -> tuple[float, Partials]:
        """Return a loss and its partial derivatives, without autocast."""
        used = {k: leaves(v) if k in wanted else detach(v) for k, v in values.items()}
        inputs = tuple(t for w in wanted for t in used[w])
        objective = self._objectives[name]
        with full_precision(self._devices), objective.scope(used[UPPER], used[LOWER]) as evaluate:
            loss = evaluate()
            grads: Tensors = zeros_like(inputs)
            if inputs and loss.requires_grad:
                grads = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        partials: Partials = {}
        for w in wanted:
            partials[w], grads = grads[: len(used[w])], grads[len(used[w]) :]
        return float(loss.detach()), partials
