"""The engine against the simulator on random graphs, and the simulator against what is known."""

import math

import pytest
import torch
from random_graphs import FEATURES, METHODS, Graph, compared, difference
from simulator import How, Node, Simulator, stepped

import blo

SETTINGS = (
    "steps", "accumulation", "sizes", "schedulers", "groups", "momentum", "decay", "adam",
    "maximize",
)
EXPLICIT = ("one step", "differences", "sama", "unrolled", "forward mode")
DEEP = ("reads below", "skips", "siblings", "side by side", "through solutions")

# Profiles: features, seeds, rounds. Their graphs are 300 and more.
PROFILES = {
    "two levels": ((*SETTINGS, *EXPLICIT, "alternating"), 100, 3),
    "two levels, mixed signs": ((*SETTINGS, *EXPLICIT, "mixed maximize"), 30, 2),
    "chains": (("three levels", "skips", *SETTINGS, *EXPLICIT), 40, 2),
    "siblings": (("three levels", "siblings", "skips", *SETTINGS, *EXPLICIT, "alternating"), 30, 2),
    "middle reads below": (("three levels", "reads below", "skips", *SETTINGS), 30, 2),
    "middle reads below, all methods": (
        ("three levels", "reads below", "skips", *SETTINGS, *EXPLICIT), 30, 2,
    ),
    "siblings that meet below": (("three levels", *DEEP, "steps", *EXPLICIT), 30, 2),
    "without response": (("three levels", "reads below", "fixed below", "skips", *SETTINGS), 10, 2),
    "four levels": (("four levels", *DEEP, "apart", *SETTINGS), 12, 1),
    "four levels, all methods": (("four levels", *DEEP, *SETTINGS, *EXPLICIT), 12, 1),
    "five levels": (("five levels", "reads below", "skips", "siblings", *SETTINGS), 8, 1),
}
CHUNK = 10
CHUNKS = [
    pytest.param(name, range(i, min(i + CHUNK, count)), id=f"{name}-{i}")
    for name, (_, count, _) in PROFILES.items()
    for i in range(0, count, CHUNK)
]


@pytest.mark.parametrize("profile, seeds", CHUNKS)
def test_every_update_of_random_graphs_is_that_of_the_simulator(profile, seeds):
    features, _, num_rounds = PROFILES[profile]
    wrong = []
    for seed in seeds:
        graph = Graph(seed, features)
        error, where = compared(graph, num_rounds)
        if not error <= graph.tolerance:
            wrong.append(f"seed {seed}: {error:.1e} above {graph.tolerance}, {where}")
    assert not wrong, "\n".join(wrong)
