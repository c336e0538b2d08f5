"""The methods under comparison: each a family with one number that buys accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import blo
from blo import Method

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 23, 32, 48, 64, 98, 128, 198)


@dataclass(frozen=True)
class Family:
    """A method as a function of the effort put in.

    Attributes:
        make: the method for a size; None for methods without a size.
        fixed: the method, where there is no size.
        tuned: the method for a step of one over the largest curvature, where it needs one.
        rate: the theoretical rate of its error, shown beside the measured one.
        rounds: the size is a number of calls with a state handed on, not a setting.
        engine: needs lower steps recorded by an engine; plain functions do not do.
        steps: the size is the number of lower steps.
    """

    rate: str
    make: Callable[[int], Method] | None = None
    fixed: Method | None = None
    tuned: Callable[[float], Method] | None = None
    rounds: bool = False
    engine: bool = False
    steps: bool = False


FAMILIES: dict[str, Family] = {
    "darts": Family("constant", fixed=blo.darts()),
    "t1t2": Family("constant", fixed=blo.t1t2()),
    "sama": Family("constant", fixed=blo.sama(), engine=True),
    "neumann": Family("(1 - 1/k)^K", blo.neumann),
    "cg": Family("2 ((sqrt k - 1)/(sqrt k + 1))^K", blo.cg),
    "minres": Family("as cg, in the residual", blo.minres),
    "gmres": Family("as minres", blo.gmres),
    "bicgstab": Family("no bound", blo.bicgstab),
    "normal_cg": Family("2 ((k - 1)/(k + 1))^(K/2)", lambda n: blo.normal_cg(n + 1)),
    "nystrom": Family("O(eigenvalue r + 1)", blo.nystrom),
    "dense": Family("exact", fixed=blo.dense()),
    "soba": Family("(1 - 1/k)^rounds", tuned=lambda s: blo.soba(step=s), rounds=True),
    "unrolled": Family("(1 - 1/k)^T", blo.unrolled, engine=True, steps=True),
    "forward_mode": Family("(1 - 1/k)^T", lambda _: blo.forward_mode(), engine=True, steps=True),
    "evolution": Family("O(sqrt(upper numbers / n))", blo.evolution, engine=True),
    "f2sa": Family("O(delta) + its solver's", blo.f2sa),
    "pbgd": Family("O(1/penalty)", lambda n: blo.pbgd(100.0, num_steps=n)),
}
