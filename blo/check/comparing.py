"""The check of one subject: comparisons, and what is seen on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from blo.check.differences import basis, measure, slopes, step_length, unit
from blo.check.landscape import Landscape, Values
from blo.check.report import Comparison, Report, default_tolerance, short
from blo.check.subject import Claim, Parts, Run, Settings, Stand, Subject, coarsest
from blo.check.witnesses import AttentionWatch, Log
from blo.derivatives.objective import scalar
from blo.linear.tensors import Tensors, add, axpy, norm, subtract

UNSOLVED = 1e-3  # nothing is differenced beyond
UNKNOWN = (math.nan,) * 7
SOLVED_AGAIN = "differences through the lower problem solved again"


class Check:
    """The check of one subject, at its present values."""

    def __init__(self, subject: Subject, settings: Settings) -> None:
        self._subject, self._settings = subject, settings
        self._point = subject.start[subject.name]
        self._type = coarsest(self._point)
        self._log = Log()
        self._gradient_errors: dict[str, float] = {}
        self._spanned = (0, True)  # number of directions, and whether these are all
        self._landscape = Landscape(
            subject.evaluate,
            subject.felt,
            subject.inputs,
            subject.saddles,
            settings.solved(self._type),
        )

    def report(self) -> Report:
        """Return what was found, whatever happens on the way."""
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return self._report(*self._comparisons())
        except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
            if isinstance(error, ValueError) and not self._subject.symptoms:
                raise  # misuse
            first = str(error).splitlines()[0] if str(error) else "no message"
            nothing, none = Comparison("nothing", *UNKNOWN, math.nan), Parts((), (), {})
            found = self._report(nothing, None, none, none)
            return replace(found, reason=f"{type(error).__name__}: {first}")

    def _comparisons(self) -> tuple[Comparison, Comparison | None, Parts, Parts]:
        """Return the comparisons with what the methods claim and, where that is something else,
        with the solution; the hypergradient of the first, twice.
        """
        subject = self._subject
        for name in (subject.name, *subject.below):
            self._look(name)
        stepped = {n for n, claim in subject.claims.items() if claim is not Claim.SOLUTION}
        # What is claimed is taken again problem by problem, from the top: steps that only the
        # checked problem feels, and solutions, which steps may feel if nobody else does.
        above = (subject.name, *subject.below)
        feel = {n: {m for m in above if n in subject.felt[m]} for n in subject.below}
        separable = all(
            feel[n] <= {subject.name} if n in stepped else len(feel[n]) < 2 or not stepped & feel[n]
            for n in subject.below
        )
        if stepped and not separable:
            subject.notes.append(
                f"what {sorted(stepped)} claim cannot be taken again, since problems in between "
                "read below themselves; they are held to the solution"
            )
        if not (stepped and separable):
            claimed, first, second = self._against(set())
            return claimed, None, first, second
        solved = self._against(set())[0] if self._settings.to_solution else None
        claimed, first, second = self._against(stepped)
        return claimed, solved, first, second

    # One problem's loss by itself.

    def _look(self, name: str) -> None:
        """Check the gradient of a loss against its values, and see what the loss does."""
        subject = self._subject
        self._require_finite(name, subject.start)
        wanted = subject.reads(name)
        if wanted:
            self._compare_gradient(name, wanted)
        values, states = [], [self._settings.random_state(i, subject.devices) for i in (0, 0, 1)]
        for state in states:
            with state.replay(), AttentionWatch() as watch:
                values.append(float(scalar(subject.look(name), name).detach()))
        precise = torch.finfo(subject.precision or subject.dtype).eps
        if not math.isclose(values[0], values[1], rel_tol=math.sqrt(precise), abs_tol=precise):
            subject.symptoms.append(
                f"the loss of {name!r} is {values[0]:.6g} and, evaluated again with the same "
                f"random numbers, {values[1]:.6g}: it draws from a generator that is not replayed, "
                "or depends on what it has been called with"
            )
        elif values[0] != values[2]:
            subject.notes.append(f"the loss of {name!r} draws random numbers; the check holds them")
        for kernel in sorted(watch.kernels):
            subject.notes.append(
                f"the loss of {name!r} runs the attention kernel {kernel}, which has no second "
                "derivative: exact products run on the math kernel instead"
            )

    def _compare_gradient(self, name: str, wanted: Sequence[str]) -> None:
        """Compare autograd's gradient of a loss with differences of its values, a little beside the
        start: at a minimiser both are zero.
        """
        evaluate, seed = self._subject.evaluate, self._settings.seed
        near = {
            k: axpy(step_length(v, 1e-2 * (1 + 0.37 * i)), unit(v, seed + i), v)
            for i, (k, v) in enumerate(self._subject.start.items())
        }
        _, partials = evaluate(name, near, wanted)
        gradient = tuple(t for w in wanted for t in partials[w])
        point = tuple(t for w in wanted for t in near[w])
        dtype = coarsest(point)
        fine = dtype == torch.float64
        directions = basis((gradient,), point, num_random=2 * fine, seed=seed)

        def differenced(moved: Tensors) -> tuple[float]:
            there = dict(near)
            for w in wanted:
                there[w], moved = moved[: len(near[w])], moved[len(near[w]) :]
            return (evaluate(name, there, ())[0],)

        radius = 1e-4 if fine else None  # short, not to cross the kinks of ReLUs
        rows = [row[0] for row in slopes(differenced, point, directions, dtype, radius)]
        self._gradient_errors[name] = measure(gradient, directions, rows).excess

    def _require_finite(self, name: str, values: Values) -> None:
        value, _ = self._subject.evaluate(name, values, ())
        if not math.isfinite(value):
            at_start = values is self._subject.start
            where = "the check starts from" if at_start else "the lower problems were put"
            raise FloatingPointError(f"the loss of {name!r} is {value} where {where}")

    # The hypergradient.

    def _against(self, stepped: set[str]) -> tuple[Comparison, Parts, Parts]:
        """Return the comparison with the problems `stepped` at the end of the steps of a round, as
        their methods claim, and the others at their solutions; the hypergradient there, twice.
        """
        subject, landscape = self._subject, self._landscape
        inside = {r for name in stepped for r in subject.felt[name]}  # solved on the way
        names = [name for name in subject.below if name not in inside]
        solved = [name for name in names if name not in stepped]
        values: dict[str, Tensors] = dict(subject.start)
        stands: dict[str, Stand] = {}
        self._log = Log()
        with subject.run(stepped, landscape, self._log) as run:
            given = subject.solve(values) if solved else None
            if given is not None:
                landscape.prepare(names[0], given)
                values, residuals = given, [landscape.distance(names[0], given)]
            else:
                for group in [[name] for name in names] if stepped else [names]:
                    if group[0] in stepped:
                        stands[group[0]] = run.take(group[0], values, "all")
                        values[group[0]] = stands[group[0]].end
                    else:
                        values = landscape.settle(group, values)
                residuals = [landscape.residuals[name] for name in (*solved, *inside)]
            solution = dict(values)
            for name in reversed(solved):
                steps = "last" if subject.claims[name] is Claim.STEPS else "none"
                values[name] = run.take(name, values, steps).end
            first, second = self._hypergradient(run, values)

        def ends(there: Values) -> Values:
            found = dict(subject.solve(there) or there) if solved else dict(there)
            for name in names if given is None else ():
                if name in stepped:
                    found[name] = stands[name].again(found)
                else:
                    found = landscape.solve(name, found)
            return found

        through = "; ".join(f"{name!r} {subject.claims[name].value}" for name in subject.below)
        reference = f"differences, {through}" if stepped else SOLVED_AGAIN
        differenced = partial(self._pair, ends, solution)
        return (
            self._compare(reference, first, differenced, max(residuals, default=0.0)),
            first,
            second,
        )

    def _hypergradient(self, run: Run, values: Values) -> tuple[Parts, Parts]:
        """Return the hypergradient, and again with other random numbers, witnessed."""
        name = self._subject.name
        for other in (name, *self._subject.below):
            self._require_finite(other, values)
        first, second = run.hypergradient(values)
        if not math.isfinite(float(norm(first.direct)) + float(norm(first.response))):
            raise FloatingPointError(f"the hypergradient of {name!r} is not finite")
        return first, second

    def _pair(
        self, ends: Callable[[Values], Values], base: Values, x: Tensors
    ) -> tuple[float, float]:
        """Return the checked loss at `x` with the lower problems at their ends there, and the same
        with its own parameters as they are: the derivatives are the whole hypergradient and the
        response.
        """
        name, evaluate = self._subject.name, self._subject.evaluate
        values = ends({**base, name: x})
        whole = evaluate(name, values, ())[0]
        if not self._subject.reads(name):
            return whole, whole
        return whole, evaluate(name, {**values, name: self._point}, ())[0]

    def _compare(
        self,
        reference: str,
        value: Parts,
        differenced: Callable[[Tensors], tuple[float, float]],
        residual: float,
    ) -> Comparison:
        """Return how `value` compares with the differences of a `reference`; unknown where the
        lower problems are not solved, by their `residual`.
        """
        if not residual <= UNSOLVED:
            return Comparison(reference, *UNKNOWN, residual)
        point, chosen = self._point, self._settings
        direct, response = (
            tuple(t.to(p.dtype) for t, p in zip(part, point, strict=True)) for part in value[:2]
        )
        whole = add(direct, response)
        found = basis((response, whole), point, num_random=chosen.num_directions, seed=chosen.seed)
        rows = slopes(differenced, point, found, self._type, chosen.radius)
        if not all(math.isfinite(slope.value) for row in rows for slope in row):
            raise FloatingPointError(f"a loss is not finite near the point ({reference})")
        self._spanned = len(found.directions), found.complete
        mine = measure(response, found, [row[1] for row in rows])
        total = measure(whole, found, [row[0] for row in rows])
        return Comparison(
            reference,
            relative_error=mine.relative_error,
            cosine=mine.cosine,
            scale_ratio=mine.scale_ratio,
            uncertainty=mine.uncertainty,
            response=mine.length,
            total_error=total.relative_error,
            total_uncertainty=total.uncertainty,
            residual=residual,
        )

    def _report(
        self, claimed: Comparison, solved: Comparison | None, first: Parts, second: Parts
    ) -> Report:
        """Return the report on a hypergradient, `first`, and the same after the random generators
        have moved, `second`.
        """
        subject, settings = self._subject, self._settings
        size = float(norm(first.response))
        change = float(norm(subtract(second.response, first.response)))
        tol = settings.tol or default_tolerance(subject.dtype, subject.precision)
        return Report(
            problem=subject.name,
            methods={name: repr(method) for name, method in subject.methods.items()},
            claimed=claimed,
            solved=solved,
            mixed_vanished=size == 0.0 or size <= 1e-6 * claimed.response,
            rng_sensitivity=change / size if size else (0.0 if change == 0.0 else math.inf),
            gradient_errors=self._gradient_errors,
            detached=settings.detached,
            seen=tuple(subject.symptoms),
            solves=tuple(self._log.solves.values()),
            products=self._log.products,
            infos=first.infos,
            num_directions=self._spanned[0],
            complete=self._spanned[1],
            dtype=subject.dtype,
            precision=subject.precision,
            tol=tol,
            notes=(*subject.notes, *self._limits((claimed, solved), tol)),
        )

    def _limits(self, comparisons: Sequence[Comparison | None], tol: float) -> list[str]:
        """Return what limits the check."""
        found = []
        if not self._spanned[1]:
            found.append(
                f"errors are estimated from {self._settings.num_directions} random directions "
                "beside the hypergradient's own"
            )
        if any(c is not None and c.residual > 0.1 * tol for c in comparisons):
            found.append(
                "a lower problem could not be solved: it may have no isolated minimum (no "
                "regularisation, too few examples in the batches), or its gradient is not that of "
                "its loss"
            )
        dtype, precision = self._subject.dtype, self._subject.precision
        if self._type != torch.float64:
            found.append(
                f"differences in {short(self._type)} tell errors down to about "
                f"{default_tolerance(self._type, None):g}; a float64 copy of the problem tells more"
            )
        elif dtype != torch.float64:
            found.append(f"references in float64, the hypergradient in {short(dtype)}")
        if precision is not None:
            found.append(f"autocast to {short(precision)} is off in all references")
        return found
