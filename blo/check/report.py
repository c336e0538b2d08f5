"""What a check of a hypergradient found, as data and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from blo.check.witnesses import LinearSolve
from blo.linear.system import Status
from blo.methods.context import Info

# What passes unless told otherwise, by the coarsest type that a loss is computed in.
TOLERANCE: dict[torch.dtype, float] = {torch.float64: 1e-4, torch.float32: 2e-2}
COARSE_TOLERANCE = 0.2


@dataclass(frozen=True)
class Comparison:
    """A hypergradient compared with finite differences.

    Attributes:
        reference: what was differenced.
        relative_error: of the response ``(dy*/dx)^T f_y``, the part that the methods compute.
        cosine: between the response and the reference's; 0 where one of them vanishes.
        scale_ratio: length of the response over that of the reference's.
        uncertainty: of the reference's response, relative to its length.
        response: length of the reference's response.
        total_error: relative error of the whole hypergradient ``f_x + (dy*/dx)^T f_y``.
        total_uncertainty: of the whole reference, relative to its length.
        residual: the next Newton step of the lower problem that was solved worst, relative to its
            parameters; 0 where nothing had to be solved.
    """

    reference: str
    relative_error: float
    cosine: float
    scale_ratio: float
    uncertainty: float
    response: float
    total_error: float
    total_uncertainty: float
    residual: float

    def reliable(self, tol: float) -> bool:
        """Whether the lower problems were solved and the differences agree with each other."""
        return self.residual <= 0.1 * tol and self.total_uncertainty <= tol

    @property
    def unseen(self) -> bool:
        """Whether the two responses are zero as far as the differences can tell."""
        return self.uncertainty >= 1.0 and self.relative_error <= 3 * self.uncertainty

    def agrees(self, tol: float) -> bool:
        """Whether the hypergradient is right within `tol`.

        Its response too, or within the reference's uncertainty, where it is too small a part of the
        whole to be known better.
        """
        return self.total_error <= tol and self.relative_error <= max(tol, 3 * self.uncertainty)


@dataclass(frozen=True)
class Report:
    """The result of `check_hypergradient`; ``print(report)`` tells it in words.

    Attributes:
        problem: whose hypergradient was checked.
        methods: how each problem below it responds.
        claimed: the hypergradient compared with what its methods claim to compute.
        solved: compared with lower problems that are solved again, where the methods claim
            something else (a derivative of lower steps); None where they claim that.
        mixed_vanished: the response is zero, as if the mixed derivative vanished: the hypergradient
            is of first order only.
        rng_sensitivity: relative change of the response when nothing but the random generator
            moves between two calls.
        gradient_errors: by problem, how far autograd's gradient of its loss is from differences of
            its values, relative, beyond what these leave open.
        solves: the linear solves of implicit methods.
        products: by lower problem, how far the Hessian and mixed products that its method takes are
            from differences of gradients, relative.
        infos: what the methods say of themselves, by "problem <- lower problem".
        num_directions: along which derivatives were taken.
        complete: whether these span the whole space; else errors are estimates.
        dtype: the coarsest type of the parameters.
        precision: the autocast type of the hypergradient, None without.
        tol: what passes.
        notes: what limits the check, and what was seen on the way.
        detached: problems whose losses have terms detached on purpose.
        seen: what the losses and the optimizers were seen to do besides.
        reason: why no comparison was possible; None where one was.

    Example:
        >>> import torch
        >>> from blo import check_hypergradient, dense
        >>> f = lambda x, y: ((y[0] - 1) ** 2).sum()
        >>> g = lambda x, y: ((y[0] - x[0].sin()) ** 2).sum()
        >>> x, y = (torch.tensor([0.5, 1.0]).double(),), (torch.zeros(2).double(),)
        >>> report = check_hypergradient(f, g, x, y, method=dense())
        >>> report.passed, report.symptoms(), report.mixed_vanished, report.complete
        (True, (), False, True)
    """

    problem: str
    methods: Mapping[str, str]
    claimed: Comparison
    solved: Comparison | None
    mixed_vanished: bool
    rng_sensitivity: float
    gradient_errors: Mapping[str, float]
    solves: tuple[LinearSolve, ...]
    products: Mapping[str, tuple[float, float]]
    infos: Mapping[str, Info]
    num_directions: int
    complete: bool
    dtype: torch.dtype
    precision: torch.dtype | None
    tol: float
    notes: tuple[str, ...]
    detached: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def reference(self) -> str:
        """What the hypergradient is held to."""
        return self.claimed.reference

    @property
    def relative_error(self) -> float:
        """The response's error against what its methods claim."""
        return self.claimed.relative_error

    @property
    def cosine(self) -> float:
        """The cosine between the response and what its methods claim."""
        return self.claimed.cosine

    @property
    def scale_ratio(self) -> float:
        """The response's length over that of what its methods claim."""
        return self.claimed.scale_ratio

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong beyond the check's tolerance; ``bool(report)`` is the same."""
        return not self.symptoms()

    def __bool__(self) -> bool:
        """Return whether the check passed."""
        return self.passed

    def symptoms(self, tol: float | None = None) -> tuple[str, ...]:
        """Return what is wrong beyond `tol`, the most telling first."""
        tol = self.tol if tol is None else tol
        found = [] if self.reason is None else [f"no comparison was possible: {self.reason}"]
        found += [
            f"autograd's gradient of the loss of {name!r} is {error:.2g} (relative) off the "
            "differences of its values: part of the loss is detached, or has a wrong backward pass"
            for name, error in self.gradient_errors.items()
            if error > tol and name not in self.detached
        ]
        found += self.seen
        if self.reason is not None:
            return tuple(found)
        if not self.rng_sensitivity <= tol:
            found.append(
                f"the response changes by {self.rng_sensitivity:.2g} (relative) when nothing but "
                "the random generator moves: its passes see different dropout masks, or the "
                "method samples"
            )
        if self.claimed.unseen:
            found.append(
                "no response can be seen, neither in the hypergradient nor in what it is held to, "
                "so nothing was checked: does the lower loss have a term with both upper and lower "
                "parameters, and is it curved here?"
            )
        elif not (self.claimed.agrees(tol) or math.isnan(self.claimed.relative_error)):
            found += [*self._error(tol), *self._solvers(tol)]
        if not self.claimed.reliable(tol):
            found.append(
                "the reference cannot be relied on: it is known to "
                f"{self.claimed.total_uncertainty:.1g} (relative), the lower problem solved to "
                f"{self.claimed.residual:.1g}"
            )
        return tuple(found)

    def _error(self, tol: float) -> list[str]:
        """Return the error in words, as sign, scale or direction."""
        c = self.claimed
        if self.mixed_vanished:
            text = (
                "the response is zero: the mixed derivative vanished, the gradient is first-order"
            )
            if self.precision is not None:
                text += (
                    f"; the loss is computed under autocast to {short(self.precision)}, where two "
                    "passes inside one autocast context compare a cached cast of the weights with "
                    "itself"
                )
            return [text]
        sine = math.sqrt(max(0.0, 1.0 - c.cosine**2))
        if sine > 0.1 * min(c.relative_error, 1.0):
            return [
                f"the response points elsewhere (cosine {c.cosine:.4f}, scale ratio "
                f"{c.scale_ratio:.4g}, relative error {c.relative_error:.2g})",
                *self._products(tol, mixed=True),
            ]
        found = self._products(tol, mixed=False)
        if c.cosine < 0.0:
            found.append(f"the response points the opposite way: a sign is flipped ({_both(c)})")
        if abs(c.scale_ratio - 1.0) > 0.1 * c.relative_error:
            found.append(f"the response is {c.scale_ratio:.4g} times as long as it should be")
        return found

    def _products(self, tol: float, *, mixed: bool) -> list[str]:
        """Return which second derivatives are wrong; a factor in mixed ones is told as such."""
        products = self.products.items()
        worst = {name: max(errors if mixed else errors[:1]) for name, errors in products}
        return [
            f"the second derivatives of {name!r} that its method takes are {error:.2g} (relative) "
            "off differences of its gradients: an operation that torch differentiates wrongly, a "
            "radius that does not fit, or an approximation"
            for name, error in worst.items()
            if not error <= tol
        ]

    def _solvers(self, tol: float) -> list[str]:
        """Return what the linear solves have to do with it."""
        found = []
        for s in self.solves:
            if s.stale:
                found.append(
                    f"the solver of {s.problem!r} returns a vector of relative residual "
                    f"{s.measured:.1g} and reports {s.reported:.1g}: not the iterate it stands at"
                )
            elif s.damping and s.measured > tol:
                found.append(
                    f"the damping of {s.damping:g} changes the solution for {s.problem!r} "
                    f"(relative residual {s.measured:.1g} without it)"
                )
        stopped = {Status.TRUNCATED: "ran out of products", Status.DIVERGED: "diverged"}
        stopped[Status.INDEFINITE] = "met negative curvature"
        for key, info in self.infos.items():
            if info.status is not None and info.status in stopped and info.residual > tol:
                found.append(
                    f"the linear solve of {key!r} {stopped[info.status]} at a relative residual of "
                    f"{info.residual:.1g}"
                )
        return found

    def __str__(self) -> str:
        """Return the report as a page."""
        symptoms = self.symptoms()
        verdict = "FAILED" if symptoms else "passed"
        lines = [f"Hypergradient of {self.problem!r}: {verdict} at tolerance {self.tol:g}"]
        lines += [_row(f"response of {name!r}", method) for name, method in self.methods.items()]
        lines += _compared("held to", self.claimed)
        if self.solved is not None:
            lines += _compared("and to", self.solved)
        lines.append(_row("mixed derivative", "vanished" if self.mixed_vanished else "present"))
        lines.append(_row("change with the RNG", f"{self.rng_sensitivity:.1e}"))
        for name, error in self.gradient_errors.items():
            lines.append(_row(f"autograd on {name!r}", f"off the loss by {error:.1e}"))
        for s in self.solves:
            values = f"residual {s.measured:.1e}, reported {s.reported:.1e}"
            lines.append(_row(f"solver of {s.problem!r}", values))
        span = "all of them" if self.complete else "errors are estimates"
        lines.append(_row("directions", f"{self.num_directions}, {span}"))
        under = "" if self.precision is None else f", autocast to {short(self.precision)}"
        lines.append(_row("type", f"{short(self.dtype)}{under}"))
        lines += [f"  ! {symptom}" for symptom in symptoms]
        lines += [
            f"  - the gradient of {name!r} is not that of its values, as was declared"
            for name in self.detached
            if self.gradient_errors.get(name, 0.0) > self.tol
        ]
        lines += [f"  - {note}" for note in self.notes]
        return "\n".join(lines)


def default_tolerance(dtype: torch.dtype, precision: torch.dtype | None) -> float:
    """Return what passes for parameters of `dtype` and losses under autocast to `precision`."""
    coarsest = max(
        (t for t in (dtype, precision) if t is not None), key=lambda t: torch.finfo(t).eps
    )
    return TOLERANCE.get(coarsest, COARSE_TOLERANCE)


def _compared(label: str, c: Comparison) -> list[str]:
    known = f"known to {c.uncertainty:.0e}, lower solutions to {c.residual:.0e}"
    return [
        _row(label, f"{c.reference} ({known})"),
        _row("  relative error", f"{c.relative_error:.2e}; of the whole {c.total_error:.2e}"),
        _row("  cosine, scale", _both(c)),
    ]


def _both(c: Comparison) -> str:
    return f"cosine {c.cosine:.6f}, scale ratio {c.scale_ratio:.6g}"


def _row(label: str, value: str) -> str:
    return f"  {label:<24}{value}"


def short(dtype: torch.dtype) -> str:
    """Return the name of a type without the module."""
    return str(dtype).removeprefix("torch.")
