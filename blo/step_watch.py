"""What optimizers really did, compared with their plain updates."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from blo.derivatives.precision import coarsest
from blo.derivatives.pullback import Gradient
from blo.linear.tensors import Tensors, length, subtract
from blo.problem import Problem
from blo.steps.clipping import clipped
from blo.steps.optimizers import UpdateMap
from blo.steps.registry import num_hooks, rule_of

# A step may be off by this fraction of its length, and by so many rounding errors of the
# parameters: the fused kernels of torch round differently.
TOLERANCE = 1e-3
ROUNDING = 64.0


class StepWatch:
    """Compares a problem's first step with what its optimizer alone would do, and again whenever
    the optimizer's class, groups or hooks have changed.

    Methods differentiate the plain update. Where something else has a hand in the step (clipping or
    projection by a hook, a wrapper), the hypergradient is that of another step, and this says so.

    Attributes:
        findings: what was warned of, by problem.
    """

    def __init__(self) -> None:
        self.findings: dict[str, str] = {}
        self._seen: dict[str, tuple[Any, ...]] = {}

    def knows(self, problem: Problem) -> bool:
        """Return whether a step of the optimizer was taken as it is now, with its hooks."""
        return self._seen.get(problem.name) == _signature(problem)

    def before(self, problem: Problem, gradient: Gradient) -> Callable[[], None]:
        """Return what is to be called once the optimizer of `problem` has taken its step along
        `gradient`.
        """
        if self.knows(problem):
            return nothing
        self._seen[problem.name] = _signature(problem)
        self.findings.pop(problem.name, None)
        self._warn(problem, unknown_decay(problem))
        if not _is_known(problem):
            return nothing
        before = tuple(p.detach().clone() for p in problem.parameters)
        states, options = problem.optimizer_states(), problem.options()
        handed = tuple(None if g is None else g.detach().clone() for g in gradient)

        def compare() -> None:
            plain = UpdateMap(problem.optimizer_class).plain_step(
                before,
                states,
                handed if problem.clip is None else clipped(handed, problem.clip),
                options,
            )
            self._warn(problem, _difference(problem, before, plain))

        return compare

    def _warn(self, problem: Problem, finding: str | None) -> None:
        if finding is not None:
            self.findings[problem.name] = finding
            warnings.warn(finding, stacklevel=3)


def nothing() -> None:
    """Compare nothing."""


def unknown_decay(problem: Problem) -> str | None:
    """Return what is wrong where the optimizer of `problem` has a weight decay and nothing is known
    of it; None elsewhere.
    """
    decays = any(group.get("weight_decay") for group in problem.optimizer.param_groups)
    if _is_known(problem) or not decays or problem.weight_decay(problem.options()) is not None:
        return None
    kind = problem.optimizer_class
    return (
        f"nothing is known of {kind.__module__}.{kind.__qualname__}, the optimizer of "
        f"problem {problem.name!r}, and it has a weight decay: if it adds weight_decay * "
        "parameter to the gradient, the Hessian of implicit methods lacks it. Say so with "
        "register_update(..., couples_decay=True), or put the decay in the loss"
    )


def _difference(problem: Problem, before: Tensors, plain: Tensors) -> str | None:
    """Return how a step differs from the plain one; None where it does not."""
    now = tuple(p.detach() for p in problem.parameters)
    off, way = length(subtract(now, plain)), length(subtract(plain, before))
    eps = torch.finfo(coarsest(t.dtype for t in now)).eps
    if off <= TOLERANCE * way + ROUNDING * eps * length(before):
        return None
    return (
        f"a step of the optimizer of problem {problem.name!r} ends {off:.2g} away from the plain "
        f"update of {problem.optimizer_class.__name__}, a way of {way:.2g}: a hook or a wrapper "
        "had a hand in it (clipping, projection). darts(), t1t2() and the implicit methods "
        "differentiate the plain update and do not see that; sama(), unrolled() and forward_mode() "
        "refuse it. Clipping belongs in Problem(clip=Clip(...)), which these differentiate"
    )


def _is_known(problem: Problem) -> bool:
    """Return whether the optimizer's update is known."""
    try:
        rule_of(problem.optimizer_class)
    except TypeError:
        return False
    return True


def _signature(problem: Problem) -> tuple[Any, ...]:
    """Return what a step depends on beside its numbers: class, groups and hooks."""
    optimizer = problem.optimizer
    groups = tuple(len(group["params"]) for group in optimizer.param_groups)
    return (type(optimizer), problem.optimizer_class, groups, *num_hooks(optimizer))
