"""`check_hypergradient` in its two forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from torch import Tensor

from blo.check.engines import check_engine
from blo.check.evidence import Settings
from blo.check.functions import Solve, check_functions
from blo.check.report import Report
from blo.derivatives.objective import LossFn
from blo.engine import Engine
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

    The engine is left as it was found, bit for bit: parameters, buffers, optimizers, schedulers,
    streams, counters, random state. Each lower problem is put at its solution on its first batches
    of a new pass, from where it stands (a method that differentiates steps, on the batches of a
    round). What cannot be put back is what lies outside torch: a counter in a loss or in a hook, or
    the place of an iterable that remembers it.

    A lower problem without an isolated minimum cannot be solved again to a tolerance; the report
    then says so and fails. The lower problem should have a smooth loss (differences across the
    kinks of ReLUs are inaccurate), and a few thousand parameters at most are comfortable: a solve
    takes hundreds of gradients.

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
    settings = Settings(num_directions, radius, rtol, tol, to_solution, warm_up, seed)
    if isinstance(subject, Engine):
        plain = {"lower_loss": lower_loss, "upper": upper, "lower": lower}
        _refuse({**plain, "method": method, "solve": solve}, "an engine, whose problems have them")
        report = check_engine(subject, problem, batches, settings)
    else:
        _refuse({"problem": problem, "batches": batches}, "plain functions, which have none")
        if lower_loss is None or upper is None or lower is None:
            raise TypeError(
                "check_hypergradient takes an Engine, or upper_loss, lower_loss, upper and lower"
            )
        x, y = tensors_of(upper, "upper"), tensors_of(lower, "lower")
        method = cg(10) if method is None else method
        report = check_functions(subject, lower_loss, x, y, method, solve, settings)
    if verbose:
        print(report)  # noqa: T201 - asked for
    if raise_on_failure and not report.passed:
        raise RuntimeError(str(report))
    return report


def _refuse(arguments: Mapping[str, Any], where: str) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise TypeError(f"{name} does not go with {where}; got {name}={value!r}")
