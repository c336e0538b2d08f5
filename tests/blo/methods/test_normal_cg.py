"""Conjugate gradients on the normal equations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import System, system

from blo import CG, MINRES, NormalCG, Status


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 5))
def test_iterates_are_those_of_cg_on_the_squared_matrix(seed, k):
    problem = system("indefinite", 7, seed, condition=5.0)
    H, b = problem.matrix, problem.rhs
    squared = System(H @ H, H @ b)
    expected = CG(k)(squared.products(), (squared.rhs,)).value[0]
    solution = NormalCG(2 * k)(problem.products(), (problem.rhs,))
    torch.testing.assert_close(solution.value[0], expected, rtol=1e-6, atol=1e-8)
    assert solution.num_products == 2 * k


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_residual_never_grows_and_is_never_below_that_of_minres(seed):
    problem = system("indefinite", 12, seed)
    before = 1.0
    for k in range(2, 13, 2):
        residual = NormalCG(k)(problem.products(), (problem.rhs,)).residual
        best = MINRES(k)(problem.products(), (problem.rhs,)).residual
        assert best - 1e-12 <= residual <= before + 1e-12
        before = residual


def test_an_odd_product_is_left_alone():
    problem = system("definite", 6, seed=0)
    three = NormalCG(3)(problem.products(), (problem.rhs,))
    two = NormalCG(2)(problem.products(), (problem.rhs,))
    assert three.num_products == 2
    assert torch.equal(three.value[0], two.value[0])


def test_a_matrix_of_zeros_gives_zeros_that_did_not_converge():
    solution = NormalCG(6)(lambda v: (0 * v[0],), (torch.ones(3),))
    assert solution[1:4] == (Status.TRUNCATED, 1, 1.0)
    assert torch.equal(solution.value[0], torch.zeros(3))


def test_damping_shifts_before_it_squares():
    problem = system("indefinite", 5, seed=1)
    shifted = System(problem.matrix + 2 * torch.eye(5, dtype=torch.float64), problem.rhs)
    solution = NormalCG(60, damping=2.0)(problem.products(), (problem.rhs,))
    assert problem.residual(solution.value) > 1e-3
    assert shifted.residual(solution.value) == pytest.approx(0.0, abs=1e-12)
