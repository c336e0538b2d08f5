"""Kronecker factors against other solvers: the error of the response beside what it costs.

``python -m benchmarks.kfac`` trains four lower problems (``--problems "BiLoRA, MiniLM"`` another,
which takes an hour), takes the response ``-g_xy v`` with
``(g_yy + damping I) v = f_y`` in float64 by a long run of MINRES, and compares every solver in
float32 with it, at so many products. A line a response goes to ``benchmarks/results/kfac.jsonl``;
``--markdown FILE`` writes the tables between the marks "kfac" of a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path("benchmarks/results/kfac.jsonl")
SIZES = (1, 2, 5, 10, 20, 40, 80)
PROBLEMS = ("softmax layer", "Meta-Weight-Net", "Meta-Weight-Net, digits", "BiLoRA, tiny BERT")
LARGE = ("BiLoRA, MiniLM",)


@dataclass(frozen=True)
class Line:
    """One solver on one problem; the fields that tools read."""

    method: str
    problem: str
    setting: str
    seed: int
    size: int
    error: float
    status: str
    num_gradients: int
    num_hvps: int
    seconds: float
    num_lower: int
    damping: float
    library: str = "blo-torch"
    version: str = ""


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kfac", description=__doc__)
    parser.add_argument("--problems", nargs="*", default=PROBLEMS, choices=PROBLEMS + LARGE)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each problem")
    parser.add_argument("--repeats", type=int, default=3, help="times a response is taken")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines; written anew")
    parser.add_argument("--markdown", type=Path, help="write the tables into this file")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = []
    with options.out.open("w", encoding="utf-8") as file:
        for problem in options.problems:
            for seed in range(options.seeds):
                for line in lines(problem, seed, options.repeats):
                    found.append(line)
                    print(
                        f"{problem}, seed {seed}: {line.method:>22} {line.size:>3}  "
                        f"{line.error:.1e}  {line.seconds:.3f} s  {line.status}",
                        flush=True,
                    )
                    file.write(json.dumps(asdict(line)) + "\n")
                    file.flush()
    text = tables(found)
    print(text)
    if options.markdown:
        from benchmarks.accuracy import write_between

        write_between(options.markdown, "kfac", text)


def lines(problem: str, seed: int, repeats: int) -> Iterator[Line]:
    """Yield what each solver reaches on one training of a problem."""
    from benchmarks.kfac_problems import trained
    from benchmarks.versions import version_of

    case = trained(problem, seed)
    reference, residual = case.reference()
    setting = f"{case.setting}; reference to {residual:.0e}"
    for name, make in methods(case.damping).items():
        for size in SIZES:
            try:
                method = make(size)
            except ValueError:  # no products are left beside the preconditioner's
                continue
            error, info, seconds = case.compared(method, reference, repeats)
            yield Line(
                method=name,
                problem=problem,
                setting=setting,
                seed=seed,
                size=size,
                error=error,
                status="" if info.status is None else info.status.value,
                num_gradients=info.num_gradients,
                num_hvps=info.num_products,
                seconds=seconds,
                num_lower=case.num_lower,
                damping=case.damping,
                version=version_of("blo-torch"),
            )
            if name in ("t1t2", "kfac"):
                break


def methods(damping: float) -> dict[str, Callable[[int], object]]:
    """Return the solvers, by the products they may take."""
    import blo
    from benchmarks.kfac_problems import Alone

    d = damping
    return {
        "t1t2": lambda k: blo.t1t2(1.0),
        "cg": lambda k: blo.cg(k, damping=d),
        "minres": lambda k: blo.minres(k, damping=d),
        "neumann": lambda k: blo.neumann(k, damping=d),
        "nystrom": lambda k: blo.nystrom(k, rho=d, gaussian=True),
        "cg + Nystrom": lambda k: blo.cg(
            k, damping=d, preconditioner=blo.Nystrom(k // 2, gaussian=True)
        ),
        "kfac": lambda k: blo.Implicit(Alone(blo.KFAC(d))),
        "cg + KFAC": lambda k: blo.cg(k, damping=d, preconditioner=blo.KFAC()),
        "minres + KFAC": lambda k: blo.minres(k, damping=d, preconditioner=blo.KFAC()),
    }


def tables(found: list[Line]) -> str:
    """Return a table a problem: the median error over seeds, and the seconds, by products."""
    parts = []
    for problem in dict.fromkeys(line.problem for line in found):
        mine = [line for line in found if line.problem == problem]
        head = mine[0]
        title = f"**{problem}** ({head.setting}; {head.num_lower} unknowns)"
        rows = [
            title,
            "",
            "| method | " + " | ".join(map(str, SIZES)) + " |",
            "| --- " * (len(SIZES) + 1) + "|",
        ]
        for method in dict.fromkeys(line.method for line in mine):
            cells = []
            for size in SIZES:
                here = [x for x in mine if (x.method, x.size) == (method, size)]
                cells.append(_cell(here) if here else "")
            rows.append(f"| `{method}` | " + " | ".join(cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _cell(here: list[Line]) -> str:
    error = statistics.median(x.error for x in here)
    seconds = statistics.median(x.seconds for x in here)
    broken = "!" if any(x.status in ("indefinite", "diverged") for x in here) else ""
    return f"{error:.1e}{broken} ({seconds:.2f} s)"


if __name__ == "__main__":
    main()
