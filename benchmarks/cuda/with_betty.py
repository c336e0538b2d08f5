"""Rounds of Betty 0.2.1 on the same model, where it can be imported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cuda.by_hand import LOWER_LR, UPPER_LR
from benchmarks.cuda.rows import Absent
from benchmarks.cuda.shapes import Adapted, Batch
from benchmarks.versions import version_of

# Betty knows no one-sided difference, no T1-T2 and no control; its CG 0.2.1 takes a wrong direction
# from the second product on, its differences have a radius of their own and its step is one.
TYPES = {"darts": "darts", "sama": "sama", "cg(5)": "cg"}


def betty_version() -> str:
    """Return Betty's version.

    Raises:
        Absent: it cannot be imported, with the reason.
    """
    try:
        import betty.engine  # noqa: F401
    except ImportError as error:
        raise Absent(f"betty cannot be imported: {error}") from error
    return version_of("betty-ml")


def strategy_of(here: Adapted) -> str:
    """Return Betty's word for the device, which it would else choose by itself."""
    return "gpu" if here.device.type == "cuda" else "cpu"


def betty_round(here: Adapted, method: str) -> Callable[[], None]:
    """Return a function that takes a lower and an upper step with Betty.

    Raises:
        Absent: Betty cannot be imported, or has no such method.
    """
    betty_version()
    if method not in TYPES:
        raise Absent(f"Betty has no {method}")
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    class Level(ImplicitProblem):
        """One level: the parameters that its optimizer holds, as Betty rebuilds optimizers."""

        def __init__(self, own: list[Tensor], **settings: Any) -> None:
            super().__init__(**settings)
            self.own = own

        def training_step(self, batch: Batch) -> Tensor:
            return here.loss(batch)

        def trainable_parameters(self) -> list[Tensor]:
            return self.own

        def parameters(self) -> list[Tensor]:
            return self.own

    class Quiet(Engine):
        """An engine that neither validates nor chooses a device."""

        def validation(self) -> None:
            """Nothing."""

    x, y = here.split.upper, here.split.lower
    logging.disable(logging.INFO)
    try:
        upper = Level(
            x,
            name="upper",
            config=Config(retain_graph=True),
            module=here.model,
            optimizer=torch.optim.Adam(x, UPPER_LR),
            train_data_loader=[here.upper],
        )
        lower = Level(
            y,
            name="lower",
            config=Config(type=TYPES[method], cg_iterations=5),
            module=here.model,
            optimizer=torch.optim.Adam(y, LOWER_LR),
            train_data_loader=[here.lower],
        )
        engine = Quiet(
            problems=[upper, lower],
            config=EngineConfig(train_iters=1, valid_step=10**9, strategy=strategy_of(here)),
            dependencies={"u2l": {upper: [lower]}, "l2u": {lower: [upper]}},
        )
    finally:
        logging.disable(logging.NOTSET)
    engine.train()

    def once() -> None:
        engine.global_step += 1
        # Its CG differentiates twice and leaves the choice of a kernel to its user.
        with sdpa_kernel(SDPBackend.MATH) if method == "cg(5)" else nullcontext():
            engine.train_step()

    return once
