"""GMRES: matrices that are not symmetric, and restarts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import System, krylov, normal, system

from blo import GMRES, Status


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1))
def test_iterates_of_a_general_matrix_are_the_best_in_their_krylov_space(steps, seed):
    problem = system("general", 6, seed)
    V = krylov(problem.matrix, problem.rhs, steps)
    best = V @ torch.linalg.lstsq(problem.matrix @ V, problem.rhs[:, None]).solution[:, 0]
    value = GMRES(steps)(problem.products(), (problem.rhs,)).value[0]
    torch.testing.assert_close(value, best)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), restart=st.integers(2, 6))
def test_restarts_converge_on_a_definite_matrix_and_take_no_product(seed, restart):
    problem = system("definite", 7, seed)
    matvec = problem.products()
    solution = GMRES(2000, restart=restart)(matvec, (problem.rhs,))
    assert problem.error(solution.value) < 1e-10
    assert solution.num_products == matvec.count
    # As many products as unrestarted cycles: the residual of a cycle is known without one.
    cycle = GMRES(restart)(problem.products(), (problem.rhs,))
    second = GMRES(2 * restart, restart=restart)(problem.products(), (problem.rhs,))
    rest = System(problem.matrix, problem.rhs - problem.matrix @ cycle.value[0])
    correction = GMRES(restart)(rest.products(), (rest.rhs,)).value[0]
    if cycle.status is Status.TRUNCATED:
        torch.testing.assert_close(second.value[0], cycle.value[0] + correction)


def test_a_cyclic_shift_stagnates_until_its_last_product():
    n = 6
    matrix = torch.roll(torch.eye(n, dtype=torch.float64), 1, 0)
    rhs = torch.zeros(n, dtype=torch.float64)
    rhs[0] = 1.0
    problem = System(matrix, rhs)
    assert GMRES(n - 1)(problem.products(), (rhs,)).residual == pytest.approx(1.0)
    assert GMRES(n)(problem.products(), (rhs,)).residual < 1e-14
    # Restarted before that it cannot move, and stops.
    short = GMRES(100, restart=3)(problem.products(), (rhs,))
    assert (short.status, short.num_products) == (Status.TRUNCATED, 3)
    assert torch.equal(short.value[0], torch.zeros(n, dtype=torch.float64))


def test_ill_conditioned_systems_reach_the_accuracy_of_a_direct_solve():
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(normal(generator, 20, 20))
    v, _ = torch.linalg.qr(normal(generator, 20, 20))
    matrix = u @ torch.diag(torch.logspace(0, -10, 20, dtype=torch.float64)) @ v.T
    problem = System(matrix, matrix @ normal(generator, 20))
    solution = GMRES(40)(problem.products(), (problem.rhs,))
    assert problem.residual(solution.value) < 1e-14
    assert solution.num_products <= 40
