"""The Nystrom approximation against its dense formula."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import logistic, relative_error
from systems import Products, System, normal, symmetric, system, systems

from blo import CG, Nystrom, Status, hypergradient, nystrom

few = settings(max_examples=10)


def columns(size: int, rank: int, seed: int) -> list[int]:
    """The columns that a seed stands for."""
    return random.Random(seed).sample(range(size), rank)


def formula(problem: System, rank: int, rho: float, seed: int = 0) -> torch.Tensor:
    """(H_k + rho I)^{-1} b with H_k = C W^+ C^T, C columns of H and W rows of C."""
    index = columns(problem.size, rank, seed)
    C = problem.matrix[:, index]
    W = C[index]
    H_k = C @ torch.linalg.pinv(W, hermitian=True) @ C.T
    shifted = H_k + rho * torch.eye(problem.size, dtype=torch.float64)
    return torch.linalg.solve(shifted, problem.rhs)


@few
@given(problem=systems("definite", min_size=3), data=st.data(), rho=st.sampled_from([1e-2, 1.0]))
def test_value_is_that_of_the_formula_in_the_paper(problem, data, rho):
    rank = data.draw(st.integers(1, problem.size))
    matvec = problem.products()
    solution = Nystrom(rank, rho)(matvec, (problem.rhs,))
    torch.testing.assert_close(solution.value[0], formula(problem, rank, rho))
    assert solution.num_products == matvec.count == rank
    assert solution.status is Status.TRUNCATED
    assert math.isnan(solution.residual)


@pytest.mark.parametrize("gaussian", [False, True])
@few
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(3, 9))
def test_a_matrix_of_low_rank_is_inverted_exactly(gaussian, seed, rank):
    generator = torch.Generator().manual_seed(seed)
    factor = normal(generator, 9, 3)
    problem = System(factor @ factor.T, normal(generator, 9))
    solution = Nystrom(rank, 0.1, gaussian=gaussian)(problem.products(), (problem.rhs,))
    shifted = problem.matrix + 0.1 * torch.eye(9, dtype=torch.float64)
    expected = torch.linalg.solve(shifted, problem.rhs)
    torch.testing.assert_close(solution.value[0], expected, rtol=1e-6, atol=1e-8)


@few
@given(problem=systems("definite"), gaussian=st.booleans())
def test_without_rho_all_columns_give_the_solution(problem, gaussian):
    solution = Nystrom(problem.size, gaussian=gaussian)(problem.products(), (problem.rhs,))
    assert problem.error(solution.value) < 1e-10


@few
@given(problem=systems("definite", min_size=3), data=st.data())
def test_without_rho_a_product_measures_the_complement(problem, data):
    rank = data.draw(st.integers(1, problem.size - 1))
    index = columns(problem.size, rank, 0)
    C = problem.matrix[:, index]
    values, vectors = torch.linalg.eigh(C @ torch.linalg.inv(C[index]) @ C.T)
    values, vectors = values[-rank:], vectors[:, -rank:]
    rest = problem.rhs - vectors @ (vectors.T @ problem.rhs)
    tail = (problem.matrix @ rest).norm() / rest.norm()
    expected = vectors @ ((vectors.T @ problem.rhs) / values) + rest / tail
    matvec = problem.products()
    solution = Nystrom(rank)(matvec, (problem.rhs,))
    torch.testing.assert_close(solution.value[0], expected, rtol=1e-6, atol=1e-8)
    assert matvec.count == rank + 1


def test_a_seed_fixes_the_sketch_and_another_seed_changes_it():
    problem = system("definite", 7, seed=0)
    for gaussian in (False, True):
        values = [
            Nystrom(3, gaussian=gaussian, seed=s)(problem.products(), (problem.rhs,)).value[0]
            for s in (0, 0, 1)
        ]
        assert torch.equal(values[0], values[1])
        assert not torch.allclose(values[0], values[2])


def test_the_sketch_leaves_the_global_generators_alone():
    problem = system("definite", 7, seed=0)
    before = torch.get_rng_state(), random.getstate()
    Nystrom(3, gaussian=True)(problem.products(), (problem.rhs,))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@few
@given(problem=systems("definite", min_size=3))
def test_a_warm_start_is_refined_by_its_residual(problem):
    init = 0.9 * problem.solution
    matvec = problem.products()
    solution = Nystrom(2, 0.5)(matvec, (problem.rhs,), (init,))
    rest = System(problem.matrix, problem.rhs - problem.matrix @ init)
    torch.testing.assert_close(solution.value[0], init + formula(rest, 2, 0.5))
    assert matvec.count == 3


def test_columns_that_the_loss_does_not_bend_are_left_out():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.zeros(6, 6, dtype=torch.float64)
    matrix[:3, :3] = symmetric(torch.tensor([1.0, 2.0, 3.0]).double(), generator)
    problem = System(matrix, normal(generator, 6))
    solution = Nystrom(6, 0.1)(problem.products(), (problem.rhs,))
    expected = torch.linalg.solve(matrix + 0.1 * torch.eye(6, dtype=torch.float64), problem.rhs)
    torch.testing.assert_close(solution.value[0], expected)


def test_a_matrix_of_zeros_leaves_the_right_hand_side():
    rhs = torch.tensor([1.0, 2.0])
    value = Nystrom(2)(lambda v: (0 * v[0],), (rhs,)).value[0]
    assert torch.equal(value, rhs)


@few
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["definite", "indefinite"]))
def test_the_preconditioner_is_symmetric_and_positive_definite(seed, kind):
    problem = system(kind, 7, seed)
    for rho in (None, 0.3):
        apply = Nystrom(4, rho).inverse(problem.products(), (problem.rhs,), 0.1)
        eye = torch.eye(7, dtype=torch.float64)
        inverse = torch.stack([apply((e,))[0] for e in eye])
        torch.testing.assert_close(inverse, inverse.T, rtol=1e-6, atol=1e-8)
        assert float(torch.linalg.eigvalsh(inverse)[0]) > 0


def test_all_columns_make_a_preconditioner_that_solves_the_damped_system():
    problem = system("definite", 6, seed=2)
    apply = Nystrom(6).inverse(problem.products(), (problem.rhs,), 0.7)
    shifted = problem.matrix + 0.7 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(apply((problem.rhs,))[0], torch.linalg.solve(shifted, problem.rhs))
    solution = CG(20, damping=0.7, preconditioner=Nystrom(6))(problem.products(), (problem.rhs,))
    assert solution.num_products <= 9  # six columns, one beside them, one to solve, one more


def test_products_that_are_not_numbers_leave_cg_unpreconditioned():
    matvec = Products(torch.eye(3, dtype=torch.float64), fail_from=2)
    apply = Nystrom(2).inverse(matvec, (torch.ones(3, dtype=torch.float64),), 0.0)
    assert torch.equal(apply((torch.arange(3.0).double(),))[0], torch.arange(3.0).double())


def test_more_columns_bring_the_logistic_hypergradient_nearer():
    problem = logistic()
    args = (problem.upper_loss, problem.lower_loss, (problem.upper,), (problem.lower,))
    errors = [
        relative_error(hypergradient(*args, method=nystrom(k)).grads[0], problem.hypergradient)
        for k in (10, 20, 25, 30)
    ]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[0] < 0.6
    assert errors[3] < 1e-10


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ({"rho": 0.0}, "rho must be positive and finite, or None to measure it"),
        ({"rho": math.nan}, "rho must be positive and finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Nystrom(**settings)
