"""Accuracy at equal cost: the error of every method's hypergradient against the exact one.

``python -m benchmarks.accuracy`` prints a table for each problem: the smallest relative error that
a method reaches at a cost of at most so many units (gradients plus products, on one lower batch),
taken at the lower solution. ``--json FILE`` appends a line a measurement, ``--markdown FILE``
writes the tables between the file's accuracy marks, ``--add FILE.py`` runs a file that adds a
method of your own (docs/own/solver.md).
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.cases import CASES, TwoLevel
from benchmarks.families import FAMILIES, SIZES, Family
from benchmarks.nested import GRAPHS, Vector, nested_gradient, received
from benchmarks.versions import version_of
from blo import Engine, Method, Problem, ProblemGraph, hypergradient

BUDGETS = (3, 6, 12, 25, 50, 100, 200)


@dataclass(frozen=True)
class Measurement:
    """One hypergradient; the fields that tools read."""

    method: str
    problem: str
    setting: str
    error: float
    num_gradients: int
    num_hvps: int
    seconds: float
    library: str = "blo-torch"
    version: str = version_of("blo-torch")
    seconds_per_gradient_unit: float | None = None
    peak_memory_mb: float | None = None

    @property
    def cost(self) -> int:
        """Gradients and products together."""
        return self.num_gradients + self.num_hvps


def on_functions(case: TwoLevel, method: Method, rounds: int = 1) -> tuple[torch.Tensor, int, int]:
    """Return the hypergradient of plain functions after some calls, and the cost of all calls."""
    state, num_gradients, num_products = None, 0, 0
    for _ in range(rounds):
        result = hypergradient(
            case.upper_loss,
            case.lower_loss,
            (case.upper,),
            (case.lower,),
            method=method,
            state=state,
        )
        state = result.state
        num_gradients += result.info.num_gradients
        num_products += result.info.num_products
    return result.grads[0], num_gradients, num_products


def on_engine(case: TwoLevel, method: Method, steps: int = 1) -> tuple[torch.Tensor, int, int]:
    """Return the hypergradient after `steps` gradient steps of length 1 / L from the solution."""
    x, y = Vector(case.upper.clone()), Vector(case.lower.clone())
    lr = 1.0 / float(case.spectrum[-1])
    graph = ProblemGraph(
        [
            Problem(
                "upper",
                lambda _: case.upper_loss((x.value,), (y.value,)),
                (x, y),
                torch.optim.SGD(x.parameters(), lr=0.0),
                [None],
            ),
            Problem(
                "lower",
                lambda _: case.lower_loss((x.value,), (y.value,)),
                (x, y),
                torch.optim.SGD(y.parameters(), lr=lr),
                [None],
                steps=steps,
                method=method,
            ),
        ]
    )
    return received(Engine(graph))


def measurements(problem: str, case: TwoLevel, name: str, family: Family) -> Iterator[Measurement]:
    """Yield the errors of one method on one problem, by growing size, until it is exact."""
    for size in SIZES:
        method = _method(family, size, 1.0 / float(case.spectrum[-1]))
        start = time.perf_counter()
        if family.engine:
            value, gradients, products = on_engine(case, method, size if family.steps else 1)
        else:
            value, gradients, products = on_functions(case, method, size if family.rounds else 1)
        seconds = time.perf_counter() - start
        error = float((value - case.hypergradient).norm() / case.hypergradient.norm())
        yield Measurement(name, problem, f"{size}", error, gradients, products, seconds)
        fixed = family.make is None and not family.rounds
        if fixed or error < 1e-12 or gradients + products > BUDGETS[-1]:
            return


def _method(family: Family, size: int, step: float) -> Method:
    if family.make is not None:
        return family.make(size)
    method = family.fixed if family.tuned is None else family.tuned(step)
    assert method is not None
    return method


def nested_measurements(name: str, family: Family) -> Iterator[Measurement]:
    """Yield the errors of one method at every level of the nested quadratics."""
    if family.make is None or family.engine or name in ("f2sa", "pbgd"):
        return
    for problem, reads in GRAPHS.items():
        for size in (1, 2, 3, 4, 8, 16, 32):
            start = time.perf_counter()
            value, reference, gradients, products = nested_gradient(reads, family.make(size))
            error = float((value - reference).norm() / reference.norm())
            seconds = time.perf_counter() - start
            yield Measurement(name, problem, f"{size}", error, gradients, products, seconds)


def table(found: list[Measurement], title: str, rates: bool = True) -> str:
    """Return a Markdown table of the smallest error at each budget."""
    names = list(dict.fromkeys(m.method for m in found))
    head = ["method", *(f"{b}" for b in BUDGETS), *(["rate in theory"] if rates else [])]
    lines = [f"**{title}**", "", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name in names:
        mine = [m for m in found if m.method == name]
        cells = []
        for budget in BUDGETS:
            within = [m.error for m in mine if m.cost <= budget]
            cells.append(_short(min(within)) if within else "")
        row = [f"`{name}`", *cells, *([FAMILIES[name].rate] if rates else [])]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def nested_table(found: list[Measurement]) -> str:
    """Return a Markdown table of the error of each graph by the methods' size."""
    sizes = list(dict.fromkeys(m.setting for m in found))
    lines = ["| graph | method | " + " | ".join(sizes) + " |", "| --- " * (len(sizes) + 2) + "|"]
    for problem in GRAPHS:
        for name in dict.fromkeys(m.method for m in found):
            cells = [_short(m.error) for m in found if (m.problem, m.method) == (problem, name)]
            lines.append(f"| {problem} | `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(error: float) -> str:
    return "exact" if error < 1e-10 else f"{error:.1e}"


def write_between(path: Path, mark: str, text: str) -> None:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->`` in a file."""
    old = path.read_text()
    before, rest = old.split(f"<!-- {mark} -->", 1)
    _, after = rest.split(f"<!-- /{mark} -->", 1)
    path.write_text(f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small problems only")
    parser.add_argument("--problems", nargs="*", help=f"among {list(CASES)}")
    parser.add_argument("--methods", nargs="*", help=f"among {list(FAMILIES)}")
    parser.add_argument("--add", type=Path, help="run this file first: it adds to FAMILIES, CASES")
    parser.add_argument("--json", type=Path, help="append a line a measurement")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file")
    options = parser.parse_args(arguments)
    if options.add:
        runpy.run_path(str(options.add))
    for name, known in (("methods", FAMILIES), ("problems", CASES)):
        if unknown := set(getattr(options, name) or ()) - set(known):
            parser.error(f"--{name} has no {', '.join(sorted(unknown))}; choose among {[*known]}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    problems = options.problems or [
        p for p in CASES if not (options.quick and p in ("MLP", "transformer"))
    ]
    families = {k: f for k, f in FAMILIES.items() if not options.methods or k in options.methods}
    tables, everything = [], []
    for problem in problems:
        case = CASES[problem]()
        found = [m for name, f in families.items() for m in measurements(problem, case, name, f)]
        low, high = float(case.spectrum[0]), float(case.spectrum[-1])
        title = f"{problem}: {case.lower.numel()} unknowns, k = {high / low:.4g}, L = {high:.3g}"
        tables.append(table(found, title))
        everything += found
        print(tables[-1] + "\n", flush=True)
    if not options.problems:
        nested = [m for name, f in families.items() for m in nested_measurements(name, f)]
        everything += nested
        tables.append(
            "**Three and four levels**, by products a response\n\n" + nested_table(nested)
        )
        print(tables[-1] + "\n", flush=True)
    if options.json:
        with options.json.open("a") as file:
            file.writelines(json.dumps(asdict(m)) + "\n" for m in everything)
    if options.markdown:
        write_between(options.markdown, "accuracy", "\n\n".join(tables))


if __name__ == "__main__":
    main()
