"""BiCGSTAB: its recurrences, and where they break down."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import System, system, systems

from blo import BiCGSTAB, Status


def textbook(problem: System, steps: int) -> torch.Tensor:
    """The iterate after some steps, as in van der Vorst's paper."""
    A, b = problem.matrix, problem.rhs
    x, r = torch.zeros_like(b), b
    rho = alpha = omega = 1.0
    v = p = torch.zeros_like(b)
    for _ in range(steps):
        rho_before, rho = rho, b @ r
        beta = (rho / rho_before) * (alpha / omega)
        p = r + beta * (p - omega * v)
        v = A @ p
        alpha = rho / (b @ v)
        s = r - alpha * v
        t = A @ s
        omega = (t @ s) / (t @ t)
        x = x + alpha * p + omega * s
        r = s - omega * t
    return x


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", ["definite", "general"])
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1))
def test_iterates_are_those_of_the_paper(kind, steps, seed):
    problem = system(kind, 8, seed, condition=4.0)
    solution = BiCGSTAB(2 * steps)(problem.products(), (problem.rhs,))
    expected = textbook(problem, steps)
    if problem.residual((expected,)) == pytest.approx(solution.residual, rel=1e-6):
        torch.testing.assert_close(solution.value[0], expected, rtol=1e-6, atol=1e-9)
    else:  # an iterate before had a smaller residual
        assert solution.residual < problem.residual((expected,))


@settings(max_examples=10)
@given(problem=systems("general"))
def test_systems_of_n_unknowns_need_two_products_each(problem):
    solution = BiCGSTAB(2 * problem.size)(problem.products(), (problem.rhs,))
    assert problem.error(solution.value) < 1e-5


def test_an_odd_product_is_used_for_half_an_iteration():
    problem = system("definite", 6, seed=0)
    one = BiCGSTAB(1)(problem.products(), (problem.rhs,))
    b, Hb = problem.rhs, problem.matrix @ problem.rhs
    torch.testing.assert_close(one.value[0], (b @ b) / (b @ Hb) * b)
    assert one.num_products == 1


def test_a_right_hand_side_orthogonal_to_its_product_is_no_obstacle():
    problem = System(
        torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
    )
    solution = BiCGSTAB(10)(problem.products(), (problem.rhs,))
    assert solution.status is Status.CONVERGED
    assert problem.error(solution.value) < 1e-14


def test_a_skew_symmetric_matrix_ends_truncated_with_the_best_iterate():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    problem = System(turn, torch.tensor([1.0, 2.0], dtype=torch.float64))
    solution = BiCGSTAB(50)(problem.products(), (problem.rhs,))
    assert solution.residual == pytest.approx(problem.residual(solution.value))
    assert solution.residual <= 1.0
    assert bool(torch.isfinite(solution.value[0]).all())


@settings(max_examples=10)
@given(problem=systems("indefinite", min_size=4))
def test_the_iterate_of_smallest_residual_is_returned(problem):
    residuals = [
        BiCGSTAB(k, rtol=1e-8)(problem.products(), (problem.rhs,)).residual for k in range(1, 16)
    ]
    assert all(b <= a for a, b in itertools.pairwise(residuals))
