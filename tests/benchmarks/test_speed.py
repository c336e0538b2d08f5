"""The speed of rounds: what is counted, not how long it takes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import speed
from benchmarks.rounds import ROUNDS
from benchmarks.workloads import WORKLOADS
from blo import Exact


def test_a_workload_is_the_lower_problem_of_its_engine() -> None:
    work = WORKLOADS["200-weight MLP"](ROUNDS["t1t2"].method, 1, "cpu")
    lower, context = work.engine.graph["lower"], work.context()
    products = Exact().at(context.lower, context.after)
    v = tuple(torch.randn_like(t) for t in lower.parameters)
    loss = lower.loss(next(iter(lower.batches or ())))
    graph = torch.autograd.grad(loss, lower.parameters, create_graph=True)
    dense = torch.autograd.grad(graph, lower.parameters, v)
    torch.testing.assert_close(products.hvp(v), dense)


def test_rounds_take_what_their_counts_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = tmp_path / "lines.jsonl"
    flags = ["--quick", "--workloads", "200-weight MLP", "--json", str(lines), "--methods"]
    methods = ["darts", "t1t2", "cg(5)", "unrolled, 4 steps"]
    monkeypatch.setattr(sys, "argv", ["speed", *flags, *methods])
    speed.main()
    for name, line in zip(methods, map(json.loads, lines.read_text().splitlines()), strict=True):
        count = ROUNDS[name]
        taken = count.steps + 1 + count.num_gradients, count.num_products
        assert (line["num_gradients"], line["num_hvps"]) == taken
