"""`check_hypergradient` in its two forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from blo.check.comparing import Check
from blo.check.engines import EngineSubject
from blo.check.functions import FunctionSubject, Solve
from blo.check.report import Report
from blo.check.subject import Settings
from blo.derivatives.objective import LossFn
from blo.derivatives.random_state import RandomState
from blo.engine import Engine
from blo.methods.context import Method
from blo.methods.named import cg
from blo.two_level import tensors_of


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
    settings = Settings(
        num_directions=num_directions,
        radius=radius,
        rtol=rtol,
        tol=tol,
        to_solution=to_solution,
        warm_up=warm_up,
        seed=seed,
        detached=tuple(detached),
    )
    if isinstance(subject, Engine):
        if not subject.reduction.is_local:
            raise ValueError(
                "check_hypergradient works in one process, and the engine averages over "
                f"{subject.reduction.num_ranks}; give it an Engine(graph, distributed=False)"
            )
        plain = {"lower_loss": lower_loss, "upper": upper, "lower": lower}
        _refuse({**plain, "method": method, "solve": solve}, "an engine, whose problems have them")
        report = _of_engine(subject, problem, batches, settings)
    else:
        _refuse({"problem": problem, "batches": batches}, "plain functions, which have none")
        if lower_loss is None or upper is None or lower is None:
            raise TypeError(
                "check_hypergradient takes an Engine, or upper_loss, lower_loss, upper and lower"
            )
        x, y = tensors_of(upper, "upper"), tensors_of(lower, "lower")
        method = cg(10) if method is None else method
        losses = subject, lower_loss
        report = Check(FunctionSubject(losses, x, y, method, solve, settings), settings).report()
    if verbose:
        print(report)  # noqa: T201 - asked for
    if raise_on_failure and not report.passed:
        raise RuntimeError(str(report))
    return report


def _refuse(arguments: Mapping[str, Any], where: str) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise TypeError(f"{name} does not go with {where}; got {name}={value!r}")


def _of_engine(
    engine: Engine,
    problem: str | None,
    batches: Mapping[str, Sequence[Any]] | None,
    settings: Settings,
) -> Report:
    """Return the report on an engine; where it fails, with what would explain it: a hypergradient
    that agrees with references that leave something out does so, too.
    """
    devices = {t.device for p in engine.graph.problems for t in p.parameters}
    own = [g for p in engine.graph.problems for g in p.generators]
    with RandomState.capture(devices, own).replay():
        subject = EngineSubject(engine, problem, batches, settings)
        report = Check(subject, settings).report()
        if report.reason is not None or report.claimed.agrees(report.tol):
            return report
        found = []
        claimed_only = replace(settings, to_solution=False)
        for what, finding in subject.suspects().items():
            other = EngineSubject(engine, problem, batches, claimed_only, without=what)
            again = Check(other, claimed_only).report()
            if again.reason is None and again.claimed.agrees(again.tol):
                found.append(finding)
        return replace(report, seen=(*report.seen, *found))
