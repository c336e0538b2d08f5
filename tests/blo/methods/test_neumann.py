"""The Neumann series: its sum, its scale, its divergence."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from systems import System, system, systems

from blo import Neumann, Status

few = settings(max_examples=10)


def series(problem: System, step: float, terms: int) -> torch.Tensor:
    total = term = problem.rhs
    for _ in range(terms):
        term = term - step * (problem.matrix @ term)
        total = total + term
    return step * total


@few
@given(problem=systems("definite"), k=st.integers(0, 12))
def test_neumann_is_the_sum_of_its_powers(problem, k):
    step = 1.5 / float(torch.linalg.eigvalsh(problem.matrix)[-1])
    solution = Neumann(k, scale=step, rtol=0.0)(problem.products(), (problem.rhs,))
    torch.testing.assert_close(solution.value[0], series(problem, step, k))
    assert solution.num_products == k
    assert solution.scale == step


@few
@given(problem=systems("definite"), k=st.integers(1, 12), m=st.integers(1, 6))
def test_neumann_finds_its_scale_within_its_products(problem, k, m):
    matvec = problem.products()
    solver = Neumann(k, num_power_iterations=m, rtol=0.0)
    solution = solver(matvec, (problem.rhs,))
    u, bound = problem.rhs, 0.0
    for _ in range(min(k, m)):
        u = problem.matrix @ (u / u.norm())
        bound = max(bound, float(u.norm()))
    if solution.status is Status.TRUNCATED and solution.scale == pytest.approx(1 / bound):
        assert matvec.count == k
        expected = series(problem, solution.scale, k)
        torch.testing.assert_close(solution.value[0], expected, rtol=1e-9, atol=1e-12)


def test_neumann_continues_with_a_smaller_scale_where_a_larger_curvature_appears():
    # The power iterations do not see the eigenvalue 30 yet, and 30 times their scale exceeds 2.
    values = torch.tensor([0.5, 1.0, 30.0], dtype=torch.float64)
    rhs = torch.tensor([1.0, 1.0, 1e-10], dtype=torch.float64)
    problem = System(torch.diag(values), rhs)
    solution = Neumann(4000)(problem.products(), (rhs,))
    assert solution.status is Status.CONVERGED
    assert solution.scale == pytest.approx(1 / 30, rel=0.1)
    assert problem.error(solution.value) < 1e-12


def test_neumann_sees_the_largest_curvature_that_its_right_hand_side_excites():
    problem = system("definite", 7, seed=5)
    largest = float(torch.linalg.eigvalsh(problem.matrix)[-1])
    solution = Neumann(20)(problem.products(), (problem.rhs,))
    assert 1 / largest <= solution.scale < 1.5 / largest


@few
@given(problem=systems("definite", min_size=3), excess=st.floats(1.1, 3.0))
def test_neumann_stops_before_its_terms_grow(problem, excess):
    step = 2 * excess / float(torch.linalg.eigvalsh(problem.matrix)[-1])
    solution = Neumann(400, scale=step)(problem.products(), (problem.rhs,))
    assert solution.status is Status.DIVERGED
    terms = solution.num_products - 1
    torch.testing.assert_close(solution.value[0], series(problem, step, terms))
    assert solution.residual == pytest.approx(problem.residual(solution.value))


@few
@given(problem=systems("indefinite", min_size=4))
def test_neumann_diverges_where_an_eigenvalue_is_negative(problem):
    assume(float(torch.linalg.eigvalsh(problem.matrix)[0]) < 0)
    solution = Neumann(2000)(problem.products(), (problem.rhs,))
    assert solution.status is Status.DIVERGED
    assert solution.residual == pytest.approx(problem.residual(solution.value), rel=1e-6)


def test_neumann_continues_a_warm_start():
    problem = system("definite", 6, seed=6)
    step = 1 / float(torch.linalg.eigvalsh(problem.matrix)[-1])
    first = Neumann(4, scale=step)(problem.products(), (problem.rhs,))
    # The residual takes a product, and begins the series that the first one ended.
    second = Neumann(6, scale=step)(problem.products(), (problem.rhs,), first.value)
    torch.testing.assert_close(second.value[0], series(problem, step, 10))
