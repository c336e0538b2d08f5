"""What a round of every method should cost, by the cost model of docs/design.md, section 6."""

from __future__ import annotations

from dataclasses import dataclass

import blo
from blo import Method


@dataclass(frozen=True)
class Count:
    """A method with the theoretical cost of its response: gradients and products."""

    method: Method
    num_gradients: int
    num_products: int
    steps: int = 1


ROUNDS: dict[str, Count] = {
    "alternating": Count(blo.alternating(), 0, 0),
    "darts, one-sided": Count(blo.darts(one_sided=True), 1, 0),
    "darts": Count(blo.darts(), 2, 0),
    "sama": Count(blo.sama(), 2, 0),
    "t1t2": Count(blo.t1t2(), 0, 1),
    "soba": Count(blo.soba(step=0.1), 1, 2),
    "neumann(5)": Count(blo.neumann(5, scale=0.01), 1, 6),
    "cg(5)": Count(blo.cg(5, damping=1.0), 1, 6),
    "minres(5)": Count(blo.minres(5, damping=1.0), 1, 6),
    "gmres(5)": Count(blo.gmres(5, damping=1.0), 1, 6),
    "nystrom(5)": Count(blo.nystrom(5, rho=1.0), 1, 6),
    "f2sa(5)": Count(blo.f2sa(5, lr=0.1, delta=0.01), 6, 0),
    "unrolled, 4 steps": Count(blo.unrolled(), 0, 4, steps=4),
}
