"""BOAT 1.1.1."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from torch import Tensor, nn

from benchmarks.peers import with_higher
from benchmarks.peers.library import Absent, Entry, Library, Round, Train, register
from benchmarks.peers.task import Task

# BOAT imports losses by the name of their module.
losses: dict[str, Task] = {}


def find() -> None:
    """Import BOAT, and higher beneath it, whose code warns where it is compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import boat_torch.boat_opt  # noqa: F401


def lower_loss(data: Any, upper: nn.Module, lower: Any, params: Any = None, *, key: str) -> Tensor:
    """Return the lower loss of the task called `key`."""
    return losses[key].lower_loss(upper, _with(lower, params))


def upper_loss(data: Any, upper: nn.Module, lower: Any, params: Any = None, *, key: str) -> Tensor:
    """Return the upper loss of the task called `key`."""
    return losses[key].upper_loss(upper, _with(lower, params))


def _with(lower: Any, params: Any) -> Any:
    if params is None:
        return lower
    return lambda *inputs, **named: lower(*inputs, params=params, **named)


def train(*operations: str, number: int = 1) -> Train:
    """Return the rounds of some operations of BOAT."""

    def begin(task: Task) -> Round:
        if task.is_shared:
            raise Absent("it takes all parameters of the lower model for lower variables")
        if task.from_upper:
            raise Absent("not written for a start above")
        from boat_torch.boat_opt import Problem

        key = f"{id(task)}"
        losses[key] = task
        config = {
            "fo_op": None,
            "gm_op": ["NGD"],
            "na_op": list(operations),
            "lower_level_model": task.lower,
            "upper_level_model": task.upper,
            "lower_level_var": task.y,
            "upper_level_var": task.x,
            "lower_level_opt": task.lower_optimizer(),
            "upper_level_opt": task.upper_optimizer(),
            "lower_iters": task.steps,
            "device": "cpu",
            "loss_log_path": os.devnull,
            "accumulate_grad": False,
            "return_grad": False,
            "copy_last_param": True,
            "GDA": {"alpha_init": 0.0, "alpha_decay": 0.1},
            "CG": {"tolerance": 0.0, "k": number},
            "RGT": {"truncate_iter": 0},
            "PTT": {"truncate_iter": 0},
            "FOA": {"use": False},
            "FD": {"r": 0.01},
        }
        here = sys.modules[__name__].__name__
        found = {
            f"{level}_level_loss": {"function": f"{here}.{level}_loss", "params": {"key": key}}
            for level in ("lower", "upper")
        }
        problem = Problem(config, found)
        problem.build_ll_solver()
        problem.build_ul_solver()

        def once() -> None:
            problem.run_iter({}, {}, 0)
            # Both grow, and the first is written anew each time: a round would cost what came
            # before it.
            problem.loss_history.clear()
            problem._log_results.clear()

        return once

    return begin


BOAT = register(
    Library(
        "BOAT",
        "boat-torch",
        find,
        {
            "unrolled": Entry(train("RAD"), with_higher.claim),  # higher's optimizers
            "darts": Entry(train("FD")),
            "cg(10)": Entry(train("CG", number=10)),
            "cg(20)": Entry(train("CG", number=20)),
            "neumann(10)": Entry(train("NS", number=10)),
        },
    )
)
