"""MINRES on what conjugate gradients cannot do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from systems import Products, System, normal, symmetric, system

from blo import CG, GMRES, MINRES, Nystrom, Status, hypergradient, minres


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_residual_never_grows_on_an_indefinite_system(seed):
    problem = system("indefinite", 12, seed, condition=100.0)
    before = 1.0
    for k in range(1, 13):
        value = MINRES(k, rtol=0.0)(problem.products(), (problem.rhs,)).value
        assert problem.residual(value) <= before + 1e-12
        before = problem.residual(value)


def test_eigenvalues_of_both_signs_are_solved_where_cg_gives_up():
    problem = system("indefinite", 12, seed=1)
    assert CG(50)(problem.products(), (problem.rhs,)).status is Status.INDEFINITE
    solution = MINRES(50)(problem.products(), (problem.rhs,))
    assert solution.status is Status.CONVERGED
    assert problem.error(solution.value) < 1e-10


def test_a_hessian_of_zero_trace_needs_its_second_product():
    # The Hessian of LoRA at B = 0: no curvature along either factor alone.
    problem = System(
        torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
    )
    first = MINRES(1)(problem.products(), (problem.rhs,))
    assert first[1:4] == (Status.TRUNCATED, 1, 1.0)
    second = MINRES(2)(problem.products(), (problem.rhs,))
    torch.testing.assert_close(second.value[0], torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert second.status is Status.CONVERGED


def test_a_matrix_of_zeros_gives_zeros_that_did_not_converge():
    solution = MINRES(5)(lambda v: (0 * v[0],), (torch.ones(3),))
    assert solution[1:4] == (Status.TRUNCATED, 1, 1.0)
    assert torch.equal(solution.value[0], torch.zeros(3))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_least_squares_solution_is_reached_in_the_krylov_space(seed):
    # To a hundredth: what rounding may cost before a direction is taken for singular.
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, -3.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    matrix = symmetric(values, generator)
    rhs = normal(generator, 5)
    solution = MINRES(100)(Products(matrix), (rhs,))
    r = rhs - matrix @ solution.value[0]
    assert float((matrix @ r).norm()) < 1e-2 * float(rhs.norm())
    assert solution.status is Status.TRUNCATED


@pytest.mark.parametrize("gaussian", [False, True])
def test_a_preconditioner_saves_products_on_an_indefinite_system(gaussian):
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.logspace(6, 3, 8), torch.linspace(-2.0, -1.0, 52)]).double()
    problem = System(symmetric(values, generator), normal(generator, 60))
    plain = MINRES(300, rtol=1e-8)(problem.products(), (problem.rhs,))
    preconditioner = Nystrom(10, gaussian=gaussian)
    solver = MINRES(300, rtol=1e-8, preconditioner=preconditioner)
    solution = solver(problem.products(), (problem.rhs,))
    assert problem.residual(solution.value) < 2e-8
    assert solution.num_products <= 35 < 50 < plain.num_products


class Negative:
    """A preconditioner that is not positive definite."""

    num_products = 0

    def inverse(self, matvec, like, damping):
        return lambda r: tuple(-t for t in r)


@pytest.mark.parametrize("solver", [CG, MINRES])
def test_a_preconditioner_that_is_not_positive_definite_ends_the_solve(solver):
    problem = system("definite", 4, seed=0)
    solution = solver(10, preconditioner=Negative())(problem.products(), (problem.rhs,))
    assert solution[1:4] == (Status.INDEFINITE, 0, 1.0)


def test_lost_orthogonality_delays_it_and_not_gmres():
    # Lanczos vectors lose orthogonality when the first eigenvalue has converged.
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.tensor([1e6, -1e5, 1e4]), torch.linspace(1.0, 5.0, 27)]).double()
    problem = System(symmetric(values, generator), normal(generator, 30))
    minres_products = MINRES(200, rtol=1e-9)(problem.products(), (problem.rhs,)).num_products
    gmres_products = GMRES(200, rtol=1e-9)(problem.products(), (problem.rhs,)).num_products
    assert gmres_products <= 30 < minres_products


def test_the_hypergradient_of_a_saddle_is_that_of_its_stationary_point():
    # g = (y0^2 - y1^2)/2 - x (y0 + y1): stationary at y = (x, -x), where g_yy has both signs.
    def g(x, y):
        return 0.5 * (y[0][0] ** 2 - y[0][1] ** 2) - x[0] * y[0].sum()

    def f(x, y):
        return (y[0] * torch.tensor([1.0, 3.0], dtype=torch.float64)).sum()

    x = torch.tensor(0.7, dtype=torch.float64)
    result = hypergradient(f, g, (x,), (torch.stack([x, -x]),), method=minres(5))
    assert float(result.grads[0]) == pytest.approx(1.0 - 3.0)
    assert result.info.status is Status.CONVERGED
    assert not math.isnan(result.info.residual)
