"""PBGD: the gradient of the penalised problem, its rate, and training with it."""

import math

import pytest
import torch
from oracles import NestedQuadratics, Vector, by_matrices, logistic, newton, relative_error

from blo import Context, Engine, Point, Problem, ProblemGraph, Status, dense, hypergradient, pbgd
from blo.derivatives.lower import LowerObjective


@pytest.fixture(scope="module")
def direct_problem():
    """Losses with every derivative: f depends on both levels, and the lower Hessian on y."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    spd = a @ a.T / 4 + torch.eye(4, dtype=torch.float64)

    def lower(x, y):
        coupling = y[0] @ b @ x[0].tanh()
        return 0.5 * y[0] @ spd @ y[0] + coupling + 0.1 * (y[0] ** 4).sum() + (x[0] ** 2).sum()

    def upper(x, y):
        return 0.5 * ((y[0] - 1) ** 2).sum() + (x[0].sin() * y[0]).sum() + (x[0] ** 2).sum()

    x = torch.randn(4, generator=generator, dtype=torch.float64)
    return by_matrices(upper, lower, x, torch.zeros_like(x))


def of(p, method, **settings):
    at = ((p.upper,), (p.lower,))
    return hypergradient(p.upper_loss, p.lower_loss, *at, method=method, **settings)


def partial(loss, p, y):
    """The gradients of a loss with respect to x and y, at (p.upper, y)."""
    return torch.autograd.functional.jacobian(lambda u, w: loss((u,), (w,)), (p.upper, y))


def gradient_of_penalty(p, penalty, z):
    """F_x at the copy z and the lower solution."""
    (fx, _), (gx, _) = partial(p.upper_loss, p, z), partial(p.lower_loss, p, z)
    return fx + penalty * (gx - partial(p.lower_loss, p, p.lower)[0])


# Value.


def test_one_call_is_the_update_written_by_hand(direct_problem):
    p, penalty, lr = direct_problem, 4.0, 0.05
    z = p.lower
    for _ in range(2):
        z = z - lr * (partial(p.lower_loss, p, z)[1] + partial(p.upper_loss, p, z)[1] / penalty)
    result = of(p, pbgd(penalty, num_steps=2, lr=lr))
    assert relative_error(result.grads[0], gradient_of_penalty(p, penalty, z)) < 1e-12
    assert relative_error(result.state[0], z) < 1e-14


@pytest.mark.parametrize("lr", [None, 0.1])
def test_calls_from_the_state_before_reach_the_gradient_of_the_penalised_minimum(
    direct_problem, lr
):
    p, penalty = direct_problem, 7.0
    minimiser = newton(
        lambda z: p.upper_loss((p.upper,), (z,)) + penalty * p.lower_loss((p.upper,), (z,)), p.lower
    )
    state = None
    for _ in range(60):
        result = of(p, pbgd(penalty, num_steps=3, lr=lr), state=state)
        state = result.state
    assert relative_error(state[0], minimiser) < 1e-7
    assert relative_error(result.grads[0], gradient_of_penalty(p, penalty, minimiser)) < 1e-6
    assert result.info.residual < 1e-6


def test_the_error_falls_linearly_in_the_inverse_penalty():
    p = logistic()

    def error(penalty):
        grads = of(p, pbgd(penalty, num_steps=400)).grads[0]
        return relative_error(grads, p.hypergradient)

    first, second = error(1e2), error(1e3)
    assert first == pytest.approx(1.2e-2, rel=0.05)  # the value measured for F2SA
    slope = math.log10(first / second)
    assert slope == pytest.approx(1, abs=0.05)


def test_a_step_size_beyond_the_curvature_is_reported(direct_problem):
    result = of(direct_problem, pbgd(num_steps=50, lr=100.0))
    assert result.info.status is Status.DIVERGED
    assert bool(torch.isfinite(result.grads[0]).all())


def test_a_chosen_step_is_one_over_the_curvature_along_the_gradient():
    h = torch.tensor([3.0, 1.0], dtype=torch.float64)
    ones = (torch.ones(2, dtype=torch.float64),)
    result = hypergradient(
        lambda x, y: y[0].sum(),
        lambda x, y: 0.5 * (h * (y[0] - x[0]) ** 2).sum(),
        ones,
        ones,
        method=pbgd(10.0),
    )
    along = (h.square().sum() / 2) ** 0.5  # |H c| / |c| for c = (1, 1)
    assert result.info.scale == pytest.approx(float(1 / along), rel=1e-6)


@pytest.mark.parametrize(
    "settings, expected", [({"lr": 0.1}, 6), ({}, 8), ({"lr": 0.1, "num_steps": 5}, 14)]
)
def test_each_setting_costs_what_it_says(direct_problem, settings, expected):
    calls = []

    def counted(loss):
        def counting(x, y):
            calls.append(loss)
            return loss(x, y)

        return counting

    p = direct_problem
    result = hypergradient(
        counted(p.upper_loss),
        counted(p.lower_loss),
        (p.upper,),
        (p.lower,),
        method=pbgd(**settings),
    )
    assert len(calls) - 1 == expected  # one for the cotangent
    assert result.info.num_gradients == expected


# In a graph.


def test_training_ends_at_the_minimum_of_the_penalised_problem():
    a, penalty = 3.0, 5.0
    upper, lower = (Vector(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    graph = ProblemGraph(
        [
            Problem(
                "upper",
                lambda _: (0.5 * (lower.value - 1) ** 2 + 0.05 * upper.value**2).sum(),
                upper,
                torch.optim.SGD(upper.parameters(), lr=0.3),
                [None],
            ),
            Problem(
                "lower",
                lambda _: (0.5 * a * (lower.value - upper.value) ** 2).sum(),
                lower,
                torch.optim.SGD(lower.parameters(), lr=1 / a),
                [None],
                method=pbgd(penalty),
            ),
        ]
    )
    engine = Engine(graph)
    for _ in engine.rounds(200):
        pass
    k = penalty * a / (1 + penalty * a)  # F(x) = k (1 - x)^2 / 2 + x^2 / 20
    assert float(upper.value.detach()) == pytest.approx(k / (k + 0.1), rel=1e-6)
    z = (1 + penalty * a * upper.value.detach()) / (1 + penalty * a)
    assert torch.allclose(engine.state_dict()["method_states"]["upper <- lower"][0], z)


def received(problems):
    """The gradient that the top's optimizer receives in the first round."""
    parameter, seen = problems[0].parameters[0], []
    problems[0].optimizer.register_step_pre_hook(lambda *_: seen.append(parameter.grad.clone()))
    Engine(ProblemGraph(problems)).run(1)
    return seen[0]


@pytest.mark.parametrize(
    "reads",
    [
        {"x": ["z"], "y": ["x"], "z": ["y"]},
        {"x": ["y", "z"], "y": ["x"], "z": ["x", "y"]},
    ],
    ids=["chain", "skip connection"],
)
def test_cotangents_of_deeper_graphs_are_answered_in_full(reads):
    nested = NestedQuadratics(reads)
    values, reference = nested.solve()

    def error(penalty):
        modules = {k: Vector(v.clone()) for k, v in values.items()}
        problems = [
            Problem(
                k,
                lambda batch, k=k: nested.loss(k, {n: m.value for n, m in modules.items()}),
                modules[k],
                torch.optim.SGD(modules[k].parameters(), lr=0.0),
                [None],
                method=pbgd(penalty, num_steps=100),
            )
            for k in nested.names
        ]
        return relative_error(received(problems), reference)

    last = error(1e4)
    assert last < 1e-3
    assert last == pytest.approx(error(1e3) / 10, rel=0.1)


@pytest.mark.parametrize("maximize", [False, True])
def test_weight_decay_sign_and_accumulation_enter_as_in_the_exact_solve(maximize):
    sign = -1 if maximize else 1
    h = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]], dtype=torch.float64)
    c = torch.tensor([[1.0, 0.5], [-0.3, 0.2], [0.4, -1.0]], dtype=torch.float64)
    x = torch.ones(2, dtype=torch.float64)
    decay = 0.3 * torch.eye(3, dtype=torch.float64)
    solution = -torch.linalg.solve(1.5 * h + decay, c @ x.sin())

    def value(method):
        upper, lower = Vector(x.clone()), Vector(solution.clone())

        def lower_loss(factor):
            y = lower.value
            return sign * (0.5 * factor * y @ h @ y + y @ c @ upper.value.sin())

        optimizer = torch.optim.SGD(lower.parameters(), lr=0.1, weight_decay=0.3, maximize=maximize)
        batches = [torch.tensor(s, dtype=torch.float64) for s in (1.0, 2.0)]
        options = {"method": method, "accumulate": 2}
        return received(
            [
                Problem(
                    "upper",
                    lambda _: ((lower.value - 1) ** 2).sum(),
                    upper,
                    torch.optim.SGD(upper.parameters(), lr=0.1),
                    [None],
                ),
                Problem("lower", lower_loss, lower, optimizer, batches, **options),
            ]
        )

    assert relative_error(value(pbgd(1e5, num_steps=300)), value(dense())) < 1e-4


# Misuse.


@pytest.mark.parametrize(
    "settings, name",
    [({"penalty": 0.0}, "penalty"), ({"num_steps": True}, "num_steps"), ({"lr": 0.0}, "lr")],
)
def test_settings_out_of_range_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        pbgd(**settings)


def test_a_lower_loss_without_upper_parameters_is_an_error():
    ones = (torch.ones(2, dtype=torch.float64),)
    with pytest.raises(RuntimeError, match="does not depend on any upper parameter"):
        hypergradient(
            lambda x, y: (y[0] * x[0]).sum(),
            lambda x, y: (y[0] ** 2).sum(),
            ones,
            ones,
            method=pbgd(),
        )


def test_the_upper_loss_is_asked_for_where_the_context_has_none():
    ones = (torch.ones(2, dtype=torch.float64),)
    point = Point(ones, ones)
    with pytest.raises(ValueError, match="needs the upper loss"):
        pbgd().response(Context(LowerObjective(()), after=point, before=point), ones, None)
