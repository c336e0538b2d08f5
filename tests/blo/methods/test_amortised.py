"""SOBA and AmIGO: one warm-started step a round."""

import math

import pytest
import torch
from oracles import Vector, logistic, relative_error, ridge, scalar_problem

from blo import (
    Amortised,
    Engine,
    Problem,
    ProblemGraph,
    Status,
    dense,
    hypergradient,
    soba,
    t1t2,
)


def rounds(problem, method, count):
    """The results of some calls, each with the state of the one before."""
    results, state = [], None
    for _ in range(count):
        result = hypergradient(
            problem.upper_loss,
            problem.lower_loss,
            (problem.upper,),
            (problem.lower,),
            method=method,
            state=state,
        )
        state = result.state
        results.append(result)
    return results


def error(problem, result):
    return relative_error(result.grads[0], problem.hypergradient)


def test_repeated_rounds_converge_to_the_exact_hypergradient_at_the_rate_of_the_paper():
    problem = logistic()
    values = torch.linalg.eigvalsh(problem.hessian)
    step = 1 / float(values[-1])
    rate = 1 - step * float(values[0])
    results = rounds(problem, soba(step), 160)
    errors = [error(problem, r) for r in results]
    assert errors[0] > 0.5
    assert all(e < 2 * rate**k for k, e in enumerate(errors, start=1))
    assert errors[-1] < 1e-7


def test_the_first_round_is_the_one_step_method():
    problem = logistic()
    (first,) = rounds(problem, soba(0.3), 1)
    one_step = hypergradient(
        problem.upper_loss, problem.lower_loss, (problem.upper,), (problem.lower,), method=t1t2(0.3)
    )
    torch.testing.assert_close(first.grads, one_step.grads)
    assert first.info.residual == 1.0


def test_state_follows_its_recursion():
    problem = logistic()
    H = problem.hessian
    (c,) = torch.autograd.functional.jacobian(
        lambda w: problem.upper_loss((problem.upper,), (w,)), (problem.lower,)
    )
    v = torch.zeros_like(c)
    for result in rounds(problem, soba(0.3, damping=0.1), 6):
        v_before, v = v, v - 0.3 * (H @ v + 0.1 * v - c)
        torch.testing.assert_close(result.state, (v,))
        residual = (c - H @ v_before - 0.1 * v_before).norm() / c.norm()
        assert result.info.residual == pytest.approx(float(residual))


@pytest.mark.parametrize("num_steps", [2, 5])
def test_several_steps_a_round_are_as_many_rounds_of_one(num_steps):
    problem = logistic()
    several = rounds(problem, soba(0.3, num_steps=num_steps), 3)[-1]
    single = rounds(problem, soba(0.3), 3 * num_steps)[-1]
    torch.testing.assert_close(several.grads, single.grads)


def test_cost_is_one_hessian_product_and_one_mixed_product_a_round():
    first, second = rounds(logistic(), soba(0.3), 2)
    assert (first.info.num_gradients, first.info.num_products) == (1, 1)  # from zero: none needed
    assert (second.info.num_gradients, second.info.num_products) == (1, 2)


def test_a_step_too_long_is_cut_and_reported_and_does_not_grow():
    problem = logistic()
    largest = float(torch.linalg.eigvalsh(problem.hessian)[-1])
    results = rounds(problem, soba(5 / largest), 60)
    assert any(r.info.status is Status.DIVERGED for r in results)
    exact = torch.linalg.solve(
        problem.hessian,
        torch.autograd.functional.jacobian(
            lambda w: problem.upper_loss((problem.upper,), (w,)), problem.lower
        ),
    )
    assert max(float(r.state[0].norm()) for r in results) < 20 * float(exact.norm())


def test_negative_curvature_begins_anew_and_is_reported():
    def g(x, y):
        return -0.5 * (y[0] ** 2).sum() + (x[0] * y[0]).sum()

    def f(x, y):
        return y[0].sum()

    x = torch.ones(2, dtype=torch.float64)
    args = (f, g, (x,), (x,))
    state = (torch.full((2,), 9.0, dtype=torch.float64),)
    result = hypergradient(*args, method=soba(0.1), state=state)
    assert result.info.status is Status.INDEFINITE
    torch.testing.assert_close(result.state[0], torch.full_like(x, 0.1))  # step * c


def test_a_product_that_is_not_a_number_begins_anew():
    problem = scalar_problem()
    args = (problem.upper_loss, problem.lower_loss, (problem.upper,), (problem.lower,))
    state = (torch.full_like(problem.lower, math.nan),)
    result = hypergradient(*args, method=soba(0.1), state=state)
    assert result.info.status is Status.DIVERGED
    assert bool(torch.isfinite(result.grads[0]).all())


def test_a_cotangent_of_zeros_gives_zeros():
    problem = scalar_problem()
    result = hypergradient(
        lambda x, y: (x[0] ** 2).sum() + 0 * y[0].sum(),
        problem.lower_loss,
        (problem.upper,),
        (problem.lower,),
        method=soba(0.1),
    )
    assert torch.equal(result.grads[0], 2 * problem.upper)


def quadratic_graph(method, lr=0.2, groups=False):
    """y* = x (elementwise), f = <c, y>: dF/dx = c; the levels stand still at lr 0."""
    x, y = (Vector(torch.tensor([1.0, 2.0], dtype=torch.float64)) for _ in range(2))
    other = Vector(torch.tensor([0.5], dtype=torch.float64))
    curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def lower_loss(batch):
        own = 0.5 * (curvature * (y.value - x.value) ** 2).sum()
        return own + 0.5 * ((other.value - x.value[:1]) ** 2).sum()

    parameters = [{"params": [y.value]}, {"params": [other.value], "lr": 0.5 * lr}]
    lower_optimizer = torch.optim.SGD(parameters, lr=lr)
    upper_optimizer = torch.optim.SGD(x.parameters(), lr=0.0)
    seen = []
    upper_optimizer.register_step_pre_hook(lambda *_: seen.append(x.value.grad.clone()))
    graph = ProblemGraph(
        [
            Problem(
                "upper",
                lambda batch: 3 * y.value[0] - y.value[1] + 2 * other.value.sum(),
                x,
                upper_optimizer,
                [None],
            ),
            Problem("lower", lower_loss, [y, other], lower_optimizer, [None], method=method),
        ]
    )
    return graph, seen


def test_rounds_of_an_engine_converge_with_the_learning_rates_of_the_groups():
    graph, seen = quadratic_graph(soba())
    engine = Engine(graph)
    record = engine.run(150)
    expected = torch.tensor([5.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(seen[-1], expected)
    # The first round: v = lr * c with each group's rate, g_xy = -curvature.
    first = torch.tensor([0.2 * 3 + 0.1 * 2, -0.2 * 4], dtype=torch.float64)
    torch.testing.assert_close(seen[0], first)
    assert record.responses["upper <- lower"].scale == (0.2, 0.1)


def test_the_state_of_an_engine_resumes_the_iteration():
    graph, seen = quadratic_graph(soba(0.2))
    engine = Engine(graph)
    engine.run(4)
    saved = engine.state_dict()
    engine.run(2)
    again, seen_again = quadratic_graph(soba(0.2))
    resumed = Engine(again)
    resumed.load_state_dict(saved)
    resumed.run(2)
    assert torch.equal(seen_again[-1], seen[-1])


def test_without_an_optimizer_a_step_must_be_given():
    problem = scalar_problem()
    with pytest.raises(ValueError, match=r"no optimizer is known here; give a number below 2"):
        rounds(problem, soba(), 1)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"step": 0.0}, "step must be positive and finite, or None to take the lower"),
        ({"step": math.inf}, "step must be positive and finite"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"damping": -1.0}, "damping must be finite and at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Amortised(**settings)


def test_the_limit_is_that_of_the_dense_solve():
    problem = ridge()
    reference = hypergradient(
        problem.upper_loss, problem.lower_loss, (problem.upper,), (problem.lower,), method=dense()
    )
    limit = rounds(problem, soba(0.3, num_steps=50), 20)[-1]
    assert relative_error(limit.grads[0], reference.grads[0]) < 1e-10
