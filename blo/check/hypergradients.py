"""`check_hypergradient` in its two forms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from blo.check.engines import EngineSubject
from blo.check.evidence import SOLVED_AGAIN, Evidence, coarsest, worst
from blo.check.functions import FunctionSubject, Solve
from blo.check.landscape import Landscape, Values
from blo.check.report import Comparison, LinearSolve, Report
from blo.check.subject import Claim, Parts, Settings, Stand, Subject, check_separable
from blo.derivatives.objective import LossFn
from blo.derivatives.random_state import RandomState
from blo.engine import Engine
from blo.linear.tensors import Tensors, norm
from blo.methods.context import Method
from blo.methods.named import cg
from blo.two_level import tensors_of


@overload
def check_hypergradient(
    engine: Engine,
    /,
    *,
    problem: str | None = None,
    batches: Mapping[str, Sequence[Any]] | None = None,
    num_directions: int = 4,
    radius: float | None = None,
    rtol: float | None = None,
    tol: float | None = None,
    to_solution: bool = True,
    warm_up: int = 0,
    seed: int = 0,
    detached: Sequence[str] = (),
    raise_on_failure: bool = False,
    verbose: bool = False,
) -> Report: ...


@overload
def check_hypergradient(
    upper_loss: LossFn,
    lower_loss: LossFn,
    upper: Sequence[Tensor],
    lower: Sequence[Tensor],
    /,
    *,
    method: Method = ...,
    solve: Solve | None = None,
    num_directions: int = 4,
    radius: float | None = None,
    rtol: float | None = None,
    tol: float | None = None,
    to_solution: bool = True,
    warm_up: int = 0,
    seed: int = 0,
    detached: Sequence[str] = (),
    raise_on_failure: bool = False,
    verbose: bool = False,
) -> Report: ...


def check_hypergradient(
    subject: Engine | LossFn,
    lower_loss: LossFn | None = None,
    upper: Sequence[Tensor] | None = None,
    lower: Sequence[Tensor] | None = None,
    /,
    *,
    method: Method | None = None,
    solve: Solve | None = None,
    problem: str | None = None,
    batches: Mapping[str, Sequence[Any]] | None = None,
    num_directions: int = 4,
    radius: float | None = None,
    rtol: float | None = None,
    tol: float | None = None,
    to_solution: bool = True,
    warm_up: int = 0,
    seed: int = 0,
    detached: Sequence[str] = (),
    raise_on_failure: bool = False,
    verbose: bool = False,
) -> Report:
    """Return how a hypergradient compares with finite differences of what it is the derivative of.

    Two forms: ``check_hypergradient(engine)`` checks what an engine computes, and
    ``check_hypergradient(upper_loss, lower_loss, upper, lower, method=...)`` checks a method on
    plain functions. An implicit method is held to ``x -> f(x, y*(x))`` with the lower problem
    solved again at each `x`. A method that differentiates lower steps is held to the same steps
    taken again (`darts`, `t1t2`: one gradient step; `sama`, `unrolled`: the real optimizer's last
    steps), and, as a second comparison, to the solution. Derivatives are central differences,
    extrapolated, along the hypergradient's own direction and random ones.

    Also reported: whether the mixed derivative vanished, whether anything but the losses' own
    random draws moves the result, whether autograd's gradients are those of the losses' values, and
    the residuals of linear solves. References use first derivatives only, and neither the products
    nor the solvers of this library.

    The engine is left alone: other values are put in the modules for the time of an evaluation, and
    optimizer steps are taken by copies of the optimizers, at the options of now. Each lower problem
    is put at its solution on its first batches of a new pass, from where it stands (a method that
    differentiates steps, on the batches of a round). What cannot be put back is what lies outside
    torch: a counter in a loss, or the place of an iterable that remembers it. Hooks of optimizers
    do not run; where the engine has trained, its last steps are compared with what the optimizers
    alone would have done.

    A lower problem without an isolated minimum cannot be solved again to a tolerance; the report
    then says so and fails. Where no comparison is possible at all (a loss that is not finite, a
    singular system), `Report.reason` says why. The lower problem should have a smooth loss
    (differences across the kinks of ReLUs are inaccurate), and a few thousand parameters at most
    are comfortable: a solve takes hundreds of gradients.

    Args:
        subject: an `Engine`, or ``upper_loss(upper, lower)``.
        lower_loss: ``g(upper, lower)``.
        upper: where the hypergradient is checked.
        lower: where the lower problem is started from, and where one-step methods take their step.
        method: of the plain functions; an engine's problems have their own. ``cg(10)`` unless
            given.
        solve: ``upper -> lower``, an accurate solver; None uses Newton's method from `lower`.
        problem: name of the problem whose hypergradient is checked; None for the top.
        batches: by problem, what its loss is averaged over, in place of the first batches.
        num_directions: random directions beside the hypergradient's own. As many as there are upper
            numbers make the errors exact, fewer make them estimates.
        radius: first step of the differences, relative to the upper parameters; it is halved until
            the differences agree.
        rtol: a lower problem is solved when Newton's step is this small relative to its parameters.
        tol: what passes: 1e-4 in float64, 0.02 in float32, 0.2 in half precision, unless given.
        to_solution: False leaves out the second comparison of methods that differentiate lower
            steps, and with it the lower solves, which a large model could not afford.
        warm_up: calls before the one that is checked, whose state it takes over; for methods that
            start warm.
        seed: of the directions and of the losses' random draws.
        detached: problems whose losses have terms that are detached on purpose ("upper" and
            "lower" of plain functions): that autograd's gradient is not that of their values is
            then a note, no symptom.
        raise_on_failure: raise instead of returning a report that has not passed.
        verbose: print the report.

    Raises:
        RuntimeError: with the report, if it has not passed and `raise_on_failure` is set.
        TypeError, ValueError: naming the argument, its value and the remedy.

    Example:
        >>> import torch
        >>> from blo import dense
        >>> f = lambda x, y: ((y[0] - 1) ** 2).sum()
        >>> g = lambda x, y: ((y[0] - x[0].sin()) ** 2).sum()
        >>> x, y = (torch.tensor([0.5, 1.0]).double(),), (torch.zeros(2).double(),)
        >>> report = check_hypergradient(f, g, x, y, method=dense())
        >>> report.passed, round(report.cosine, 6)
        (True, 1.0)
    """
    meant = tuple(detached)
    settings = Settings(num_directions, radius, rtol, tol, to_solution, warm_up, seed, meant)
    if isinstance(subject, Engine):
        if not subject.reduction.is_local:
            raise ValueError(
                "check_hypergradient works in one process, and the engine averages over "
                f"{subject.reduction.num_ranks}; give it an Engine(graph, distributed=False)"
            )
        plain = {"lower_loss": lower_loss, "upper": upper, "lower": lower}
        _refuse({**plain, "method": method, "solve": solve}, "an engine, whose problems have them")
        devices = {t.device for p in subject.graph.problems for t in p.parameters}
        own = [g for p in subject.graph.problems for g in p.generators]
        with RandomState.capture(devices, own).replay():
            first = EngineSubject(subject, problem, batches, settings)
            report = _checked(first, settings)
            wrong = report.reason is None and not report.claimed.agrees(report.tol)
            found = []
            for what, words in first.suspects().items() if wrong else ():
                second = EngineSubject(subject, problem, batches, settings, still=what)
                again = _checked(second, replace(settings, to_solution=False))
                if again.reason is None and again.claimed.agrees(again.tol):
                    found.append(f"the response is not taken where the lower step stood: {words}")
            report = replace(report, seen=(*report.seen, *found))
    else:
        _refuse({"problem": problem, "batches": batches}, "plain functions, which have none")
        if lower_loss is None or upper is None or lower is None:
            raise TypeError(
                "check_hypergradient takes an Engine, or upper_loss, lower_loss, upper and lower"
            )
        x, y = tensors_of(upper, "upper"), tensors_of(lower, "lower")
        method = cg(10) if method is None else method
        functions = FunctionSubject(subject, lower_loss, x, y, method, solve, settings)
        report = _checked(functions, settings)
    if verbose:
        print(report)  # noqa: T201 - asked for
    if raise_on_failure and not report.passed:
        raise RuntimeError(str(report))
    return report


def _checked(subject: Subject, settings: Settings) -> Report:
    """Return the report on a subject, whatever happens on the way."""
    evidence = Evidence(
        subject.name,
        subject.start[subject.name],
        subject.methods,
        subject.dtype,
        subject.precision,
        settings,
        notes=subject.notes,
        symptoms=subject.symptoms,
    )
    try:
        with torch.inference_mode(False), torch.enable_grad():
            return _Check(subject, settings, evidence).report()
    except (ArithmeticError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else "no message"
        return evidence.without_comparison(f"{type(error).__name__}: {first}")


class _Check:
    """The hypergradient of one subject, at its present values."""

    def __init__(self, subject: Subject, settings: Settings, evidence: Evidence) -> None:
        self._subject, self._settings, self._evidence = subject, settings, evidence
        self._type = coarsest(subject.start[subject.name])
        rtol = settings.solved(self._type)
        self._landscape = Landscape(subject.evaluate, subject.felt, subject.inputs, rtol)

    def report(self) -> Report:
        """Return what was found."""
        subject, claims = self._subject, self._subject.claims
        for name in (subject.name, *subject.below):
            self._look(name)
        stepped = [name for name in subject.below if claims[name] is not Claim.SOLUTION]
        separable = check_separable(subject)
        claimed = solved = None
        if self._settings.to_solution or not (stepped and separable):
            claimed, first, second = self._against_solution()
        if stepped and separable:
            solved = claimed
            claimed, first, second = self._against_claims()
        elif stepped:
            self._evidence.notes.append(
                f"what {stepped} claim cannot be taken again, since a problem that reads below "
                "itself is in between; they are held to the solution"
            )
        assert claimed is not None
        return self._evidence.report(claimed, solved, first, second)

    def _look(self, name: str) -> None:
        """Check the gradient of a loss against its values, and see what the loss does."""
        subject = self._subject
        self._require_finite(name, subject.start)
        wanted = subject.reads(name)
        if wanted:
            self._evidence.compare_gradient(name, subject.evaluate, subject.start, wanted)
        self._evidence.observe(name, partial(subject.look, name), subject.devices)

    def _against_solution(self) -> tuple[Comparison, Parts, Parts]:
        """Return the comparison with the lower problems solved again, at their solutions."""
        subject, names = self._subject, self._subject.below
        given = subject.solve(subject.start)
        if given is None:
            solution = self._landscape.settle(names, subject.start)
        else:
            solution = given
            self._landscape.prepare(names[0], solution)
        stands: dict[str, Stand] = {}
        for name in reversed(names):
            steps = "last" if subject.claims[name] is Claim.STEPS else "none"
            stands[name] = subject.stand(name, solution, stands, steps=steps)
        first, second = self._hypergradient(
            {**solution, **{name: stand.end for name, stand in stands.items()}}, stands
        )

        def differenced(x: Tensors) -> tuple[float, float]:
            values: Values = {**solution, subject.name: x}
            found = subject.solve(values)
            if found is None:
                for name in names:
                    values = self._landscape.solve(name, values)
            return self._pair(values if found is None else found)

        if given is not None:
            residual = self._landscape.distance(names[0], solution)
        else:
            residual = max(self._landscape.residuals[name] for name in names)
        return (
            self._evidence.compare(SOLVED_AGAIN, first, differenced, residual, dtype=self._type),
            first,
            second,
        )

    def _against_claims(self) -> tuple[Comparison, Parts, Parts]:
        """Return the comparison with what the methods claim, each problem from the top where its
        method wants it: at its solution, or at the end of the steps of a round.
        """
        subject, claims = self._subject, self._subject.claims
        values: dict[str, Tensors] = dict(subject.start)
        stands: dict[str, Stand] = {}
        for name in subject.below:
            if claims[name] is Claim.SOLUTION:
                values = self._landscape.settle([name], values)
            else:
                stands[name] = subject.stand(name, values, {}, steps="all")
                values[name] = stands[name].end
        for name in reversed(subject.below):
            if claims[name] is Claim.SOLUTION:
                stands[name] = subject.stand(name, values, stands, steps="none")
        first, second = self._hypergradient(values, stands)
        base = values

        def differenced(x: Tensors) -> tuple[float, float]:
            values = {**base, subject.name: x}
            for name in subject.below:
                if claims[name] is Claim.SOLUTION:
                    values = self._landscape.solve(name, values)
                else:
                    values[name] = stands[name].again(values)
            return self._pair(values)

        solved = [name for name in subject.below if claims[name] is Claim.SOLUTION]
        residual = max((self._landscape.residuals[name] for name in solved), default=0.0)
        through = "; ".join(f"{name!r} {claim.value}" for name, claim in claims.items())
        reference = f"differences, {through}"
        return (
            self._evidence.compare(reference, first, differenced, residual, dtype=self._type),
            first,
            second,
        )

    def _hypergradient(self, values: Values, stands: Mapping[str, Stand]) -> tuple[Parts, Parts]:
        """Return the hypergradient, and again with other random numbers, its linear solves taken
        again.
        """
        for name in (self._subject.name, *self._subject.below):
            self._require_finite(name, values)
        log: list[LinearSolve] = []
        first = self._subject.hypergradient(values, stands, 0, log)
        second = self._subject.hypergradient(values, stands, 1, log)
        self._evidence.solves = worst(log)
        if not math.isfinite(float(norm(first.direct)) + float(norm(first.response))):
            raise FloatingPointError(f"the hypergradient of {self._subject.name!r} is not finite")
        return first, second

    def _require_finite(self, name: str, values: Values) -> None:
        value, _ = self._subject.evaluate(name, values, ())
        if not math.isfinite(value):
            at_start = values is self._subject.start
            where = "the check starts from" if at_start else "the lower problems were put"
            raise FloatingPointError(f"the loss of {name!r} is {value} where {where}")

    def _pair(self, values: Values) -> tuple[float, float]:
        """Return the checked loss with its own parameters as given, and as they are."""
        subject = self._subject
        whole = subject.evaluate(subject.name, values, ())[0]
        if not subject.reads(subject.name):
            return whole, whole
        here = {**values, subject.name: subject.start[subject.name]}
        return whole, subject.evaluate(subject.name, here, ())[0]


def _refuse(arguments: Mapping[str, Any], where: str) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise TypeError(f"{name} does not go with {where}; got {name}={value!r}")
