"""What both forms of the check gather: comparisons, gradients against values, linear solves taken
again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blo.check.differences import basis, measure, slopes, step_length, unit
from blo.check.landscape import Evaluate, Values
from blo.check.report import Comparison, LinearSolve, Report, default_tolerance
from blo.check.subject import Parts, Settings
from blo.derivatives.objective import scalar
from blo.linear.system import LinearSolver, MatVec, Solution
from blo.linear.tensors import Tensors, add, axpy, norm, subtract
from blo.methods.context import Method
from blo.methods.implicit import Implicit

UNSOLVED = 1e-3  # nothing is differenced beyond

SOLVED_AGAIN = "differences through the lower problem solved again"


@dataclass
class Evidence:
    """Collects what a check finds and makes the report of it.

    Args:
        problem: whose hypergradient is checked.
        point: its parameters.
        methods: how each problem below it responds.
        dtype: the coarsest type of the parameters that the hypergradient is computed with.
        precision: autocast type of the hypergradient.
        settings: of the check.
    """

    problem: str
    point: Tensors
    methods: Mapping[str, Method]
    dtype: torch.dtype
    precision: torch.dtype | None
    settings: Settings
    solves: list[LinearSolve] = field(default_factory=list)
    gradient_errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    symptoms: list[str] = field(default_factory=list)
    num_directions: int = 0
    complete: bool = True

    def compare(
        self,
        reference: str,
        value: Parts,
        differenced: Callable[[Tensors], tuple[float, float]],
        residual: float,
        *,
        dtype: torch.dtype,
    ) -> Comparison:
        """Return how `value` compares with differences; unknown where the lower problems are not
        solved.

        Args:
            reference: what is differenced, in words.
            value: what is compared.
            differenced: ``x -> (f(x, y(x)), f(x0, y(x)))``, whose derivatives are the whole
                hypergradient and the response.
            residual: how well the lower problems were solved.
            dtype: the type that `differenced` is as accurate as.
        """
        if not residual <= UNSOLVED:
            return Comparison.unknown(reference, residual)
        direct, response = (_like(v, self.point) for v in (value.direct, value.response))
        whole, chosen = add(direct, response), self.settings
        directions = basis(
            (response, whole), self.point, num_random=chosen.num_directions, seed=chosen.seed
        )
        rows = slopes(differenced, self.point, directions, dtype, chosen.radius)
        if not all(math.isfinite(slope.value) for row in rows for slope in row):
            raise FloatingPointError(f"a loss is not finite near the point ({reference})")
        self.num_directions = len(directions.directions)
        self.complete = directions.complete
        return Comparison.of(
            reference,
            response=measure(response, directions, [row[1] for row in rows]),
            total=measure(whole, directions, [row[0] for row in rows]),
            residual=residual,
        )

    def compare_gradient(
        self, name: str, evaluate: Evaluate, values: Values, wanted: Sequence[str]
    ) -> None:
        """Compare autograd's gradient of the loss of problem `name` with differences of its values,
        near `values`.
        """
        near = {
            k: axpy(step_length(v, 1e-2 * (1 + 0.37 * i)), unit(v, self.settings.seed + i), v)
            for i, (k, v) in enumerate(values.items())
        }
        _, partials = evaluate(name, near, wanted)
        gradient = tuple(t for w in wanted for t in partials[w])
        point = tuple(t for w in wanted for t in near[w])
        dtype = coarsest(point)
        fine = dtype == torch.float64
        directions = basis((gradient,), point, num_random=2 * fine, seed=self.settings.seed)

        def differenced(moved: Tensors) -> tuple[float]:
            there = dict(near)
            for w in wanted:
                there[w], moved = moved[: len(near[w])], moved[len(near[w]) :]
            return (evaluate(name, there, ())[0],)

        radius = 1e-4 if fine else None  # short, not to cross the kinks of ReLUs
        rows = [row[0] for row in slopes(differenced, point, directions, dtype, radius)]
        found = measure(gradient, directions, rows)
        floor = self._rounding(differenced, point, directions.directions, dtype, radius)
        self.gradient_errors[name] = found._replace(unsure=found.unsure + floor).excess

    @staticmethod
    def _rounding(
        f: Callable[[Tensors], tuple[float]],
        point: Tensors,
        directions: Sequence[Tensors],
        dtype: torch.dtype,
        radius: float | None,
    ) -> float:
        """Return how much of a gradient is nothing but rounding: of the values over the step, and
        of the point by the curvature, since at a minimiser the gradient is no more than that.
        """
        h, eps = step_length(point, 1e-2 if radius is None else radius), torch.finfo(dtype).eps
        (here,), size = f(point), step_length(point, 1.0)
        found = 0.0
        for d in directions:
            bent = abs(f(axpy(h, d, point))[0] + f(axpy(-h, d, point))[0] - 2 * here)
            found = max(found, 10 * eps * (bent / h**2 * size + abs(here) / h))
        return found

    def observe(
        self, name: str, evaluate: Callable[[], object], devices: Sequence[torch.device]
    ) -> None:
        """Note whether the loss that `evaluate` returns draws random numbers, and whether it calls
        fused attention.
        """
        values = []
        for number in (0, 1):
            state = self.settings.random_state(number, devices)
            with state.replay(), AttentionWatch() as watch:
                values.append(float(scalar(evaluate(), name).detach()))
        if values[0] != values[1]:
            self.notes.append(f"the loss of {name!r} draws random numbers; the check holds them")
        for kernel in sorted(watch.kernels):
            self.notes.append(
                f"the loss of {name!r} runs the attention kernel {kernel}, which has no second "
                "derivative: exact products run on the math kernel instead"
            )

    def report(
        self, claimed: Comparison, solved: Comparison | None, first: Parts, second: Parts
    ) -> Report:
        """Return the report.

        Args:
            claimed: `first` compared with what the methods claim.
            solved: a hypergradient at the solution compared with the problems solved again.
            first: the hypergradient.
            second: the same after the random generator has moved.
        """
        size, moved = float(norm(first.response)), subtract(second.response, first.response)
        change = float(norm(moved))
        tol = self.settings.tol or default_tolerance(self.dtype, self.precision)
        vanished = size == 0.0 or size <= 1e-6 * claimed.response
        return Report(
            problem=self.problem,
            methods={name: repr(method) for name, method in self.methods.items()},
            claimed=claimed,
            solved=solved,
            mixed_vanished=vanished,
            rng_sensitivity=change / size if size else (0.0 if change == 0.0 else math.inf),
            gradient_errors=dict(self.gradient_errors),
            detached=self.settings.detached,
            seen=tuple(self.symptoms),
            solves=tuple(self.solves),
            infos=first.infos,
            num_directions=self.num_directions,
            complete=self.complete,
            dtype=self.dtype,
            precision=self.precision,
            tol=tol,
            notes=(*self.notes, *self._limits((claimed, solved), tol)),
        )

    def without_comparison(self, reason: str) -> Report:
        """Return the report where no comparison was possible, with the `reason`."""
        nothing = Parts((), (), {})
        found = self.report(Comparison.unknown("nothing", math.nan), None, nothing, nothing)
        return replace(found, reason=reason)

    def _limits(self, comparisons: Sequence[Comparison | None], tol: float) -> list[str]:
        """Return what limits the check."""
        found = []
        if not self.complete:
            found.append(
                f"errors are estimated from {self.settings.num_directions} random directions "
                "beside the hypergradient's own"
            )
        if any(c is not None and c.residual > 0.1 * tol for c in comparisons):
            found.append(
                "a lower problem could not be solved: it may have no isolated minimum (no "
                "regularisation, too few examples in the batches), or its gradient is not that of "
                "its loss"
            )
        if coarsest(self.point) != torch.float64:
            found.append(
                f"differences in {_short(self.dtype)} tell errors down to about "
                f"{default_tolerance(self.dtype, None):g}; a float64 copy of the problem tells more"
            )
        elif self.dtype != torch.float64:
            found.append(f"references in float64, the hypergradient in {_short(self.dtype)}")
        if self.precision is not None:
            found.append(f"autocast to {_short(self.precision)} is off in all references")
        return found


@dataclass(frozen=True)
class Witness:
    """A solver whose solutions are held against the system that they are to solve."""

    solver: LinearSolver
    problem: str
    log: list[LinearSolve]

    def __call__(self, matvec: MatVec, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the solver's solution, and log its residual, at one product more."""
        solution = self.solver(matvec, rhs, init)
        size = float(norm(rhs))
        left = float(norm(subtract(rhs, matvec(solution.value)))) / size if size else 0.0
        damping = float(getattr(self.solver, "damping", 0.0))
        self.log.append(LinearSolve(self.problem, solution.residual, left, damping))
        return solution


def witnessed(method: Method, problem: str, log: list[LinearSolve]) -> Method:
    """Return the method with its solver watched, if it has one."""
    if not isinstance(method, Implicit):
        return method
    return replace(method, solver=Witness(method.solver, problem, log))


def worst(solves: Iterable[LinearSolve]) -> list[LinearSolve]:
    """Return the solve of the largest measured residual of each problem."""
    found: dict[str, LinearSolve] = {}
    for s in solves:
        if s.problem not in found or s.measured > found[s.problem].measured:
            found[s.problem] = s
    return list(found.values())


class AttentionWatch(TorchDispatchMode):
    """Collects the names of the fused attention kernels that run in a block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take note, and pass everything through."""
        name = str(func)
        if "scaled_dot_product" in name or "flex_attention" in name:
            self.kernels.add(name.removeprefix("aten.").removesuffix(".default").strip("_"))
        return func(*args, **(kwargs or {}))


@contextmanager
def full_precision(devices: Iterable[torch.device]) -> Iterator[None]:
    """Run a block without the autocast that may be around it."""
    with ExitStack() as stack:
        for kind in {device.type for device in devices}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def coarsest(x: Tensors) -> torch.dtype:
    """Return the type of least precision among the tensors."""
    return max((t.dtype for t in x), key=lambda dtype: torch.finfo(dtype).eps)


def _like(x: Tensors, point: Tensors) -> Tensors:
    return tuple(t.to(p.dtype) for t, p in zip(x, point, strict=True))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
