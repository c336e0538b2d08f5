"""A table of wrong arguments: each is one clear sentence, and what lies beside it trains."""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import blo
from blo import Engine, Problem, ProblemGraph, cg, darts, t1t2
from blo.methods.implicit import OneStep

X = torch.linspace(-1, 1, 8).reshape(4, 2)
ROWS = TensorDataset(X)


def parts():
    """What two levels are made of, with the lower problem's arguments by name."""
    torch.manual_seed(0)
    net, scale = nn.Linear(2, 1), nn.ParameterDict({"log": torch.zeros(1)})
    fit = lambda b: (scale["log"].exp() * net(b[0]) - 1).square().mean()
    error = lambda b: net(b[0]).square().mean()
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    upper = Problem("upper", error, [net, scale], torch.optim.SGD(scale.parameters(), 0.1), [(X,)])
    lower = {
        "name": "lower",
        "loss": fit,
        "module": [net, scale],
        "optimizer": sgd,
        "batches": [(X,)],
        "steps": 2,
    }
    return SimpleNamespace(**locals())


def problem(p, **changes):
    return Problem(**{**p.lower, **changes})


def given(argument, value):
    """What makes an engine whose lower problem has another argument; functions get the parts."""

    def make():
        p = parts()
        changed = problem(p, **{argument: value(p) if callable(value) else value})
        return Engine(ProblemGraph([p.upper, changed]))

    return make


def graph_of(build):
    """What makes an engine of the problems that `build` returns."""

    def make():
        p = parts()
        return Engine(ProblemGraph(build(p, problem(p))))

    return make


def engine_of(build):
    """What makes an engine by `build` from a graph."""

    def make():
        p = parts()
        return build(ProblemGraph([p.upper, problem(p)]))

    return make


def running(method, *args):
    """What calls a method of an engine."""

    def make():
        p = parts()
        engine = Engine(ProblemGraph([p.upper, problem(p)]))
        getattr(engine, method)(*args)
        return engine

    return make


def recursive(engine):
    """An engine whose callback runs it."""
    engine.callbacks = (lambda record: engine.run(1),)
    return engine


def broken(p):
    with torch.no_grad():
        p.net.bias[0] = float("nan")
    return p.sgd


def other_scheduler(p):
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1), 3)


def bare(p, **settings):
    return torch.optim.SGD(p.net.parameters(), 0.1, **settings)


class Logger:
    def __init__(self, record=None):
        self.record = record

    def __call__(self, record):
        self.record = record


class Stream:
    """Batches that keep their position."""

    def __iter__(self):
        return iter([(X,)] * 4)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


STREAM = Stream()
REPEATED = lambda p, batches: [
    Problem("upper", p.error, [p.net, p.scale], p.upper.optimizer, batches),
    problem(p, batches=batches),
]
NO_STATE = dataclasses.make_dataclass("NoState", [("response", object)])
MEAN = lambda batch: batch

# What it is: (wrong, what the sentence says, beside it).
ROWS_OF_THE_TABLE = {
    # Problem
    "name": (given("name", ""), "name must be a non-empty string, got ''", given("name", "l")),
    "name, number": (given("name", 3), "name must be .* got 3", given("name", "3")),
    "loss, value": (
        given("loss", lambda p: p.fit((X,))),
        "got a tensor .*problem 'lower'; give the function, not its value",
        given("loss", lambda p: p.fit),
    ),
    "name, an arrow": (
        given("name", "a <- b"),
        "name must be printable and without '<-', got 'a <- b'",
        given("name", "a - b"),
    ),
    "name, two lines": (given("name", "a\nb"), r"name must be printable .* got 'a\\nb'", None),
    "loss, none": (given("loss", None), "loss must be callable, got None", None),
    "loss, criterion": (
        given("loss", lambda p: nn.MSELoss()),
        "the criterion MSELoss .*lambda batch: criterion",
        given("loss", lambda p: lambda b: nn.MSELoss()(p.scale["log"] * p.net(b[0]), b[0][:, :1])),
    ),
    "loss, class": (given("loss", lambda p: nn.MSELoss), "got the class MSELoss", None),
    "loss, two arguments": (
        given("loss", lambda p: lambda x, y: p.fit((x,))),
        r"must take one argument, the batch, .* \(x, y\) for problem 'lower'",
        given("loss", lambda p: lambda x, y=0: p.fit(x)),
    ),
    "loss, no argument": (given("loss", lambda p: lambda: p.fit((X,))), "take one argument", None),
    "loss, no tensor": (
        given("loss", lambda p: lambda b: 3.0),
        "must return a scalar tensor .* got float",
        given("loss", lambda p: lambda b: {"loss": p.fit(b), "note": 3.0}),
    ),
    "loss, vector": (
        given("loss", lambda p: lambda b: p.scale["log"] * p.net(b[0])),
        "must return a scalar, .* take its mean or its sum",
        None,
    ),
    "loss, detached": (
        given("loss", lambda p: lambda b: p.fit(b).detach()),
        "depends on no parameter .* detach",
        None,
    ),
    "loss, complex": (
        given("loss", lambda p: lambda b: p.fit(b) * (1 + 1j)),
        "must return a real number with decimals, got one of torch.complex64",
        given("loss", lambda p: lambda b: (p.fit(b) * (1 + 1j)).abs().square()),
    ),
    "loss, whole number": (
        given("loss", lambda p: lambda b: p.fit(b).long()),
        "must return a real number with decimals, got one of torch.int64",
        None,
    ),
    "module, function": (
        given("module", lambda p: p.fit),
        "got the function <lambda> .* the function is the loss, the module is what holds",
        given("module", lambda p: (p.net, p.scale)),
    ),
    "module, parameters": (
        given("module", lambda p: p.net.parameters()),
        r"module must be .* give the module that holds the parameters",
        None,
    ),
    "module, tensors": (given("module", lambda p: list(p.net.parameters())), "ParameterList", None),
    "module, class": (given("module", lambda p: nn.Linear), "the class Linear .* object of", None),
    "module, nothing": (given("module", []), "got a list of nothing", None),
    "optimizer, class": (
        given("optimizer", lambda p: torch.optim.Adam),
        r"got the class Adam .* write Adam\(module.parameters\(\), lr=",
        given("optimizer", lambda p: torch.optim.Adam(p.net.parameters(), 0.1)),
    ),
    "optimizer, scheduler": (
        given("optimizer", lambda p: torch.optim.lr_scheduler.StepLR(p.sgd, 3)),
        "got an object of type StepLR .* as scheduler=",
        None,
    ),
    "optimizer, list": (
        given("optimizer", lambda p: [p.sgd]),
        "got a list of an object of type SGD .* groups of one optimizer",
        None,
    ),
    "optimizer, closure": (
        given("optimizer", lambda p: torch.optim.LBFGS(p.net.parameters())),
        "without a closure, got LBFGS",
        None,
    ),
    "optimizer, infinite": (
        given("optimizer", lambda p: torch.optim.SGD(p.net.parameters(), float("inf"))),
        "problem 'lower' has lr=inf",
        None,
    ),
    "optimizer, frozen": (
        given("optimizer", lambda p: bare(SimpleNamespace(net=p.net.requires_grad_(False)))),
        "at least one parameter with requires_grad=True",
        None,
    ),
    "optimizer, shared": (
        given("optimizer", lambda p: p.upper.optimizer),
        "parameter '1.log' is in the optimizers of problems 'upper' and 'lower'",
        None,
    ),
    "parameters, nan": (
        given("optimizer", broken),
        r"parameter 1 in the optimizer of problem 'lower', of shape \(1,\), is not finite",
        given("optimizer", bare),
    ),
    "batches, tensor": (
        given("batches", X),
        r"got a tensor of shape \(4, 2\) .* write \[batch\]",
        given("batches", [[X]]),
    ),
    "batches, one batch": (
        given("batches", (X, X[:, 0])),
        r"got a tuple of a tensor .* write \[batch\] if this is one",
        given("batches", ((X,), (X,))),
    ),
    "batches, dictionary": (given("batches", {"x": X}), r"write \[batch\]", None),
    "batches, text": (given("batches", "train.csv"), r"got 'train.csv' .* write \[batch\]", None),
    "batches, dataset": (
        given("batches", ROWS),
        r"TensorDataset .* write DataLoader\(dataset",
        given("batches", DataLoader(ROWS, 2)),
    ),
    "batches, class": (given("batches", lambda p: DataLoader), "the class DataLoader", None),
    "batches, function": (
        given("batches", lambda p: lambda: [(X,)]),
        "got the function .* give what it returns",
        None,
    ),
    "batches, none": (
        given("batches", None),
        r"batches is None for problem 'lower', .* batches=\[None\]",
        None,
    ),
    "batches, empty": (given("batches", []), "must hold at least one batch", None),
    "batches, not finite": (
        given("batches", [(X / 0,)]),
        r"problem 'lower' is (nan|inf) .* batch\[0\] holds values that are not finite: look",
        given("batches", [(X / 10,)]),
    ),
    "batches, no rows": (
        given("batches", [(X[:0],)]),
        r"batch\[0\] holds no element: look at the data",
        given("batches", [(X[:1],)]),
    ),
    "batches, number": (given("batches", 4), "must be iterable, got 4", None),
    "steps, zero": (given("steps", 0), "steps must be an integer of at least 1, got 0", None),
    "steps, fraction": (given("steps", 2.0), "steps must be .* got 2.0", given("steps", 3)),
    "steps, flag": (given("steps", True), "steps must be .* got True", None),
    "steps, text": (given("steps", "2"), "steps must be .* got '2'", None),
    "accumulate": (given("accumulate", -1), "accumulate must be", given("accumulate", 2)),
    "reads, one name": (
        given("reads", "upper"),
        r"got 'upper' for problem 'lower'; write reads=\['upper'\]",
        given("reads", ["upper"]),
    ),
    "reads, unknown": (given("reads", ["top"]), r"names 'top', which is not in the graph", None),
    "reads, itself": (given("reads", ["lower"]), "names itself", None),
    "reads, too few": (given("reads", []), "add what is missing to reads", None),
    "reads, numbers": (given("reads", [0]), "reads must be a list of names", None),
    "method, not called": (
        given("method", lambda p: darts),
        r"got the function darts .* call it, such as darts\(\)",
        given("method", lambda p: darts()),
    ),
    "method, class": (
        given("method", lambda p: OneStep),
        r"got the class OneStep .* OneStep\(\)",
        given("method", lambda p: t1t2()),
    ),
    "method, text": (given("method", "cg"), "methods are objects", given("method", cg(2))),
    "method, no requirements": (
        given("method", lambda p: NO_STATE(MEAN)),
        "its requirements must be a Requirements",
        None,
    ),
    "scheduler, of another": (
        given("scheduler", other_scheduler),
        "scheduler of problem 'lower' is a StepLR of another optimizer",
        given("scheduler", lambda p: torch.optim.lr_scheduler.StepLR(p.sgd, 3)),
    ),
    "scheduler, class": (
        given("scheduler", lambda p: torch.optim.lr_scheduler.StepLR),
        "must be a learning-rate scheduler, got the class StepLR",
        None,
    ),
    "scheduler, optimizer": (given("scheduler", lambda p: p.sgd), "needs step", None),
    "scheduler, function": (
        given("scheduler", lambda p: lambda epoch: 0.1),
        "got the function <lambda> .* StepLR",
        given("scheduler", lambda p: torch.optim.lr_scheduler.LambdaLR(p.sgd, lambda epoch: 0.1)),
    ),
    "through_response": (
        given("through_response", "no"),
        "through_response must be True or False, got 'no'",
        given("through_response", True),
    ),
    "keep_state": (given("keep_state", None), "keep_state must be True or False", None),
    "generators, one": (
        given("generators", lambda p: torch.Generator()),
        r"for problem 'lower'; write generators=\[generator\]",
        given("generators", [torch.Generator(), random.Random(0), np.random.default_rng(0)]),
    ),
    "generators, seeds": (given("generators", [0]), "must be a list of the types", None),
    "start, tensors": (given("start", [X]), "start must be a function", None),
    "start, shapes": (
        given("start", lambda p: lambda: [X]),
        "start of problem 'lower' must return tensors in the shapes",
        given("start", lambda p: lambda: [torch.ones(1, 2), torch.ones(1)]),
    ),
    "options, list": (given("options", ["lr"]), "must be a dictionary of functions", None),
    "options, value": (given("options", {"lr": 0.1}), "a fixed value belongs in the", None),
    "options, unknown": (
        given("options", lambda p: {"beta": lambda: 0.1}),
        r"options\['beta'\] is not an option of SGD",
        graph_of(
            lambda p, _: [
                p.upper,
                problem(p, options={"lr": lambda: 0.1}, method=blo.unrolled()),
            ]
        ),
    ),
    "clip": (given("clip", 1.0), r"clip must be a Clip .* got 1.0", given("clip", blo.Clip(1.0))),
    # ProblemGraph
    "problems, one": (
        graph_of(lambda p, lower: p.upper),
        r"got the Problem 'upper'; write ProblemGraph\(\[problem\]\)",
        graph_of(lambda p, lower: [p.upper, lower]),
    ),
    "problems, dictionary": (
        graph_of(lambda p, lower: {"upper": p.upper}),
        r"must be a list of Problem objects from top to bottom",
        None,
    ),
    "problems, none": (graph_of(lambda p, lower: None), "got None; write ProblemGraph", None),
    "problems, empty": (graph_of(lambda p, lower: []), "at least one Problem", None),
    "problems, empty level": (graph_of(lambda p, lower: [p.upper, []]), "on each level", None),
    "problems, optimizer": (
        graph_of(lambda p, lower: [p.upper, p.sgd]),
        "must hold Problem objects, got an object of type SGD",
        graph_of(lambda p, lower: ([p.upper], (lower,))),
    ),
    "problems, missing": (graph_of(lambda p, lower: [p.upper, None]), "objects, got None", None),
    "problems, order": (
        graph_of(lambda p, lower: [lower, p.upper]),
        r"'lower' with steps=2 \(levels are listed from top to bottom: are they in the wrong",
        None,
    ),
    "problems, order of single steps": (
        graph_of(lambda p, lower: [problem(p, steps=1), p.upper]),
        "no gradient reaches problem 'upper'.* list it above .* from top to bottom",
        None,
    ),
    "problems, twice": (graph_of(lambda p, lower: [p.upper, lower, lower]), "'lower' twice", None),
    "problems, side by side at the top": (
        graph_of(lambda p, lower: [(p.upper, lower)]),
        "first level must be one problem",
        None,
    ),
    "problems, one position": (
        graph_of(lambda p, lower: REPEATED(p, STREAM)),
        "'upper' and 'lower' are one object that keeps its own position",
        graph_of(lambda p, lower: REPEATED(p, [(X,)])),
    ),
    # Engine
    "graph, list": (
        engine_of(lambda graph: Engine(list(graph.problems))),
        r"got a list of .*Problem.* write Engine\(ProblemGraph",
        engine_of(Engine),
    ),
    "graph, problem": (engine_of(lambda graph: Engine(graph.top)), "must be a ProblemGraph", None),
    "callbacks, function": (
        engine_of(lambda graph: Engine(graph, callbacks=print)),
        r"got the function print; write callbacks=\[...\]",
        engine_of(lambda graph: Engine(graph, callbacks=[Logger()])),
    ),
    "callbacks, class": (
        engine_of(lambda graph: Engine(graph, callbacks=[Logger])),
        "got the class Logger",
        None,
    ),
    "callbacks, none": (
        engine_of(lambda graph: Engine(graph, callbacks=[None])),
        "got None",
        None,
    ),
    "precision, text": (
        engine_of(lambda graph: Engine(graph, precision="bf16")),
        "precision must be None or torch.bfloat16, got bf16",
        engine_of(lambda graph: Engine(graph, precision=torch.bfloat16)),
    ),
    "precision, float16": (
        engine_of(lambda graph: Engine(graph, precision=torch.float16)),
        "loss scaling",
        None,
    ),
    "divergence, flag": (
        engine_of(lambda graph: Engine(graph, divergence=False)),
        "divergence must be a factor above 1 .* or None for never, got False",
        engine_of(lambda graph: Engine(graph, divergence=None)),
    ),
    "divergence, below 1": (
        engine_of(lambda graph: Engine(graph, divergence=0.5)),
        "got 0.5",
        engine_of(lambda graph: Engine(graph, divergence=10)),
    ),
    "divergence, nan": (
        engine_of(lambda graph: Engine(graph, divergence=float("nan"))),
        "got nan",
        None,
    ),
    "rounds, none": (running("run", 0), "num_rounds must be an integer of at least 1", None),
    "rounds, fraction": (running("run", 2.5), "num_rounds .* got 2.5", running("run", 2)),
    "rounds, text": (running("run", "3"), "num_rounds .* got '3'", None),
    "callbacks, running": (
        engine_of(lambda graph: recursive(Engine(graph))),
        "rounds of an engine cannot be run by a callback of the same engine",
        engine_of(lambda graph: Engine(graph, callbacks=[Logger()])),
    ),
    "state, path": (
        running("load_state_dict", "state.pt"),
        "must be a dictionary .* got 'state.pt'; load\\(path\\) reads files",
        None,
    ),
    "path, none": (running("save", None), "path must be a path, got None", None),
    "path, state": (running("load", {}), "path must be a path, got {}", None),
    "path, empty": (running("save", ""), "path must name a file, got ''", None),
    "path, folder": (running("save", "/"), "path must (be|name) a file", None),
    # Methods
    "cg, flag": (
        lambda: cg(3, warm_start="no"),
        "warm_start must be True or False, got 'no'",
        lambda: cg(3, warm_start=True),
    ),
    "darts, flag": (
        lambda: darts(one_sided="no"),
        "one_sided must be True or False, got 'no'",
        lambda: darts(one_sided=True),
    ),
    "unrolled, flag": (
        lambda: blo.unrolled(checkpoint=0),
        "checkpoint must be True or False, got 0",
        lambda: blo.unrolled(checkpoint=True),
    ),
    "evolution, flag": (
        lambda: blo.evolution(2, antithetic=None),
        "antithetic must be True or False, got None",
        lambda: blo.evolution(2, antithetic=False),
    ),
    "f2sa, flag": (
        lambda: blo.f2sa(2, symmetric=1),
        "symmetric must be True or False, got 1",
        lambda: blo.f2sa(2, symmetric=True),
    ),
    "nystrom, flag": (
        lambda: blo.nystrom(2, gaussian="yes"),
        "gaussian must be True or False, got 'yes'",
        lambda: blo.nystrom(2, gaussian=True),
    ),
    "cg, text": (lambda: cg("3"), "max_products must be an integer .* got '3'", lambda: cg(3)),
    "cg, damping": (
        lambda: cg(3, damping="1"),
        "damping must be finite and at least 0, got '1'",
        lambda: cg(3, damping=1),
    ),
    "darts, radius": (lambda: darts(radius=-1.0), "radius .* got -1.0", lambda: darts(radius=0.1)),
    "neumann, scale": (
        lambda: blo.neumann(3, scale=float("nan")),
        "scale .* got nan",
        lambda: blo.neumann(3, scale=0.1),
    ),
    "unrolled": (lambda: blo.unrolled(0), "must be .* got 0", lambda: blo.unrolled(1)),
    "evolution": (lambda: blo.evolution(0), "must be .* got 0", lambda: blo.evolution(1)),
    "f2sa": (lambda: blo.f2sa(2, lr="0.1"), "lr must be .* got '0.1'", lambda: blo.f2sa(2, lr=0.1)),
    "pbgd": (lambda: blo.pbgd(penalty=-1), "penalty must be .* got -1", lambda: blo.pbgd()),
    "clip, text": (
        lambda: blo.Clip(norm="1"),
        "norm must be a number above 0, got '1'",
        lambda: blo.Clip(value=1),
    ),
    "clip, norm": (lambda: blo.Clip(norm=-1.0), "norm .* got -1.0", lambda: blo.Clip(norm=1.0)),
}


def test_wrong_arguments_are_one_sentence_and_what_lies_beside_them_trains():
    poor = {}
    for name, (wrong, sentence, beside) in ROWS_OF_THE_TABLE.items():
        try:
            kinds = (TypeError, ValueError, FloatingPointError, RuntimeError)
            with pytest.raises(kinds, match=sentence) as refusal:
                wrong().run(1)
            if "\n" in str(refusal.value):
                poor[name] = refusal.value
        except BaseException as error:
            poor[name] = error
        try:
            made = None if beside is None else beside()
            if isinstance(made, Engine):
                made.run(1)
        except BaseException as error:
            poor[f"beside {name}"] = error
    assert not poor, "\n".join(f"{name}: {error!r}" for name, error in poor.items())
    assert len(ROWS_OF_THE_TABLE) >= 40
