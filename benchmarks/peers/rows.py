"""What is compared: problems, methods, and what these claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.peers import adapter_tasks, tasks
from benchmarks.peers.chains import Chain
from benchmarks.peers.library import Claim
from benchmarks.peers.task import Task

Build = Callable[[torch.dtype], Task | Chain]
ONE_STEP, STEPS = Claim("one step"), Claim("steps")


@dataclass(frozen=True)
class Row:
    """One problem and one method, on which the libraries stand beside each other.

    Attributes:
        method: its name in every library.
        build: the problem, in a type.
        claim: what its hypergradient is compared with.
        twin: a smaller problem for that comparison; None where it is made on the problem itself.
        large: left out of the short list.
        kind: the question that it belongs to, where there are several.
    """

    method: str
    build: Build
    claim: Claim
    twin: Build | None = None
    large: bool = False
    kind: str = ""


def solving(problem: Callable[..., Task], size: int, *, large: bool = False) -> list[Row]:
    """Return the rows of a small convex problem."""
    build = partial(problem, size=size)
    return [
        Row("cg(10)", build, Claim("krylov", 10), large=large),
        Row("cg(20)", build, Claim("implicit"), large=large),
        Row("neumann(10)", build, Claim("series", 10), large=large),
        Row("darts", build, ONE_STEP, large=large),
        Row("t1t2", build, ONE_STEP, large=large),
        Row("unrolled", partial(build, steps=10), STEPS, large=large),
    ]


def weighting() -> list[Row]:
    """Return the rows of Meta-Weight-Net."""
    plain = tasks.meta_weight_net
    convex = partial(plain, decay=1.0)  # without it H is indefinite, and CG is undefined
    adam = partial(plain, steps=2, optimizer="Adam")
    return [
        Row("darts", plain, ONE_STEP),
        Row("t1t2", plain, ONE_STEP),
        Row("sama", adam, ONE_STEP),
        Row("darts", adam, Claim("none")),
        # At larger rates training brings curvature to the edge, 2 / lr, where series diverge.
        Row("neumann(10)", partial(plain, lr=0.01), Claim("series", 10)),
        Row("cg(10)", convex, Claim("krylov", 10)),
    ]


def unrolling() -> list[Row]:
    """Return the rows of unrolled steps."""
    rows = []
    for steps in (10, 100):
        for optimizer in ("SGD", "Adam"):
            build = partial(tasks.reweighting, steps=steps, optimizer=optimizer)
            rows.append(Row("unrolled", build, STEPS, large=steps == 100))
            if optimizer == "SGD" and steps == 100:
                rows.append(Row("unrolled, checkpoints", build, STEPS, large=True))
    return [*rows, Row("unrolled", tasks.maml, STEPS)]


def adapters() -> list[Row]:
    """Return the rows of BiLoRA and BiDoRA on classifiers, and of BiLoRA on language models."""
    rows = []
    for kind in ("BiLoRA", "BiDoRA"):
        small = partial(adapter_tasks.adapter, kind=kind)
        rows += [
            Row("darts", small, ONE_STEP),
            Row("darts, one-sided", small, ONE_STEP),
            Row("darts", partial(small, rows=16, length=64), ONE_STEP, small, large=True),
        ]
    wide = partial(adapter_tasks.adapter, kind="BiLoRA", shape="roberta-base")
    twin = partial(adapter_tasks.adapter, kind="BiLoRA")
    writer = partial(adapter_tasks.adapter, kind="BiLoRA", shape="GPT-2")
    short = partial(adapter_tasks.adapter, kind="BiLoRA", shape="GPT-2, small")
    rows += [
        Row("darts", short, ONE_STEP),
        Row("darts", writer, ONE_STEP, short, large=True),
    ]
    wider = partial(wide, rows=16, length=64)
    return [
        *rows,
        Row("t1t2", twin, ONE_STEP),
        Row("darts", wide, ONE_STEP, twin, large=True),
        Row("darts", wider, ONE_STEP, twin, large=True),
    ]


ROWS: Mapping[str, Callable[[], list[Row]]] = {
    "ridge": lambda: [*solving(tasks.ridge, 50), *solving(tasks.ridge, 1000, large=True)],
    "logistic": lambda: [*solving(tasks.logistic, 30), *solving(tasks.logistic, 1000, large=True)],
    "Meta-Weight-Net": weighting,
    "unrolling": unrolling,
    "adapters": adapters,
}
