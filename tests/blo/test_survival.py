"""Runs that go on: bit-identical after a resume and after kills; levels that diverge stop."""

import copy
import io
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from benchmarks.survival import LEVELS, METHODS, engine, equal, places
from blo import Engine, Problem, ProblemGraph, alternating, t1t2

# Of the nested ones, those that keep something between rounds; the others cost seconds.
PLACES = [p for p in places(list(METHODS)) if p[1] != LEVELS[2] or p[0] in ("cg(3)", "t1t2()")]


@pytest.mark.filterwarnings("ignore:.*the difference of gradients:UserWarning")
@pytest.mark.parametrize("place", PLACES, ids=", ".join)
def test_every_method_resumes_bit_for_bit(place):
    method, levels = place
    straight = engine(METHODS[method](), levels)
    straight.run(1)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    right = straight.run(1).losses
    file.seek(0)
    state = torch.load(file, weights_only=True)
    kept = copy.deepcopy(state)
    resumed = engine(METHODS[method](), levels)
    resumed.load_state_dict(state)
    assert resumed.run(1).losses == right
    assert equal(resumed.state_dict(), straight.state_dict())
    assert equal(state, kept)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
def test_runs_that_are_killed_end_where_undisturbed_ones_do():
    command = [sys.executable, "-m", "benchmarks.survival", "kills", "--kills", "3"]
    command += ["--rounds", "5", "--methods", "soba()", "unrolled()", "evolution(2)"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 kills, 0 runs that ended elsewhere" in run.stdout


# Divergence.


def quadratic(lr, *, scale=1.0, shift=0.0, start=1.0, maximize=False, sign=1.0, **settings):
    """Two levels, of which the lower diverges if ``lr * scale > 1``."""
    x, y = (nn.ParameterList([torch.tensor(v, dtype=torch.float64)]) for v in (0.0, start))
    sgd = torch.optim.SGD(y.parameters(), lr, maximize=maximize)
    problems = [
        Problem(
            "top",
            lambda _: (x[0] - 1) ** 2 + 0 * y[0],
            [x, y],
            torch.optim.SGD(x.parameters(), 0.1),
            [None],
        ),
        Problem(
            "below",
            lambda _: sign * scale * (y[0] - x[0]) ** 2 + shift,
            [x, y],
            sgd,
            [None],
            method=t1t2() if not maximize else alternating(),
        ),
    ]
    return Engine(ProblemGraph(problems), **settings)


@pytest.mark.parametrize("shift", [0.0, -5.0, 100.0], ids=["small", "negative", "large"])
def test_a_diverging_level_stops_with_its_name_and_round(shift, tmp_path):
    made = quadratic(5.0, shift=shift)
    seen = []

    def keep(record):
        seen.append(record.losses["below"])
        made.save(tmp_path / "s.pt")

    made.callbacks = (keep,)
    with pytest.raises(FloatingPointError, match=r"'below' is .* in round \d+.*diverges") as stop:
        made.run(100)
    assert f"in round {len(seen) + 1}," in str(stop.value)
    assert f"The last state saved is {tmp_path / 's.pt'}" in str(stop.value)
    bound = 1e6 * max(1.0, sorted(abs(v) for v in seen[:3])[1])
    assert sum(v > bound for v in seen) == 2  # this one was the third
    made.load(tmp_path / "s.pt")
    assert made.round == len(seen)
    calm = quadratic(5.0, shift=shift, divergence=None)
    calm.run(len(seen) + 5)
    assert math.isfinite(calm.run(1).losses["below"])


def test_what_a_level_had_seen_is_part_of_the_state():
    straight, resumed = quadratic(5.0), quadratic(5.0)
    straight.run(4)
    resumed.load_state_dict(straight.state_dict())
    rounds = []
    for made in (straight, resumed):
        with pytest.raises(FloatingPointError, match="No state was saved"):
            made.run(100)
        rounds.append(made.round)
    assert rounds[0] == rounds[1]


CALM = {
    "starts at its solution and is pushed away": {"lr": 0.1, "start": 0.0, "scale": 1e3},
    "tiny": {"lr": 0.1, "scale": 1e-9},
    "huge": {"lr": 1e-13, "scale": 1e12},
    "negative": {"lr": 0.1, "shift": -1e3},
    "falls without a bound": {"lr": 1.0, "sign": -1.0},
    "maximised without a bound": {"lr": 1.0, "maximize": True},
}


@pytest.mark.parametrize("case", CALM)
def test_levels_that_do_not_diverge_are_left_alone(case):
    settings = dict(CALM[case])
    if case == "starts at its solution and is pushed away":
        settings["lr"] = 1e-4
    record = quadratic(**settings).run(30)
    grows = "bound" in case
    assert (abs(record.losses["below"]) > 1e9) == grows or case == "huge"


def test_one_wild_loss_is_no_divergence():
    y = nn.ParameterList([torch.tensor(1.0)])
    loss = lambda scale: y[0].square() * 0 + scale
    sgd = torch.optim.SGD(y.parameters(), 0.1)
    Engine(ProblemGraph([Problem("p", loss, y, sgd, [1.0, 1.0, 1.0, 1e9, 1e9, 1.0])])).run(24)
