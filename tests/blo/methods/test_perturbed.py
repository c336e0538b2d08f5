"""F2SA: the rates that the papers prove, closed forms, and what each gradient is spent on."""

import math

import pytest
import torch
from oracles import NestedQuadratics, Vector, by_matrices, logistic, newton, relative_error, ridge

from blo import (
    Context,
    Engine,
    Point,
    Problem,
    ProblemGraph,
    Status,
    cg,
    dense,
    f2sa,
    hypergradient,
)
from blo.derivatives.lower import LowerObjective


def of(problem, method, **settings):
    return hypergradient(
        problem.upper_loss,
        problem.lower_loss,
        (problem.upper,),
        (problem.lower,),
        method=method,
        **settings,
    )


def error(problem, method):
    return relative_error(of(problem, method).grads[0], problem.hypergradient)


@pytest.fixture(scope="module")
def logistic_problem():
    return logistic()


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


# Rates.

SOLVED = {"rtol": 1e-9, "linearised": False}
PUBLISHED = {1: 0.39, 10: 9.7e-2, 100: 1.2e-2, 1000: 1.2e-3, 10_000: 1.2e-4}


@pytest.mark.parametrize("multiplier, expected", PUBLISHED.items())
def test_logistic_errors_are_those_measured_for_f2sa(logistic_problem, multiplier, expected):
    value = error(logistic_problem, f2sa(300, delta=1 / multiplier, **SOLVED))
    assert value == pytest.approx(expected, rel=0.05)


def rate(problem, deltas, **settings):
    """The exponent of delta in the error, between two deltas."""
    first, second = (error(problem, f2sa(300, delta=d, rtol=1e-11, **settings)) for d in deltas)
    return math.log(first / second) / math.log(deltas[0] / deltas[1])


@pytest.mark.parametrize("linearised", [True, False])
def test_the_error_falls_linearly_in_delta(logistic_problem, linearised):
    assert rate(logistic_problem, (1e-2, 1e-3), linearised=linearised) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("linearised", [True, False])
def test_the_symmetric_error_falls_with_the_square_of_delta(direct_problem, linearised):
    settings = {"linearised": linearised, "symmetric": True}
    assert rate(direct_problem, (1e-2, 1e-3), **settings) == pytest.approx(2, abs=0.02)


def test_the_symmetric_quotient_is_exact_on_a_quadratic():
    assert error(ridge(), f2sa(300, delta=0.1, symmetric=True, rtol=1e-10)) < 1e-8


def test_direct_part_and_response_make_the_gradient_of_the_paper(direct_problem):
    p, multiplier = direct_problem, 7.0
    x = p.upper

    def penalised(y):
        return p.lower_loss((x,), (y,)) + p.upper_loss((x,), (y,)) / multiplier

    moved = newton(penalised, p.lower)

    def at(loss, y):
        return torch.autograd.functional.jacobian(lambda u: loss((u,), (y,)), x)

    reference = at(p.upper_loss, moved) + multiplier * (
        at(p.lower_loss, moved) - at(p.lower_loss, p.lower)
    )
    value = of(p, f2sa(300, delta=1 / multiplier, rtol=1e-12, linearised=False)).grads[0]
    assert relative_error(value, reference) < 1e-9


# Steps.


def quadratic(hessian, coupling, slope=None):
    """g = y H y / 2 + y C x, f = <slope, y>, at y = 0, x = 1: not stationary."""
    n = hessian.shape[0]
    slope = torch.ones(n, dtype=torch.float64) if slope is None else slope

    def lower(x, y):
        return 0.5 * y[0] @ hessian @ y[0] + y[0] @ coupling @ x[0]

    return (
        lambda x, y: slope @ y[0],
        lower,
        (torch.ones(coupling.shape[1], dtype=torch.float64),),
        (torch.zeros(n, dtype=torch.float64),),
    )


H = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]], dtype=torch.float64)
C = torch.tensor([[1.0, 0.5], [-0.3, 0.2], [0.4, -1.0]], dtype=torch.float64)
ONES = torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_steps_of_a_given_size_are_the_truncated_neumann_series(num_steps):
    lr = 0.4
    series = sum(
        lr * torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) - lr * H, k) @ ONES
        for k in range(num_steps)
    )
    result = hypergradient(*quadratic(H, C), method=f2sa(num_steps, lr=lr, delta=1e-3))
    assert relative_error(result.grads[0], -C.T @ series) < 1e-9
    assert result.info.num_gradients == num_steps + 1
    assert result.info.scale == lr


def test_one_step_of_chosen_size_is_the_best_multiple_of_the_cotangent():
    v = (ONES @ H @ ONES) / (H @ ONES).square().sum() * ONES
    result = hypergradient(*quadratic(H, C), method=f2sa(1, delta=1e-3))
    assert relative_error(result.grads[0], -C.T @ v) < 1e-6
    assert result.info.residual == pytest.approx(float((ONES - H @ v).norm() / 3**0.5), rel=1e-6)


def test_chosen_step_sizes_converge_on_an_ill_conditioned_problem():
    spectrum = torch.logspace(-3, 0, 12, dtype=torch.float64)
    coupling = torch.eye(12, dtype=torch.float64)
    problem = quadratic(spectrum.diag(), coupling, slope=torch.ones(12, dtype=torch.float64))
    result = hypergradient(*problem, method=f2sa(400, delta=1e-2, rtol=1e-8))
    assert result.info.status is Status.CONVERGED
    assert relative_error(result.grads[0], -1 / spectrum) < 1e-6


def test_a_lower_problem_far_from_converged_is_not_amplified(logistic_problem):
    p = logistic_problem
    at = (p.upper_loss, p.lower_loss, (p.upper,), (0.5 * p.lower,))
    exact = hypergradient(*at, method=dense()).grads[0]
    value = hypergradient(*at, method=f2sa(200, delta=1e-4)).grads[0]
    assert relative_error(value, exact) < 1e-3


def test_damping_is_added_to_the_hessian():
    result = hypergradient(*quadratic(H, C), method=f2sa(100, delta=1e-2, damping=0.7, rtol=1e-10))
    damped = H + 0.7 * torch.eye(3, dtype=torch.float64)
    assert relative_error(result.grads[0], -C.T @ torch.linalg.solve(damped, ONES)) < 1e-8


def test_curvature_downwards_along_the_cotangent_gives_the_scaled_cotangent():
    hessian = torch.diag(torch.tensor([1.0, -2.0, -1.0], dtype=torch.float64))
    result = hypergradient(*quadratic(hessian, C), method=f2sa(50))
    v = ONES * (3.0 / 6.0) ** 0.5  # |c| / |H c|
    assert result.info.status is Status.INDEFINITE
    assert relative_error(result.grads[0], -C.T @ v) < 1e-6


def test_curvature_downwards_met_later_ends_the_steps():
    hessian = torch.diag(torch.tensor([3.0, 1.0, -0.2], dtype=torch.float64))
    result = hypergradient(*quadratic(hessian, C), method=f2sa(50))
    assert result.info.status is Status.INDEFINITE
    assert result.info.num_gradients < 50
    assert result.info.residual < 1


def test_a_step_size_beyond_the_curvature_diverges_and_says_so():
    result = hypergradient(*quadratic(H, C), method=f2sa(20, lr=2.0))
    assert result.info.status is Status.DIVERGED
    assert relative_error(result.grads[0], -C.T @ (2.0 * ONES)) < 1e-6  # the first step
    assert result.info.num_gradients == 3  # at y, after the first step, and its upper gradient


def test_steps_of_a_given_size_end_before_negative_curvature_takes_over():
    hessian = torch.diag(torch.tensor([3.0, 1.0, -0.2], dtype=torch.float64))
    result = hypergradient(*quadratic(hessian, C), method=f2sa(20, lr=0.3, delta=1e-3))
    residuals, v = [], 0 * ONES
    for _ in range(20):
        v = v + 0.3 * (ONES - hessian @ v)
        residuals.append(float((ONES - hessian @ v).norm() / 3**0.5))
    assert result.info.status is Status.DIVERGED
    assert result.info.residual == pytest.approx(min(residuals), rel=1e-9)


def test_a_warm_start_from_the_solution_takes_no_steps():
    problem = quadratic(H, C)
    method = f2sa(100, delta=1e-3, warm_start=True)
    first = hypergradient(*problem, method=method)
    again = hypergradient(*problem, method=method, state=first.state)
    assert relative_error(first.state[0], torch.linalg.solve(H, ONES)) < 1e-5
    assert relative_error(again.grads[0], first.grads[0]) < 1e-5
    assert again.info.num_gradients == 3  # at y, at the start, and the upper gradient there
    assert again.info.status is Status.CONVERGED


def test_a_zero_cotangent_gives_zeros_without_an_evaluation():
    problem = quadratic(H, C, slope=0 * ONES)
    result = hypergradient(*problem, method=f2sa(5))
    assert torch.equal(result.grads[0], torch.zeros(2, dtype=torch.float64))
    assert result.info.num_gradients == 0


# Cost.


def count(fn):
    def counted(x, y):
        counted.calls += 1
        return fn(x, y)

    counted.calls = 0
    return counted


@pytest.mark.parametrize(
    "settings, lower_calls, upper_calls",
    [
        ({"lr": 0.1, "delta": 1e-3}, 7, 1),
        ({"lr": 0.1}, 7, 1),
        ({}, 8, 1),
        ({"lr": 0.1, "symmetric": True}, 13, 1),
        ({"lr": 0.1, "linearised": False}, 7, 8),
    ],
    ids=["given", "delta chosen", "all chosen", "symmetric", "upper loss"],
)
def test_each_setting_costs_what_it_says(direct_problem, settings, lower_calls, upper_calls):
    p = direct_problem
    upper, lower = count(p.upper_loss), count(p.lower_loss)
    method = f2sa(6, rtol=0.0, **settings)
    result = hypergradient(upper, lower, (p.upper,), (p.lower,), method=method)
    assert lower.calls == lower_calls
    assert upper.calls == upper_calls  # one of them for the cotangent
    assert result.info.num_gradients == lower_calls + upper_calls - 1
    assert result.info.num_products == 0


# Arithmetic and randomness.


def test_the_chosen_delta_suits_single_precision(logistic_problem):
    p = logistic_problem

    def single(loss):
        return lambda x, y: loss(tuple(t.double() for t in x), tuple(t.double() for t in y)).float()

    at = (single(p.upper_loss), single(p.lower_loss), (p.upper.float(),), (p.lower.float(),))
    exact = hypergradient(*at, method=cg(60)).grads[0]
    assert relative_error(hypergradient(*at, method=f2sa(60)).grads[0], exact) < 1e-2
    assert (
        relative_error(hypergradient(*at, method=f2sa(60, symmetric=True)).grads[0], exact) < 1e-2
    )


def test_all_steps_see_the_same_dropout_masks():
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(40, 3, generator=generator, dtype=torch.float64)

    def lower(x, y):
        masked = torch.nn.functional.dropout(data, 0.5)
        return 0.5 * ((masked @ y[0] - 1) ** 2).mean() + 0.5 * (x[0].exp() * y[0] ** 2).sum()

    def upper(x, y):
        return (y[0] ** 3).sum()

    x, y = (torch.zeros(3, dtype=torch.float64),), (ONES,)
    torch.manual_seed(7)
    exact = hypergradient(upper, lower, x, y, method=dense()).grads[0]
    torch.manual_seed(7)
    value = hypergradient(upper, lower, x, y, method=f2sa(100)).grads[0]
    assert relative_error(value, exact) < 1e-5


# In a graph.


def received(problems):
    """The gradient that the top's optimizer receives in the first round."""
    parameter, seen = problems[0].parameters[0], []
    problems[0].optimizer.register_step_pre_hook(lambda *_: seen.append(parameter.grad.clone()))
    record = Engine(ProblemGraph(problems)).run(1)
    return seen[0], record


@pytest.mark.parametrize("linearised", [True, False])
@pytest.mark.parametrize(
    "reads",
    [
        {"x": ["z"], "y": ["x"], "z": ["y"]},
        {"x": ["y", "z"], "y": ["x"], "z": ["x", "y"]},
        {"x": ["a", "b", "z"], "a": ["x"], "b": ["x"], "z": ["a", "b"]},
    ],
    ids=["chain", "skip connection", "diamond"],
)
def test_cotangents_of_deeper_graphs_are_answered_in_full(reads, linearised):
    nested = NestedQuadratics(reads)
    values, reference = nested.solve()
    modules = {k: Vector(v.clone()) for k, v in values.items()}
    method = f2sa(100, rtol=1e-9, linearised=linearised)
    problems = [
        Problem(
            k,
            lambda batch, k=k: nested.loss(k, {n: m.value for n, m in modules.items()}),
            modules[k],
            torch.optim.SGD(modules[k].parameters(), lr=0.0),
            [None],
            method=method,
        )
        for k in nested.names
    ]
    value, _ = received(problems)
    assert relative_error(value, reference) < 1e-6


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weight_decay_sign_and_accumulation_enter_as_in_the_exact_solve(maximize, symmetric):
    sign = -1 if maximize else 1
    scales = [torch.tensor(s, dtype=torch.float64) for s in (0.5, 1.0, 2.0, 3.0)]

    def value(method):
        upper, lower = Vector(torch.ones(2, dtype=torch.float64)), Vector(ONES.clone())

        def lower_loss(scale):
            y = lower.value
            return sign * (0.5 * scale * y @ H @ y + y @ C @ upper.value.sin())

        settings = {"weight_decay": 0.3, "maximize": maximize}
        return received(
            [
                Problem(
                    "upper",
                    lambda _: (lower.value**2).sum(),
                    upper,
                    torch.optim.SGD(upper.parameters(), lr=0.1),
                    [None],
                ),
                Problem(
                    "lower",
                    lower_loss,
                    lower,
                    torch.optim.SGD(lower.parameters(), lr=0.1, **settings),
                    scales,
                    method=method,
                    accumulate=2,
                    steps=2,
                ),
            ]
        )[0]

    method = f2sa(100, symmetric=symmetric, rtol=1e-9)
    assert relative_error(value(method), value(dense())) < 1e-6


# Misuse.


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"num_steps": 0}, "num_steps"),
        ({"delta": 0.0}, "delta"),
        ({"delta": math.inf}, "delta"),
        ({"lr": -1.0}, "lr"),
        ({"damping": -1.0}, "damping"),
        ({"rtol": math.nan}, "rtol"),
    ],
)
def test_settings_out_of_range_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        f2sa(**settings)


def test_a_lower_loss_without_upper_parameters_is_an_error():
    with pytest.raises(RuntimeError, match="does not depend on any upper parameter"):
        hypergradient(
            lambda x, y: y[0].sum() + x[0].sum(),
            lambda x, y: (y[0] ** 2).sum(),
            (ONES,),
            (ONES,),
            method=f2sa(3),
        )


def test_the_upper_loss_is_asked_for_where_the_context_has_none():
    point = Point((ONES,), (ONES,))
    context = Context(LowerObjective(()), after=point, before=point)
    with pytest.raises(ValueError, match="linearised=True"):
        f2sa(linearised=False).response(context, (ONES,), None)
