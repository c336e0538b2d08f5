"""Metasmoothness against closed forms, maps known to be rough, and trainings by hand."""

import math

import pytest
import torch
from torch import nn

from blo import Engine, Problem, ProblemGraph, t1t2
from blo.check import metasmoothness
from blo.check.metasmoothness import agreement


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


DESIGN, MIXING = normal(8, 4, seed=1), normal(8, 3, seed=2)


def quadratic(x):
    """Twenty gradient steps on ``|D y - M x|^2 / 16`` from zero: linear in x."""
    y = torch.zeros(4, dtype=torch.float64)
    for _ in range(20):
        y = y - 0.3 * DESIGN.T @ (DESIGN @ y - MIXING @ x[0]) / 8
    return [y]


def test_a_quadratic_problem_is_smooth_and_its_loss_has_the_curvature_of_the_closed_form():
    x, v = (normal(3, seed=3),), (normal(3, seed=4),)
    found = metasmoothness(
        quadratic, x, direction=v, step=0.5, loss=lambda x, y: 0.5 * y[0].square().sum()
    )
    assert found.agreement == pytest.approx(1.0)
    response = quadratic(v)[0]  # it is linear
    assert found.curvature == pytest.approx(float(response @ response), rel=1e-9)


def test_a_kink_on_the_way_turns_all_around():
    centre = torch.full((5,), 0.07, dtype=torch.float64)
    found = metasmoothness(
        lambda x: [(x[0] - centre).abs()], (torch.zeros_like(centre),),
        direction=(torch.ones_like(centre),), step=0.1,
    )  # fmt: skip
    assert found.agreement == -1.0


def test_chaos_has_no_agreement():
    """The logistic map doubles a distance a step: 40 steps lose all of float64's digits."""

    def logistic(x, steps):
        y = x[0]
        for _ in range(steps):
            y = 4 * y * (1 - y)
        return [y]

    x, v = (0.2 + 0.1 * normal(4000).sigmoid(),), (torch.ones(4000, dtype=torch.float64),)
    short, long = (
        metasmoothness(lambda x, n=n: logistic(x, n), x, direction=v, step=1e-5).agreement
        for n in (2, 40)
    )
    # For independent y_k of one distribution the signs agree in a third of the orders, and differ
    # in two; weighted by the way, -0.1 to -0.4.
    assert short == pytest.approx(1.0)
    assert abs(long) < 0.5


def test_the_statistic_is_that_of_the_definition():
    ends = [
        (torch.tensor(y).double(),) for y in ([0.0, 0.0, 0.0], [1.0, -1.0, 3.0], [3.0, 1.0, 1.0])
    ]
    assert agreement(*ends) == pytest.approx((3 - 1 - 1) / 5)


def test_a_third_run_that_ends_where_the_first_did_is_not_a_number():
    ends = [(torch.tensor(y).double(),) for y in ([0.0], [1.0], [0.0])]
    assert math.isnan(agreement(*ends))


def test_parameters_that_do_not_move_are_refused():
    with pytest.raises(ValueError, match="do not move with the upper ones"):
        metasmoothness(lambda x: [torch.ones(2)], (torch.zeros(2),))


def engine() -> tuple[Engine, nn.Module, nn.Module]:
    torch.manual_seed(0)
    net, weights = nn.Linear(4, 2).double(), nn.Linear(1, 8).double()
    batches = [DESIGN, DESIGN.flip(0), 0.5 * DESIGN]

    def below(rows):
        each = (net(rows) - MIXING[:, :2]).square().sum(1)
        noise = torch.rand(8, dtype=torch.float64)
        return (weights(torch.ones(1).double()).sigmoid() * each * noise).mean()

    upper = Problem("upper", lambda _: net(DESIGN).square().mean(), [net, weights],
                    torch.optim.SGD(weights.parameters(), 0.5), [None])  # fmt: skip
    lower = Problem("lower", below, [net, weights], torch.optim.Adam(net.parameters(), 0.1),
                    batches, steps=3, method=t1t2())  # fmt: skip
    return Engine(ProblemGraph([upper, lower])), net, weights


def test_an_engine_trains_from_where_it_stands_with_the_problem_above_held_still():
    trained, net, weights = engine()
    trained.run(1)
    start = [p.detach().clone() for p in net.parameters()]
    x = tuple(p.detach().clone() for p in weights.parameters())
    v = tuple(normal(*p.shape, seed=5) for p in x)
    ends, state = [], trained.state_dict()
    for k in range(3):
        twin, twin_net, twin_weights = engine()
        twin.load_state_dict(state)
        for _ in range(2):
            with torch.no_grad():
                for p, t, d in zip(twin_weights.parameters(), x, v, strict=True):
                    p.copy_(t + k * 0.2 * d)
            twin.run(1)
        ends.append(tuple(p.detach().clone() for p in twin_net.parameters()))
    trained.load_state_dict(state)
    found = metasmoothness(trained, rounds=2, step=0.2, direction=v)
    assert found.agreement == pytest.approx(agreement(*ends), abs=1e-12)
    assert 0.5 < found.agreement <= 1.0
    for p, t in zip(net.parameters(), start, strict=True):
        assert torch.equal(p, t)
    for p, t in zip(weights.parameters(), x, strict=True):
        assert torch.equal(p, t)


def test_an_engine_goes_on_as_if_nothing_had_been():
    other, other_net, _ = engine()
    other.run(3)
    asked, net, _ = engine()
    metasmoothness(asked)
    asked.run(3)
    for p, t in zip(net.parameters(), other_net.parameters(), strict=True):
        assert torch.equal(p, t)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"step": 0.0}, "step must be positive"),
        ({"rounds": 0}, "rounds must be an integer"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        metasmoothness(quadratic, (normal(3),), **arguments)


def test_arguments_of_the_other_kind_are_refused():
    with pytest.raises(TypeError, match="upper is missing"):
        metasmoothness(quadratic)
    with pytest.raises(TypeError, match="go with a function"):
        metasmoothness(engine()[0], (normal(3),))
