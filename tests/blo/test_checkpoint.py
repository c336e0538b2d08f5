"""States: whole or refused, copied in and out; files: whole, or the one before."""

import copy
import logging
import os
import random
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blo import Engine, Problem, ProblemGraph, cg, evolution, soba, t1t2
from blo.state_files import previous


class Mean:
    """A callback that remembers."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def __call__(self, record):
        self.total, self.count = self.total + record.losses["lower"], self.count + 1

    def state_dict(self):
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state):
        self.total, self.count = state["total"], state["count"]


ROWS = TensorDataset(
    torch.randn(12, 3, generator=torch.Generator().manual_seed(1)),
    torch.randn(12, 1, generator=torch.Generator().manual_seed(2)),
)


def engine(
    method=None,
    *,
    optimizer=torch.optim.Adam,
    scheduler=True,
    rng=True,
    hidden=2,
    loader=True,
    names=("upper", "lower"),
    callbacks=(),
):
    """Two levels with all that a state holds: moments, buffers, a scheduler, noise, a loader."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 1))
    penalty = nn.ParameterDict({"log": torch.zeros(1)})
    noise = np.random.default_rng(5) if rng else None
    error = lambda b: (net(b[0]) - b[1]).square().mean()

    def fit(b):
        scale = random.random() + (0.0 if noise is None else float(noise.random()))
        decay = penalty["log"].exp() * sum(p.square().sum() for p in net.parameters())
        return (1 + 0.1 * scale) * error(b) + decay.sum()

    lower = optimizer(net.parameters(), 0.01)
    batches = DataLoader(ROWS, 4, shuffle=True) if loader else [ROWS[:4]]
    adam = torch.optim.Adam(penalty.parameters(), 0.1)
    problems = [
        Problem(names[0], error, [net, penalty], adam, [ROWS[:]]),
        Problem(
            names[1],
            fit,
            [net, penalty],
            lower,
            batches,
            steps=2,
            method=cg(2, warm_start=True) if method is None else method,
            scheduler=torch.optim.lr_scheduler.StepLR(lower, 3) if scheduler else None,
        ),
    ]
    return Engine(ProblemGraph(problems), callbacks=callbacks)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_a_state_holds_all_that_the_next_rounds_depend_on(tmp_path):
    mean = Mean()
    straight = engine(callbacks=[mean])
    random.seed(3)
    straight.run(2)
    straight.save(tmp_path / "s.pt")
    right = [r.losses for r in straight.rounds(3)]
    other = Mean()
    resumed = engine(callbacks=[other.__call__])
    resumed.run(1)
    random.seed(99)
    assert resumed.load(tmp_path / "s.pt") == tmp_path / "s.pt"
    assert [r.losses for r in resumed.rounds(3)] == right
    assert vars(other) == vars(mean)
    assert same(resumed.state_dict(), straight.state_dict())


def altered(state, path, value):
    """A deep copy of a state with another value at a place; a function is applied to the old."""
    state = copy.deepcopy(state)
    *way, last = path
    inner = state
    for key in way:
        inner = inner[key]
    if value is DELETED:
        del inner[last]
    else:
        inner[last] = value(inner[last]) if isinstance(value, types.FunctionType) else value
    return state


DELETED = object()
LOWER = ("problems", "lower")
WEIGHT = "0.0.weight"

# Where a state is changed, how, and what the refusal says.
DAMAGED = [
    (("version",), 99, "version 99, and this release reads versions 1 and 2"),
    (("version",), None, "version None"),
    (("version",), True, "version True"),
    (("round",), DELETED, r"state lacks \['round'\]; it is not whole"),
    (("round",), -1, "round=-1"),
    (("num_products",), 1.5, "num_products=1.5"),
    (("devices",), DELETED, r"lacks \['devices'\]"),
    (("devices",), ["cpu", "cuda"], r"the devices \['cpu', 'cuda'\], and the problems are on"),
    (("random_state",), [], "random state of the devices"),
    (("random_state",), [torch.zeros(3)], "random state of device 'cpu' of shape"),
    (("random_state",), ["x"], "a str as random state"),
    (("random_state_of_libraries", "python"), 3, "damaged random state of Python or numpy"),
    (("within_round",), -1, "within round 3, after an interruption"),
    (("within_round",), 9, "within_round=9; it is damaged"),
    (("problems",), [], "must hold the problems"),
    (("problems", "third"), {}, "must hold the problems"),
    (("problems", "upper"), DELETED, "must hold the problems"),
    ((*LOWER, "stream"), DELETED, r"problem 'lower' lacks \['stream'\]"),
    ((*LOWER, "parameters"), None, "no parameters for problem 'lower'"),
    ((*LOWER, "parameters", WEIGHT), DELETED, "other parameters for problem 'lower'"),
    ((*LOWER, "parameters", WEIGHT), lambda t: t.T, "other parameters for problem 'lower'"),
    ((*LOWER, "parameters", WEIGHT), lambda t: t.double(), "'0.0.weight' of .* torch.float64"),
    (
        (*LOWER, "parameters"),
        lambda d: dict(reversed(d.items())),
        "in the order .* hand them over",
    ),
    ((*LOWER, "optimizer_class"), "torch.optim.sgd.SGD", "torch.optim.sgd.SGD as the optimizer"),
    ((*LOWER, "optimizer", "param_groups"), DELETED, r"lacks \['param_groups'\]"),
    ((*LOWER, "optimizer", "param_groups"), [], r"groups of \[\] parameters"),
    ((*LOWER, "optimizer", "param_groups", 0, "betas"), DELETED, r"group 0 .* \['betas'\]"),
    ((*LOWER, "optimizer", "state", 77), {}, "an entry for parameter 77"),
    (
        (*LOWER, "optimizer", "state", 0, "exp_avg"),
        lambda t: t[:1],
        "'exp_avg' of shape .* for parameter 0",
    ),
    ((*LOWER, "scheduler"), None, "the problem has a scheduler .* and the state has none"),
    (("problems", "upper", "scheduler"), {}, "the state has a scheduler"),
    ((*LOWER, "scheduler_class"), "x.Other", "x.Other as the scheduler"),
    ((*LOWER, "scheduler", "gamma"), DELETED, "another kind of scheduler"),
    ((*LOWER, "stream", "position"), -3, "position=-3 .* damaged"),
    ((*LOWER, "stream", "count"), DELETED, r"state lacks \['count'\] for the batches"),
    ((*LOWER, "stream", "now"), [torch.zeros(1)], "has 1 generators|have 0"),
    ((*LOWER, "stream", "position"), 50, "fewer than when the state was saved"),
    ((*LOWER, "generators"), [], "0 random generators of problem 'lower'"),
    ((*LOWER, "generators", 0), torch.zeros(3), "torch.Generator, as saved, got PCG64"),
    ((*LOWER, "reads"), ["nobody"], "reads .*'nobody'"),
    (("buffers",), [], "0 buffers, and the modules have 3"),
    (("buffers", 0), torch.zeros(5), "buffer 0 of shape"),
    (("method_states", "a <- b"), None, "'a <- b', which is no pair"),
    (("method_states",), 3, "no pair"),
    (("method_states", "upper <- lower"), lambda t: t[1:], "of shapes"),
    (("method_states", "upper <- lower"), 3, "must be a tuple of tensors"),
    ((*LOWER, "method"), "blo.methods.amortised.Amortised", "keeps between rounds"),
    (("callbacks",), [["x.Mean", {}]], r"the callbacks \['x.Mean'\]"),
    ((*LOWER, "optimizer", "state"), 7, "is not whole: AttributeError"),
    ((*LOWER, "stream"), 7, "is not whole: TypeError"),
]


def test_a_state_that_is_not_whole_is_refused_and_nothing_changes():
    made = engine()
    made.run(2)
    state = made.state_dict()
    other = engine()
    other.run(1)
    before = other.state_dict()
    for path, value, sentence in DAMAGED:
        with pytest.raises((ValueError, TypeError), match=sentence) as refusal:
            other.load_state_dict(altered(state, path, value))
        assert "\n" not in str(refusal.value), path
        assert same(other.state_dict(), before), path
    with pytest.raises(TypeError, match=r"must be a dictionary .* got a list of nothing"):
        other.load_state_dict([])
    other.load_state_dict(state)
    assert same(other.state_dict(), state)


OTHER_ENGINES = {
    "Adam as the optimizer": {"optimizer": torch.optim.SGD},
    "and the problem has none": {"scheduler": False},
    "1 random generators": {"rng": False},
    "other parameters": {"hidden": 4},
    "must hold the problems": {"names": ("upper", "other")},
    "those of the engine that have a state": {"callbacks": [Mean()]},
    "keeps between rounds": {"method": t1t2()},
}


@pytest.mark.parametrize("sentence", OTHER_ENGINES)
def test_states_of_other_engines_are_refused(sentence):
    made = engine()
    made.run(1)
    other = engine(**OTHER_ENGINES[sentence])
    before = other.state_dict()
    with pytest.raises(ValueError, match=sentence):
        other.load_state_dict(made.state_dict())
    assert same(other.state_dict(), before)


class Broken(Mean):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        if state["count"] == 2:
            raise RuntimeError("broken")


class LateScheduler(torch.optim.lr_scheduler.StepLR):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        if state["last_epoch"] == 4:
            raise KeyError("late")


def test_what_fails_late_is_put_back():
    made = engine(callbacks=[Broken()])
    lower = made.graph["lower"]
    lower.scheduler = LateScheduler(lower.optimizer, 3)
    made.run(2)
    state = made.state_dict()
    made.run(2)
    before = made.state_dict()
    with pytest.raises(RuntimeError, match="broken"):
        made.load_state_dict(state)
    assert same(made.state_dict(), before)
    made.callbacks = ()
    with pytest.raises(ValueError, match="nothing was changed: KeyError: 'late'"):
        made.load_state_dict({**state, "callbacks": []})
    assert same({**made.state_dict(), "callbacks": before["callbacks"]}, before)


def of_version_1(state):
    """As release 0.1.0 wrote it."""
    old = copy.deepcopy(state)
    later = ("random_state_of_libraries", "devices", "within_round", "callbacks", "divergence")
    for key in later:
        del old[key]
    old["version"] = 1
    for saved in old["problems"].values():
        keys = ("optimizer_class", "scheduler_class", "method", "generators", "reads", "changes")
        keys += ("draws", "computed_in")
        for key in keys:
            del saved[key]
        stream = saved["stream"]
        start = stream["random_state"]
        saved["stream"] = {
            **{k: stream[k] for k in ("epoch", "position", "count")},
            "random_state": torch.get_rng_state() if start is None else start["torch"][0],
            "generators": {},
        }
    return old


def test_states_of_version_1_go_on(caplog):
    straight = engine(rng=False)
    straight.run(2)
    state = of_version_1(straight.state_dict())
    random.seed(3)
    straight.run(2)
    resumed = engine(rng=False)
    with caplog.at_level(logging.WARNING):
        resumed.load_state_dict(state)
    assert "version 1" in caplog.text
    random.seed(3)
    resumed.run(2)
    for a, b in zip(straight.graph.problems, resumed.graph.problems, strict=True):
        assert same(list(a.parameters), list(b.parameters))


def test_a_state_within_a_round_says_so_and_is_neither_saved_nor_loaded(tmp_path):
    made = engine()
    made.run(1)
    loss, made.graph["upper"].loss = made.graph["upper"].loss, lambda b: interrupt()

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.run(1)
    state = made.state_dict()
    assert state["within_round"]
    with pytest.raises(RuntimeError, match="within a round, after round 1"):
        made.save(tmp_path / "s.pt")
    assert not os.listdir(tmp_path)
    with pytest.raises(ValueError, match="within round 2"):
        made.load_state_dict(state)
    made.graph["upper"].loss = loss
    made.run(1)
    assert not made.state_dict()["within_round"]


def test_a_loop_of_ones_own_is_saved_between_steps(tmp_path):
    made = engine()
    made.step("lower")
    made.save(tmp_path / "s.pt")
    first = made.step("lower").loss
    with pytest.raises(RuntimeError, match="within a round"):
        made.save(tmp_path / "t.pt")
    resumed = engine()
    resumed.load(tmp_path / "s.pt")
    assert resumed.turn == ("lower", 2, True)
    assert resumed.step("lower").loss == first
    made.backward("upper")
    assert (made.round, made.state_dict()["within_round"]) == (1, -1)
    with pytest.raises(RuntimeError, match="within a round"):
        made.save(tmp_path / "s.pt")
    made.graph["upper"].optimizer.step()
    made.save(tmp_path / "s.pt")


def test_methods_that_keep_generators_or_nothing_resume(tmp_path):
    for method in (evolution(2), soba()):
        made = engine(method)
        made.run(2)
        made.save(tmp_path / "s.pt")
        right = made.run(2).losses
        made.load(tmp_path / "s.pt")
        assert made.run(2).losses == right


# Files.


def test_every_flipped_bit_is_refused(tmp_path):
    made = engine(loader=False)
    made.run(1)
    path = tmp_path / "s.pt"
    made.save(path)
    whole = path.read_bytes()
    assert same(torch.load(path, weights_only=True), made.state_dict())
    before = made.state_dict()
    draw = random.Random(0)
    for i in range(300):
        at = len(whole) - 1 - i if i < 110 else draw.randrange(len(whole))
        content = bytearray(whole)
        content[at] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"s\.pt is damaged"):
            made.load(path)
    for content in (b"", whole[:-1], whole[:1000], whole + b"x", b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"s\.pt is damaged"):
            made.load(path)
    assert same(made.state_dict(), before)


def test_the_file_before_is_used_and_that_is_said(tmp_path, caplog):
    made, path = engine(), tmp_path / "s.pt"
    with pytest.raises(FileNotFoundError, match="no state was saved at"):
        made.load(path)
    for _ in range(3):
        made.run(1)
        made.save(path)
    assert sorted(os.listdir(tmp_path)) == ["s.pt", "s.pt.previous"]
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        assert made.load(path) == previous(path)
    assert made.round == 2
    assert "s.pt is damaged" in caplog.text
    assert "going on from the state before" in caplog.text
    path.unlink()
    assert made.load(path) == previous(path)
    previous(path).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"does not exist; .*s\.pt\.previous is damaged"):
        made.load(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder cannot be read"):
        made.load(tmp_path / "folder")


def test_a_folder_is_no_place_for_a_state_and_stays_as_it_is(tmp_path):
    made, folder = engine(), tmp_path / "folder"
    folder.mkdir()
    (folder / "kept").touch()
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        made.save(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "kept"]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="path must be a file, got the device"):
        made.save(tmp_path / "pipe")


@pytest.mark.parametrize("step", ["fsync", "replace", "link"])
def test_a_failed_save_leaves_the_files_as_they_were(tmp_path, monkeypatch, step):
    made, path = engine(), tmp_path / "s.pt"
    for _ in range(2):
        made.run(1)
        made.save(path)
    files = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    made.run(1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        if step == "link":  # no hard links there: renamed in turn
            made.save(path)
            assert previous(path).read_bytes() == files["s.pt"]
            return
        with pytest.raises(OSError, match=r"not saved \(No space left on device\)"):
            made.save(path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == files
    with pytest.raises(OSError, match="was not saved"):
        made.save(tmp_path / "nowhere" / "s.pt")


def test_what_cannot_be_read_back_is_refused_when_it_is_saved(tmp_path):
    class Odd(Mean):
        def state_dict(self):
            return {"total": np.float64(1.5), "count": self.value}

    odd = Odd()
    made = engine(callbacks=[odd])
    odd.value = lambda: 0
    with pytest.raises(TypeError, match=r"\['callbacks'\]\[0\]\[1\]\['count'\] is a .*function"):
        made.save(tmp_path / "s.pt")
    odd.value = 2
    made.save(tmp_path / "s.pt")
    made.load(tmp_path / "s.pt")
    assert odd.total == 1.5
