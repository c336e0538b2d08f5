"""The engine driven from outside: one update at a time, on batches that are handed in."""

import pytest
import torch

from blo import Clip, Engine, Problem, ProblemGraph, cg, darts, t1t2, unrolled


def setting(method, *, handed, steps=2, optimizer="sgd", clip=None, callbacks=(), **options):
    """Return an engine of two levels on fixed batches, its optimizers and the batches."""
    torch.manual_seed(0)
    x = torch.nn.Linear(3, 3).double()
    y = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Dropout(0.3))
    y = torch.nn.Sequential(y, torch.nn.Linear(4, 1)).double()
    data = [torch.randn(5, 3).double() for _ in range(6)]
    make = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, 0.05),
    }[optimizer]
    above, below = make(x.parameters()), make(y.parameters())
    accumulate = options.pop("accumulate", 1)
    upper = Problem(
        "upper",
        lambda b: y(b).square().mean() + x(b).mean(),
        x,
        above,
        None if handed else data[:2],
        reads=["lower"],
        clip=clip,
        accumulate=1 if handed else accumulate,
    )
    lower = Problem(
        "lower",
        lambda b: {"loss": (y(b) - x(b).sum(1, keepdim=True)).square().mean(), "size": 2.0},
        y,
        below,
        None if handed else data[2:],
        reads=["upper"],
        steps=steps,
        method=method,
        clip=clip,
        accumulate=1 if handed else accumulate,
        **options,
    )
    engine = Engine(ProblemGraph([upper, lower]), callbacks=callbacks)
    return engine, above, below, data


def values(engine):
    return [t.detach().clone() for p in engine.graph.problems for t in p.parameters]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", [darts(), t1t2(), cg(3), unrolled()], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_loop_of_ones_own_is_run_bit_for_bit(method, optimizer, accumulate):
    clip, records = Clip(norm=0.5), []
    ran, *_, data = setting(
        method, handed=False, optimizer=optimizer, clip=clip, accumulate=accumulate
    )
    torch.manual_seed(1)
    record = ran.run(3)
    engine, above, below, _ = setting(
        method, handed=True, optimizer=optimizer, clip=clip, callbacks=[records.append]
    )
    torch.manual_seed(1)
    low, high = (iter(data[2:] * 9), iter(data[:2] * 9))
    while engine.round < 3:
        turn = engine.turn
        stream, optimizer_ = (low, below) if turn.problem == "lower" else (high, above)
        engine.backward(turn.problem, [next(stream) for _ in range(accumulate)])
        problem = engine.graph[turn.problem]
        torch.nn.utils.clip_grad_norm_(problem.parameters, 0.5)
        optimizer_.step()
        optimizer_.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(values(ran), values(engine), strict=True))
    assert [r.round for r in records] == [1, 2, 3]
    assert records[-1].losses == record.losses
    assert records[-1].metrics["lower"] == {"size": 2.0}
    # The probes of batches that are handed in are not counted, as those at construction are not.
    assert records[-1].num_gradients == record.num_gradients


def test_steps_by_the_engine_on_batches_that_are_handed_in():
    ran, *_, data = setting(darts(), handed=False)
    torch.manual_seed(1)
    ran.run(2)
    engine, *_ = setting(darts(), handed=True)
    torch.manual_seed(1)
    for i in range(2):
        engine.step("lower", [data[2 + 2 * i]])
        engine.step("lower", [data[3 + 2 * i]])
        total = engine.step("upper", [data[i]])
    assert all(torch.equal(a, b) for a, b in zip(values(ran), values(engine), strict=True))
    assert list(total.infos) == ["upper <- lower"]


def test_the_order_of_updates_is_kept():
    engine, *_, data = setting(darts(), handed=True)
    assert engine.turn == ("lower", 1, False)
    with pytest.raises(RuntimeError, match="step 1 of problem 'lower' comes next"):
        engine.step("upper", data[:1])
    with pytest.raises(RuntimeError, match="has no batches of its own"):
        engine.step("lower")
    with pytest.raises(TypeError, match="a single batch goes in a list"):
        engine.step("lower", data[0])
    engine.step("lower", data[:1])
    assert engine.turn == ("lower", 2, True)


def test_a_round_that_was_broken_off_begins_anew():
    engine, *_ = setting(darts(), handed=False)
    engine.step("lower")
    assert engine.turn == ("lower", 2, True)
    engine.run(1)
    assert engine.turn == ("lower", 1, False)


def test_a_step_that_was_not_taken_is_an_error():
    engine, _, below, data = setting(darts(), handed=True)
    engine.backward("lower", data[:1])
    with pytest.raises(RuntimeError, match="no step was taken along the gradient of problem 'lo"):
        engine.backward("lower", data[:1])
    engine.backward("lower", data[:1])
    below.step()


def test_what_else_has_a_hand_in_the_step_is_seen():
    engine, _, below, data = setting(darts(), handed=True)
    engine.backward("lower", data[:1])
    torch.nn.utils.clip_grad_norm_(engine.graph["lower"].parameters, 0.01)
    below.step()
    with pytest.warns(UserWarning, match="away from the plain update of SGD"):
        engine.backward("lower", data[:1])


def test_clipping_that_was_declared_and_not_done_is_seen():
    engine, _, below, data = setting(darts(), handed=True, clip=Clip(norm=0.01))
    engine.backward("lower", data[:1])
    below.step()
    with pytest.warns(UserWarning, match="away from the plain update of SGD"):
        engine.backward("lower", data[:1])


def test_the_first_batch_that_is_handed_in_is_probed():
    x, y = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    sgd = [torch.optim.SGD(m.parameters(), 0.1) for m in (x, y)]
    top = lambda b: y(b).mean() + other(b).mean()
    upper = Problem("upper", top, x, sgd[0], [torch.ones(1, 1)])
    loss = lambda b: (y(b) - x(b)).square().mean() + 0 * other(b).mean()
    other = torch.nn.Linear(1, 1)
    third = Problem(
        "third",
        lambda b: other(b).mean(),
        other,
        torch.optim.SGD(other.parameters(), 0.1),
        [torch.ones(1, 1)],
    )
    lower = Problem("lower", loss, y, sgd[1], None, reads=["upper"])
    engine = Engine(ProblemGraph([upper, lower, third]))
    with pytest.raises(ValueError, match="its loss depends on"):
        engine.step("lower", [torch.ones(1, 1)])


def test_batches_twice_and_reads_that_are_not_declared_are_refused():
    engine, *_, data = setting(darts(), handed=False)
    with pytest.raises(ValueError, match="which has its own"):
        engine.step("lower", data[:1])
    y = torch.nn.Linear(1, 1)
    sgd = torch.optim.SGD(y.parameters(), 0.1)
    with pytest.raises(ValueError, match="declare reads"):
        Problem("y", lambda b: y(b).mean(), y, sgd, None)
    with pytest.raises(ValueError, match="accumulate must be 1 where batches are handed in"):
        Problem("y", lambda b: y(b).mean(), y, sgd, None, reads=[], accumulate=2)
