"""The default radius of difference steps beside the best radius of a scan.

``python -m benchmarks.radius`` prints a line for each problem of `benchmarks.radius_problems`, each
type and central and one-sided differences: the relative error of the mixed product at the default
radius (`blo.derivatives.differences.DEFAULT_RADIUS`), the least error among `FACTORS` times that
radius, and whether the default is within the criterion: an error of at most 5 %, or of at most 1.5
times the least. The reference is the exact product in float64 at the same weights and batch; the
error of the exact product in the same type stands beside it. ``--json FILE`` appends a line a
measurement and measures only what the file does not hold; ``--markdown FILE`` writes the table
between the file's radius marks. ``--quick`` leaves the larger problems out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.accuracy import write_between
from benchmarks.radius_problems import HELD_OUT, SMALL, TUNED, Pair
from benchmarks.versions import version_of
from blo import Exact, FiniteDifference, Point
from blo.derivatives.differences import DEFAULT_RADIUS, default_radius
from blo.derivatives.lower import LowerObjective
from blo.derivatives.random_state import RandomState
from blo.evaluation import ModuleObjective, ParameterSpace

PROBLEMS = {**TUNED, **HELD_OUT}
FACTORS = [10 ** (k / 3) for k in range(-6, 7)]
TYPES: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "bfloat16 autocast": (torch.float32, torch.bfloat16),
    "float16 autocast": (torch.float32, torch.float16),
}
ENOUGH = 0.05
NEAR_THE_BEST = 1.5


@dataclass(frozen=True)
class Measurement:
    """The default radius on one problem in one type; the fields that tools read."""

    problem: str
    held_out: bool
    type: str
    asked: str
    taken: str
    radius: float
    error: float
    best_radius: float
    best_error: float
    exact_error: float
    library: str = "blo-torch"
    version: str = version_of("blo-torch")

    @property
    def ratio(self) -> float:
        """The error at the default over the least of the scan."""
        return self.error / self.best_error if self.best_error else 1.0

    @property
    def within(self) -> bool:
        """Whether the default is within the criterion."""
        return self.error <= max(ENOUGH, NEAR_THE_BEST * self.best_error)


def lower_of(
    pair: Pair, dtype: torch.dtype, precision: torch.dtype | None
) -> tuple[LowerObjective, Point]:
    """Return the lower problem in the given types; the same weights in all of them."""
    for module in (pair.net, pair.upper):
        module.to(dtype)
    space, upper = ParameterSpace([pair.net, pair.upper]), (pair.upper.value,)
    objective = ModuleObjective(
        space, upper, pair.lower, pair.loss, None, RandomState.capture(), precision, "lower"
    )
    return LowerObjective((objective,)), Point(_copies(upper), _copies(pair.lower))


def direction_and_product(make: Callable[[], Pair]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the direction of a problem and the exact product with it, in float64."""
    pair = make()
    lower, point = lower_of(pair, torch.float64, None)
    found = torch.autograd.grad(pair.above(None), pair.lower, materialize_grads=True)
    v = tuple(g * s for g, s in zip(found, pair.factors, strict=True)) if pair.factors else found
    return v, Exact().at(lower, point).mixed(v)[0]


def measurements(problem: str, kinds: list[str]) -> Iterator[Measurement]:
    """Yield the measurements of one problem in some types, central and one-sided."""
    if not kinds:
        return
    direction, reference = direction_and_product(PROBLEMS[problem])

    def error_of(value: Tensor) -> float:
        return float((value.double() - reference).norm() / reference.norm())

    for kind in kinds:
        dtype, precision = TYPES[kind]
        lower, point = lower_of(PROBLEMS[problem](), dtype, precision)
        v = tuple(t.to(dtype) for t in direction)
        own = error_of(Exact().at(lower, point).mixed(v)[0])
        for one_sided in (False, True):

            def error_at(radius: float | None, one_sided: bool = one_sided) -> float:
                products = FiniteDifference(radius, one_sided).at(lower, point)  # noqa: B023
                return error_of(products.mixed(v)[0])  # noqa: B023

            radius, still_one_sided = default_radius(precision or dtype, one_sided=one_sided)
            scan = {f * radius: error_at(f * radius) for f in FACTORS}
            best = min(scan, key=lambda r: scan[r])
            yield Measurement(
                problem=problem,
                held_out=problem in HELD_OUT,
                type=kind,
                asked="one-sided" if one_sided else "central",
                taken="one-sided" if still_one_sided else "central",
                radius=radius,
                error=error_at(None),
                best_radius=best,
                best_error=scan[best],
                exact_error=own,
            )


def table(found: list[Measurement]) -> str:
    """Return a Markdown table: a row a problem, a column a type and side."""
    columns = list(dict.fromkeys((m.type, m.asked) for m in found))
    radii = {
        (kind, asked): DEFAULT_RADIUS[TYPES[kind][1] or TYPES[kind][0]][asked == "one-sided"]
        for kind, asked in columns
    }
    heads = [
        f"{kind}, {asked}: " + ("as central" if r is None else f"{r:g}")
        for (kind, asked), r in radii.items()
    ]
    lines = ["| problem | " + " | ".join(heads) + " |", "| --- " * (len(heads) + 1) + "|"]
    for problem in dict.fromkeys(m.problem for m in found):
        cells = []
        for column in columns:
            mine = [m for m in found if (m.problem, m.type, m.asked) == (problem, *column)]
            cells += [_cell(m) for m in mine[-1:]] or [""]
        held = " (held out)" if problem in HELD_OUT else ""
        lines.append(f"| {problem}{held} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(m: Measurement) -> str:
    """Return the error at the default and the least of the scan, in per cent, bold outside the
    criterion.
    """
    text = f"{100 * m.error:.2g} / {100 * m.best_error:.2g}"
    return text if m.within else f"**{text}**"


def line(m: Measurement) -> str:
    """Return a line to print."""
    verdict = "yes" if m.within else "NO"
    return (
        f"{m.problem:>24} {m.type:>17} {m.asked:>9} {m.radius:9.1e} {m.error:9.1e} "
        f"{m.best_radius:9.1e} {m.best_error:9.1e} {m.ratio:7.1f} {verdict:>6} {m.exact_error:9.1e}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small problems only")
    parser.add_argument("--problems", nargs="*", help=f"among {list(PROBLEMS)}")
    parser.add_argument("--types", nargs="*", help=f"among {list(TYPES)}")
    parser.add_argument("--json", type=Path, help="append a line a measurement; go on from there")
    parser.add_argument("--markdown", type=Path, help="write the table into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    if options.json and options.json.exists():
        held = [json.loads(text) for text in options.json.read_text().splitlines()]
        found = [Measurement(**fields) for fields in held]
    print(
        f"{'problem':>24} {'type':>17} {'asked':>9} {'radius':>9} {'error':>9} {'best':>9} "
        f"{'error':>9} {'ratio':>7} {'within':>6} {'exact':>9}"
    )
    for m in found:
        print(line(m))
    done = {(m.problem, m.type, m.asked) for m in found}
    for problem in options.problems or (SMALL if options.quick else PROBLEMS):
        for kind in options.types or TYPES:
            if (problem, kind, "one-sided") in done:
                continue
            for m in measurements(problem, [kind]):
                print(line(m), flush=True)
                found.append(m)
                if options.json:
                    with options.json.open("a") as file:
                        file.write(json.dumps(asdict(m)) + "\n")
    outside = [m for m in found if not m.within]
    print(f"\n{len(found) - len(outside)} of {len(found)} within the criterion")
    if options.markdown:
        write_between(options.markdown, "radius", table(found))


def _copies(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.detach().clone() for t in tensors)


if __name__ == "__main__":
    main()
