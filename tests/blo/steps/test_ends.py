"""Steps of Adam told by where they ended, against automatic differentiation and copies."""

import pytest
import torch
from torch.optim import Adam, AdamW

from blo import Engine, Problem, ProblemGraph, sama
from blo.derivatives.lower import LowerObjective
from blo.graph import Update
from blo.steps import ends
from blo.steps.ends import StartStates, from_end
from blo.steps.optimizers import UpdateMap
from blo.steps.replay import Drift

SETTINGS = [
    (Adam, {}),
    (Adam, {"weight_decay": 0.1}),
    (Adam, {"maximize": True, "weight_decay": 0.1, "betas": (0.5, 0.7)}),
    (AdamW, {"weight_decay": 0.2}),
    (AdamW, {"maximize": True, "eps": 1e-2}),
]


def stepped(kind, settings, steps, shapes=((7, 3), (5,), ()), dtype=torch.float64):
    """Return an optimizer's last step: states and parameters before it, what tells them, and the
    parameters after it.
    """
    torch.manual_seed(steps)
    p = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = kind(p, 0.1, **settings)
    for _ in range(steps):
        before = tuple(q.detach().clone() for q in p)
        states = tuple({k: v.clone() for k, v in optimizer.state.get(q, {}).items()} for q in p)
        for q in p:
            q.grad = torch.randn_like(q)
        optimizer.step()
    gradient, options = [q.grad for q in p], [optimizer.param_groups[0]] * len(p)
    update = UpdateMap(kind)
    after = [optimizer.state[q] for q in p]
    told = update.start_states(before, list(gradient), lambda: gradient, options, after)
    end = tuple(q.detach() for q in p)
    return update, update.start(before, states, options), told, gradient, options, end


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("kind, settings", SETTINGS)
def test_the_derivative_from_the_end_is_that_of_the_step(kind, settings, steps, monkeypatch):
    monkeypatch.setattr(ends, "BLOCK", 4)
    update, start, told, gradient, options, end = stepped(kind, settings, steps)
    cotangent = tuple(torch.randn_like(t) for t in end)
    g = tuple(t.clone().requires_grad_() for t in gradient)
    expected = torch.autograd.grad(update.step(start, g, options).lower, g, cotangent)
    found = from_end(told, cotangent, end)
    # In the first step all but eps cancels, which automatic differentiation leaves to rounding.
    rtol, atol = (1e-5, 1e-13) if steps == 1 else (1e-11, 1e-16)
    for a, b in zip(found.weights, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    off, way, size = (torch.stack(parts).norm() for parts in found[1:])
    length = torch.cat([(a - b).flatten() for a, b in zip(end, start.lower, strict=True)]).norm()
    assert off < 1e-14
    torch.testing.assert_close(size, torch.cat([t.flatten() for t in end]).norm())
    if kind is Adam:
        torch.testing.assert_close(way, length)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("kind, settings", SETTINGS)
def test_the_states_before_a_step_are_told_by_those_after_it(kind, settings, steps):
    update, start, told, _, options, _ = stepped(kind, settings, steps)
    again = update.start(start.lower, told, options)
    for a, b in zip(again.states, start.states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)


def test_other_memory_layouts_and_tensors_without_gradient_are_followed(monkeypatch):
    monkeypatch.setattr(ends, "BLOCK", 4)
    update, start, told, gradient, options, end = stepped(Adam, {}, 3, ((6, 4), (9,)))
    cotangent = tuple(torch.randn_like(t) for t in end)
    whole = from_end(told, cotangent, end).weights
    gradient[0] = gradient[0].T.contiguous().T
    columns = update.start_states(told.lower, [], lambda: gradient, options, told.after)
    for a, b in zip(from_end(columns, cotangent, end).weights, whole, strict=True):
        assert torch.equal(a, b)
    passed = [gradient[0], None]
    stood = (end[0], start.lower[1] + 0.5)
    found = from_end(StartStates(told.lower, passed, list, options, told.after), cotangent, stood)
    assert not found.weights[1].any()
    assert found.off[-1] == pytest.approx(1.5)  # nine elements, 0.5 each


def test_elements_without_gradient_have_weights_of_zero():
    for steps in (1, 2):
        p = torch.nn.Parameter(torch.randn(4))
        optimizer = Adam([p], 0.1)
        for _ in range(steps):
            before = (p.detach().clone(),)
            p.grad = torch.tensor([0.0, 1.0, 0.0, -2.0])
            optimizer.step()
        told = StartStates(
            before, [p.grad], list, [optimizer.param_groups[0]], [optimizer.state[p]]
        )
        (weight,) = from_end(told, (torch.ones(4),), (p.detach(),)).weights
        assert weight.isfinite().all()
        assert (weight != 0).tolist() == [False, True, False, True]


def engine(optimizer=Adam, wrap=None, **settings):
    torch.manual_seed(0)
    x, y = (torch.nn.ParameterList([torch.randn(5).double()]) for _ in range(2))
    below = optimizer(y.parameters(), 0.1, **settings)
    if wrap is not None:
        wrap(below, y[0])
    g = lambda _: ((y[0] - x[0].sin()) ** 4).sum()
    f = lambda _: (y[0] ** 2).sum()
    upper = Problem("upper", f, x, torch.optim.SGD(x.parameters(), 0.1), [None])
    lower = Problem("lower", g, y, below, [None], reads=["upper"], steps=2, method=sama())
    return Engine(ProblemGraph([upper, lower]))


def record(of):
    of.run(1)
    return of.recorder.moments["lower"]


def as_a_scheduler(step):
    """Put `step` in the place of an optimizer's as schedulers do."""

    def wrap(optimizer, y):
        plain = optimizer.step

        def wrapped():
            step(plain, y)

        wrapped._wrapped_by_lr_sched = True
        optimizer.step = wrapped

    return wrap


def test_states_are_copied_only_where_they_are_not_told():
    told = record(engine())
    assert told.states is None
    assert told.lower_gradient is None
    assert told.handed == []  # the response took it
    hooked = lambda optimizer, y: optimizer.register_step_pre_hook(lambda *_: None)
    patched = lambda optimizer, y: setattr(optimizer, "step", optimizer.step)
    for other in (
        engine(wrap=hooked),
        engine(wrap=patched),
        engine(amsgrad=True),
        engine(betas=(0.0, 0.9)),
        engine(torch.optim.SGD, momentum=0.9),
    ):
        copied = record(other)
        assert copied.handed is None
        assert copied.states is not None


def test_a_second_response_evaluates_the_gradient_again():
    one = engine()
    one.run(1)
    lower = one.recorder.moments["lower"]
    kept = torch.get_rng_state()
    top = one.graph["upper"]
    update = Update("upper", 1, True)
    first, second = one.gradient(top, update), one.gradient(top, update)
    assert lower.handed == []
    torch.testing.assert_close(first.value, second.value, rtol=1e-12, atol=0)
    assert torch.equal(kept, torch.get_rng_state())


@pytest.mark.parametrize("replaced", [False, True])
def test_a_gradient_that_is_changed_in_the_step_is_refused(replaced):
    def halve(plain, y):
        if replaced:
            y.grad = y.grad / 2
        else:
            y.grad.mul_(0.5)
        plain()

    with pytest.raises(RuntimeError, match="'lower' was handed was changed in its step"):
        engine(wrap=as_a_scheduler(halve)).run(1)


def test_parameters_that_are_changed_after_the_step_are_refused():
    def project(plain, y):
        plain()
        with torch.no_grad():
            y.add_(1e-2)

    with pytest.raises(RuntimeError, match=r"recorded lower step 1, taken again, ends"):
        engine(wrap=as_a_scheduler(project)).run(1)


def test_a_scheduler_leaves_the_record_as_it_is():
    def schedule(optimizer, y):
        torch.optim.lr_scheduler.StepLR(optimizer, 1)

    assert record(engine(wrap=schedule)).handed is not None


def test_the_distance_is_compared_over_all_parts():
    drift = Drift(LowerObjective(()), (torch.ones(2),))
    parts = [torch.tensor(1.0)] * 3
    drift.note([torch.tensor(0.0), torch.tensor(0.0), torch.tensor(0.1)], parts, parts)
    with pytest.raises(RuntimeError, match=r"ends 0\.1 away"):
        drift.check()


def test_half_precision_small_betas_and_other_rules_tell_nothing():
    p, options = [torch.ones(1)], Adam([torch.ones(1)], 0.1).defaults
    assert UpdateMap(Adam).tells_start(p, [options])
    assert not UpdateMap(Adam).tells_start(p, [{**options, "betas": (0.9, 0.01)}])
    assert not UpdateMap(Adam).tells_start([torch.ones(1).bfloat16()], [options])
    assert not UpdateMap(torch.optim.NAdam).tells_start(p, [options])


def test_second_moments_before_a_first_gradient_are_not_negative():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(2000))
    optimizer = Adam([p], 0.1)
    for gradient in (torch.zeros(2000), torch.randn(2000)):
        p.grad = gradient
        optimizer.step()
    group, after = [optimizer.param_groups[0]], [optimizer.state[p]]
    told = StartStates((p.detach(),), [p.grad], list, group, after)
    assert (told[0]["exp_avg_sq"] >= 0).all()
