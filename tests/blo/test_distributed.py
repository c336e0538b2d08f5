"""Several processes, each with its part of every batch, against one process that sees all."""

import re

import pytest
import torch
from processes import (
    FEATURES,
    FIRST_ORDER,
    METHODS,
    answered,
    every_run,
    example,
    refusals,
    sharded,
    trained,
    wrapped,
)

from blo.derivatives import reduction

# n numbers in m lower tensors, p in q upper tensors: what a response sends, as docs/distributed.md
# has it; the methods' settings are those of `METHODS`, the second round's where two differ.
NUMBERS = {
    "darts": lambda n, m, p, q: 2 * (p + 1),
    "t1t2": lambda n, m, p, q: p + q,
    "sama": lambda n, m, p, q: 2 * (p + 1),
    "neumann": lambda n, m, p, q: 4 * (n + m) + p + q,
    "cg": lambda n, m, p, q: 3 * (n + m) + p + q,
    "minres": lambda n, m, p, q: 3 * (n + m) + p + q,
    "nystrom": lambda n, m, p, q: 3 * (n + m) + p + q,
    "dense": lambda n, m, p, q: n * (n + m) + p + q,
    "soba": lambda n, m, p, q: n + m + p + q,
    "unrolled": lambda n, m, p, q: 5 * (n + m) + 3 * (p + q),
    "f2sa": lambda n, m, p, q: 5 * (n + 1) + 2 * p,
    "pbgd": lambda n, m, p, q: 10 * (n + 1) + 4 * p,
    "evolution": lambda n, m, p, q: 15 * (n + m) + 4 + n,
    "alternating": lambda n, m, p, q: 0,
    "forward_mode": lambda n, m, p, q: 3 * (p + q + n + m) + 3 * p * (n + m),
    "gauss_newton": lambda n, m, p, q: 3 * n + p + q,
}
# What the first round sends besides: a difference at half the radius; soba starts at no product.
FIRST = {
    "darts": lambda n, m, p, q: 2 * (p + 1),
    "sama": lambda n, m, p, q: 2 * (p + 1),
    "soba": lambda n, m, p, q: -(n + m),
}


@pytest.fixture(scope="module")
def alone():
    """What one process leads to, which sees whole batches."""
    levels = dict.fromkeys(list(METHODS)[:14], (2, 3))
    return {(k, n): trained(k, n) for k in METHODS for n in levels.get(k, (2,))}


@pytest.fixture(scope="module")
def two():
    return answered(2, [every_run, refusals, wrapped, sharded, example])


@pytest.fixture(scope="module")
def four():
    return answered(4, [every_run])


def assert_equal_to_one_process(answers, alone):
    """Parameters, losses, statuses and costs; all ranks bit for bit the same."""
    runs, *others = (answer["every_run"] for answer in answers)
    assert all(other == runs for other in others)
    off = {}
    for key, run in runs.items():
        known = alone[key]
        assert (run["statuses"], run["cost"]) == (known["statuses"], known["cost"]), key
        ours, theirs = (torch.tensor(r["value"], dtype=torch.float64) for r in (run, known))
        off[key] = (ours - theirs).abs().max().item()
    assert max(off.values()) < 1e-10, off
    assert {name for name, _ in off} == set(METHODS)


def test_two_processes_give_what_one_gives(two, alone):
    assert_equal_to_one_process(two, alone)
    assert len(two[0]["every_run"]) == len(alone)


def test_four_processes_give_what_one_gives(four, alone):
    assert_equal_to_one_process(four, alone)


def test_bytes_of_two_levels_are_those_of_the_formula(two, four):
    n, m, p, q = 2 * FEATURES + 2, 2, FEATURES, 1
    for answers in (two, four):
        for name, numbers in NUMBERS.items():
            updates = 3 * (n + m + 1) + (p + q + n + m + 1)
            first = FIRST.get(name, lambda *_: 0)(n, m, p, q)
            sent = 2 * (updates + numbers(n, m, p, q)) + first
            assert answers[0]["every_run"][name, 2]["bytes"] == 8 * sent, name


def test_a_process_alone_sends_nothing(alone):
    assert {run["bytes"] + run["reductions"] for run in alone.values()} == {0}


def test_a_loss_that_is_nan_on_one_process_stops_all_with_one_message(two):
    first, second = (answer["refusals"]["nan"] for answer in two)
    assert first == second
    assert "the loss of problem 'fit' is nan in round 1" in first


def test_identical_batches_warn_once(two):
    for said in (answer["refusals"] for answer in two):
        assert said["identical batches"].count("is the same on all 2 processes") == 1
        assert said["different batches"] == said["alone"] == ""


def test_processes_that_differ_at_the_start_are_refused(two):
    for said in (answer["refusals"] for answer in two):
        assert "parameter '0.weight' of problem 'fit' differs" in said["parameters"]
        assert "different problem graphs" in said["rates"]
        assert "distributed must be None" in said["group"]
        assert "distributed=False" in said["check"]


def test_wrapped_and_sharded_modules_are_refused_by_name(two):
    for said in (answer["wrapped"] for answer in two):
        assert "give its .module" in said["DistributedDataParallel"]
        assert "FullyShardedDataParallel" in said["FullyShardedDataParallel"]
        assert "DTensor) that are not those of fully_shard" in said["DTensor"]


def test_sharded_parameters_give_what_whole_ones_give(two):
    """FSDP2 and first-order methods; steps of 1e-3 multiply rounding by a thousand."""
    for answer in (answer["sharded"] for answer in two):
        assert set(answer["off"]) == set(FIRST_ORDER)
        assert max(answer["off"].values()) < 1e-9, answer["off"]
        for name, said in answer["refused"].items():
            assert "of problem 'lower' does not work with sharded parameters" in said, name
        assert len(answer["refused"]) == 6


def test_the_example_learns_penalties_and_speaks_once(two):
    first, second = (answer["example"] for answer in two)
    used, unused = (float(n) for n in re.findall(r"(\d+\.\d+) of", first))
    assert used < unused
    assert second == ""


def test_a_bucket_holds_one_type_and_is_closed_when_full(monkeypatch):
    monkeypatch.setattr(reduction, "BUCKET", 24)
    half, single, double = (
        torch.zeros(3, dtype=t) for t in (torch.half, torch.float, torch.double)
    )
    found = list(reduction._buckets((single, double, half, single)))
    assert found == [[0, 2], [3], [1]]
