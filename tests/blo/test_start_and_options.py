"""Start, options and clipping of a lower problem, against differences through torch's steps."""

import math

import pytest
import torch
from torch import nn

from blo import (
    Clip,
    Engine,
    Problem,
    ProblemGraph,
    cg,
    dense,
    forward_mode,
    sama,
    unrolled,
)

STEPS, LR, PULL, TARGET = 5, 0.1, 0.5, 2.0
OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.5),
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr),
}
METHODS = [unrolled(), unrolled(checkpoint=True), forward_mode()]


def doubles(**values):
    return nn.ParameterDict({k: torch.tensor(v).double() for k, v in values.items()})


def trained(method, optimizer, *, clip=None, keep_state=False, rounds=2):
    """Return d/dx and d/d(log lr) of the last round's upper loss."""
    x, w = doubles(x=1.0, log_lr=math.log(LR)), doubles(w=7.0)
    top, seen = torch.optim.SGD(x.parameters(), 0.0), []
    top.register_step_pre_hook(lambda *_: seen.append({k: p.grad.item() for k, p in x.items()}))
    loss = lambda _: 0.5 * (w["w"] - TARGET) ** 2 + 0.5 * PULL * (w["w"] - x["x"]) ** 2
    lower = Problem(
        "l",
        loss,
        [x, w],
        OPTIMIZERS[optimizer](w.parameters(), 1.0),
        [None],
        steps=STEPS,
        method=method,
        start=lambda: [x["x"]],
        keep_state=keep_state,
        options={"lr": lambda: x["log_lr"].exp()},
        clip=clip,
    )
    upper = Problem("u", lambda _: (w["w"] - 3) ** 2, [x, w], top, [None])
    Engine(ProblemGraph([upper, lower])).run(rounds)
    return [seen[-1]["x"], seen[-1]["log_lr"]]


def run_by_torch(x, lr, optimizer, clip):
    w = torch.tensor(x, requires_grad=True, dtype=torch.float64)
    taken = OPTIMIZERS[optimizer]([w], lr)
    for _ in range(STEPS):
        taken.zero_grad()
        (0.5 * (w - TARGET) ** 2 + 0.5 * PULL * (w - x) ** 2).backward()
        if clip is not None and clip.norm is not None:
            nn.utils.clip_grad_norm_([w], clip.norm)
        if clip is not None and clip.value is not None:
            nn.utils.clip_grad_value_([w], clip.value)
        taken.step()
    return float((w.detach() - 3) ** 2)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, Clip(norm=0.3), Clip(value=0.6)], ids=repr)
def test_start_and_learning_rate_are_differentiated(method, optimizer, clip):
    h = 1e-6
    ahead, back = (run_by_torch(1.0 + e, LR, optimizer, clip) for e in (h, -h))
    faster, slower = (run_by_torch(1.0, LR * math.exp(e), optimizer, clip) for e in (h, -h))
    right = [(ahead - back) / (2 * h), (faster - slower) / (2 * h)]
    assert trained(method, optimizer, clip=clip) == pytest.approx(right, rel=1e-6, abs=1e-8)


def test_the_state_of_the_optimizer_begins_anew_unless_it_is_kept():
    anew = trained(unrolled(), "sgd", rounds=1)
    assert trained(unrolled(), "sgd", rounds=3) == pytest.approx(anew, rel=1e-12)
    assert trained(unrolled(), "sgd", keep_state=True, rounds=3) != pytest.approx(anew, rel=1e-3)


def problem(**settings):
    x, w = doubles(x=1.0), doubles(w=7.0)
    loss = lambda _: (w["w"] - x["x"]) ** 2
    sgd = torch.optim.SGD(w.parameters(), 0.1)
    return x, w, Problem("l", loss, [x, w], sgd, [None], **settings)


def graph_of(x, w, lower):
    sgd = torch.optim.SGD(x.parameters(), 0.0)
    return ProblemGraph([Problem("u", lambda _: (w["w"] - 3) ** 2, [x, w], sgd, [None]), lower])


def test_a_truncated_record_says_that_the_start_is_left_out():
    x, w, _ = problem()
    lower = Problem(
        "l",
        lambda _: (w["w"] - x["x"]) ** 2,
        [x, w],
        torch.optim.SGD(w.parameters(), 0.1),
        [None],
        steps=5,
        method=unrolled(2),
        start=lambda: [x["x"]],
    )
    with pytest.warns(UserWarning, match="differentiates 2 of its 5 steps"):
        graph_of(x, w, lower)


def test_options_that_a_method_leaves_out_warn():
    x, w, _ = problem()
    lower = Problem(
        "l",
        lambda _: (w["w"] - x["x"]) ** 2,
        [x, w],
        torch.optim.SGD(w.parameters(), 0.1),
        [None],
        method=cg(2),
        options={"lr": lambda: 0.1 * x["x"]},
    )
    with pytest.warns(UserWarning, match=r"options \['lr'\] of problem 'l' are functions"):
        graph_of(x, w, lower)


def test_sama_differentiates_the_options_of_the_last_step():
    def taken(method):
        x, w = doubles(x=0.3), doubles(w=7.0)
        top, seen = torch.optim.SGD(x.parameters(), 0.0), []
        top.register_step_pre_hook(lambda *_: seen.append(x["x"].grad.item()))
        lower = Problem(
            "l",
            lambda _: (w["w"] - x["x"]) ** 2,
            [x, w],
            torch.optim.SGD(w.parameters(), 0.1),
            [None],
            method=method,
            options={"lr": lambda: 0.1 * x["x"]},
        )
        upper = Problem("u", lambda _: (w["w"] - 3) ** 2, [x, w], top, [None])
        Engine(ProblemGraph([upper, lower])).run(1)
        return seen[0]

    assert taken(sama()) == pytest.approx(taken(unrolled()), rel=1e-8)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"start": 3}, "start must be a function"),
        ({"options": {"lr": 0.1}}, r"options\['lr'\] must be a function"),
        ({"options": {"rate": lambda: 0.1}}, r"options\['rate'\] is not an option of SGD"),
        ({"clip": 1.0}, "clip must be a Clip"),
    ],
)
def test_misuse_names_the_argument(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        problem(**settings)


def test_a_start_of_other_shapes_is_refused():
    x, w, lower = problem(start=lambda: [torch.zeros(2)], method=unrolled())
    with pytest.raises(ValueError, match="start of problem 'l' must return tensors in the shapes"):
        Engine(graph_of(x, w, lower)).run(1)


def test_implicit_meta_learning_needs_no_derivative_of_the_start():
    # The minimiser of the lower loss is (TARGET + PULL x) / (1 + PULL), wherever it starts from.
    x, w = doubles(x=1.0), doubles(w=7.0)
    top, seen = torch.optim.SGD(x.parameters(), 0.0), []
    top.register_step_pre_hook(lambda *_: seen.append(x["x"].grad.item()))
    loss = lambda _: 0.5 * (w["w"] - TARGET) ** 2 + 0.5 * PULL * (w["w"] - x["x"]) ** 2
    exact = torch.optim.SGD(w.parameters(), 1 / (1 + PULL))
    start = lambda: [x["x"]]
    lower = Problem("l", loss, [x, w], exact, [None], method=dense(), start=start)
    upper = Problem("u", lambda _: (w["w"] - 3) ** 2, [x, w], top, [None])
    Engine(ProblemGraph([upper, lower])).run(2)
    solved = (TARGET + PULL * 1.0) / (1 + PULL)
    assert seen[-1] == pytest.approx(2 * (solved - 3) * PULL / (1 + PULL), rel=1e-9)


def test_a_momentum_of_exactly_zero_is_refused_where_it_is_differentiated():
    x, w = doubles(m=0.0), doubles(w=7.0)
    sgd = torch.optim.SGD(w.parameters(), LR, momentum=0.5)
    loss, options = lambda _: (w["w"] - TARGET) ** 2, {"momentum": lambda: x["m"] * 1}
    lower = Problem("l", loss, [x, w], sgd, [None], steps=2, method=unrolled(), options=options)
    top = torch.optim.SGD(x.parameters(), LR)
    upper = Problem("u", lambda _: (w["w"] - 3) ** 2, [x, w], top, [None])
    with pytest.raises(ValueError, match=r"options\['momentum'\] of problem 'l' is exactly 0"):
        Engine(ProblemGraph([upper, lower])).run(1)
