"""The golden numbers: hypergradients known in closed form or to many digits."""

import pytest
import torch
from oracles import (
    TwoLevel,
    finite_difference,
    logistic,
    newton,
    relative_error,
    ridge,
    scalar_problem,
)

from blo import Status, cg, darts, dense, hypergradient, neumann, t1t2


def value(problem: TwoLevel, method) -> torch.Tensor:
    return hypergradient(
        problem.upper_loss, problem.lower_loss, (problem.upper,), (problem.lower,), method=method
    ).grads[0]


@pytest.mark.parametrize("a", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("method", [dense(), cg(5)], ids=["dense", "cg"])
def test_scalar_problem_has_its_closed_form_for_any_curvature(a, method):
    problem = scalar_problem(a=a)
    assert abs(float(value(problem, method)) - float(1.1 * problem.upper - 1)) < 1e-12


def test_scalar_problem_is_solved_by_descent_along_its_hypergradient():
    problem = scalar_problem()
    x = problem.upper
    for _ in range(200):
        x = x - 0.5 * hypergradient(problem.upper_loss, problem.lower_loss, (x,), (x,)).grads[0]
    assert abs(float(x) - 1 / 1.1) < 1e-12


@pytest.mark.parametrize("method", [dense(), cg(60)], ids=["dense", "cg"])
def test_ridge_reproduces_the_golden_numbers(method):
    problem = ridge()
    result = hypergradient(
        problem.upper_loss, problem.lower_loss, (problem.upper,), (problem.lower,), method=method
    )
    (h,) = result.grads
    assert float(result.upper_loss) == pytest.approx(0.2348424798, abs=1e-10)
    assert float(h.norm()) == pytest.approx(0.0025971470, abs=1e-10)
    assert h[:3].tolist() == pytest.approx([-7.11e-06, -2.9999e-04, -6.4385e-04], abs=5e-9)
    assert float((h - problem.hypergradient).abs().max()) < 1e-8
    assert result.info.status is Status.CONVERGED


def test_ridge_agrees_with_differences_through_the_solved_problem():
    problem = ridge()

    def reduced(x):
        w = newton(lambda w: problem.lower_loss((x,), (w,)), problem.lower, steps=2)
        return problem.upper_loss((x,), (w,))

    reference = finite_difference(reduced, problem.upper, radius=1e-4)
    assert float((value(problem, dense()) - reference).abs().max()) < 1e-8


@pytest.mark.parametrize("method", [dense(), cg(60)], ids=["dense", "cg"])
def test_logistic_reproduces_the_golden_numbers(method):
    problem = logistic()
    result = hypergradient(
        problem.upper_loss, problem.lower_loss, (problem.upper,), (problem.lower,), method=method
    )
    (h,) = result.grads
    assert float(result.upper_loss) == pytest.approx(0.1456982162, abs=1e-10)
    assert float(h.norm()) == pytest.approx(0.0146809432, abs=1e-10)
    assert float(h[0]) == pytest.approx(0.0014811367, abs=1e-10)
    assert float((h - problem.hypergradient).abs().max()) < 1e-8


GOLDEN = [
    *[
        ("neumann", k, e)
        for k, e in [(1, 0.54), (5, 0.24), (10, 0.11), (20, 2.8e-2), (50, 6.1e-4), (100, 1.4e-6)]
    ],
    *[("cg", k, e) for k, e in [(1, 0.45), (5, 1.0e-2), (10, 2.7e-6), (20, 1e-13)]],
    ("identity", 0, 0.864),
]


@pytest.mark.parametrize("name, k, expected", GOLDEN)
def test_logistic_accuracy_is_that_of_theory_at_every_number_of_products(name, k, expected):
    problem = logistic()
    eigenvalues = torch.linalg.eigvalsh(problem.hessian)
    assert float(eigenvalues[-1] / eigenvalues[0]) == pytest.approx(9.14, abs=0.01)
    method = {
        "neumann": lambda: neumann(k, scale=1 / float(eigenvalues[-1])),
        "cg": lambda: cg(k),
        "identity": lambda: t1t2(1.0),
    }[name]()
    error = relative_error(value(problem, method), problem.hypergradient)
    assert max(error, 1e-10) == pytest.approx(max(expected, 1e-10), rel=0.05)


def test_neumann_finds_a_scale_as_good_as_the_largest_eigenvalue():
    problem = logistic()
    known = neumann(20, scale=1 / float(torch.linalg.eigvalsh(problem.hessian)[-1]))
    found = relative_error(value(problem, neumann(20)), problem.hypergradient)
    assert found < 1.1 * relative_error(value(problem, known), problem.hypergradient)


def test_darts_equals_t1t2_up_to_the_error_of_the_difference():
    problem = logistic()
    error = relative_error(value(problem, darts(0.7)), value(problem, t1t2(0.7)))
    assert error < 1e-7


def test_direct_gradient_is_kept_and_reported():
    f = lambda x, y: (x[0] ** 2).sum() + (y[0] * x[0]).sum()
    g = lambda x, y: ((y[0] - 2 * x[0]) ** 2).sum()
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    result = hypergradient(f, g, (x,), (2 * x,), method=dense())
    torch.testing.assert_close(result.direct, (4 * x,))
    torch.testing.assert_close(result.grads, (6 * x,))  # F = x^2 + 2 x^2


def test_arguments_and_their_gradients_are_left_alone():
    problem = scalar_problem()
    x = problem.upper.clone().requires_grad_()
    y = problem.lower.clone().requires_grad_()
    hypergradient(problem.upper_loss, problem.lower_loss, (x,), (y,))
    assert x.grad is None
    assert y.grad is None
    assert torch.equal(x, problem.upper)


@pytest.mark.parametrize("method", [t1t2(), cg(3), dense(), neumann(3)])
def test_a_lower_loss_that_ignores_the_upper_variables_is_an_error_not_a_zero(method):
    y = (torch.tensor([1.0]),)
    with pytest.raises(RuntimeError, match="no hypergradient can reach"):
        hypergradient(
            lambda x, y: (y[0] ** 2).sum() + (x[0] ** 2).sum(),
            lambda x, y: (y[0] ** 2).sum() + (x[0] ** 2).sum(),
            y,
            y,
            method=method,
        )


def test_bad_arguments_are_named():
    x = torch.tensor([1.0])
    square = lambda x, y: ((x[0] - y[0]) ** 2).sum()
    with pytest.raises(TypeError, match="upper must be a sequence of tensors"):
        hypergradient(square, square, x, (x,))
    with pytest.raises(ValueError, match="lower must hold at least one tensor"):
        hypergradient(square, square, (x,), ())
    with pytest.raises(TypeError, match=r"lower\[0\] must be a floating-point tensor"):
        hypergradient(square, square, (x,), (torch.tensor([1]),))
    with pytest.raises(ValueError, match="lower_loss must return a scalar"):
        hypergradient(square, lambda x, y: (x[0] - y[0]).expand(2), (x,), (x,))
    with pytest.raises(ValueError, match="upper_loss must be finite"):
        hypergradient(lambda x, y: (x[0] / 0).sum(), square, (x,), (x,))
