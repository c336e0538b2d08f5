"""What holds for every linear solver, and the solvers of blo/linear/cg.py and direct.py."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import logistic, relative_error
from systems import Products, System, krylov, normal, symmetric, system, systems

from blo import (
    CG,
    GMRES,
    MINRES,
    BiCGSTAB,
    Dense,
    Identity,
    Neumann,
    NormalCG,
    Nystrom,
    Status,
    bicgstab,
    cg,
    gmres,
    hypergradient,
    minres,
    neumann,
    normal_cg,
)
from blo.linear.direct import dense_matrix

few = settings(max_examples=10)

# Every iterative solver, with the kinds of systems it is for and its products for an exact answer.
ITERATIVE = {
    "cg": (CG(200), ["definite"], 1),
    "cg with a preconditioner": (CG(200, preconditioner=Nystrom(2)), ["definite"], None),
    "minres": (MINRES(200), ["definite", "indefinite"], 1),
    "minres with a preconditioner": (
        MINRES(200, preconditioner=Nystrom(2)),
        ["definite", "indefinite"],
        None,
    ),
    "gmres": (GMRES(200), ["definite", "indefinite", "general"], 1),
    "bicgstab": (BiCGSTAB(400), ["definite", "indefinite", "general"], None),
    "normal_cg": (NormalCG(400), ["definite", "indefinite"], 2),
    "neumann": (Neumann(2000), ["definite"], None),
}
DIRECT = {"dense": Dense(), "nystrom": Nystrom(100), "nystrom gaussian": Nystrom(9, gaussian=True)}
SOLVERS = {name: solver for name, (solver, _, _) in ITERATIVE.items()} | DIRECT
PAIRS = [(name, kind) for name, (_, kinds, _) in ITERATIVE.items() for kind in kinds]
PAIRS += [("dense", kind) for kind in ("definite", "indefinite", "general")]
PAIRS += [("nystrom", "definite"), ("nystrom gaussian", "definite")]
KRYLOV = [
    (name, kind) for name, (_, kinds, per_step) in ITERATIVE.items() if per_step for kind in kinds
]

any_solver = pytest.mark.parametrize("name", SOLVERS)
iterative = pytest.mark.parametrize("name", ITERATIVE)


def limited(name: str, max_products: int, **changes):
    return replace(SOLVERS[name], max_products=max_products, **changes)


@pytest.mark.parametrize("name, kind", PAIRS)
@few
@given(data=st.data())
def test_value_is_that_of_a_direct_solve(name, kind, data):
    problem = data.draw(systems(kind))
    matvec = problem.products()
    solution = SOLVERS[name](matvec, (problem.rhs,))
    assert problem.error(solution.value) < 1e-9
    assert solution.num_products == matvec.count
    assert solution.status is Status.CONVERGED or name.startswith("nystrom")


@pytest.mark.parametrize("name, kind", KRYLOV)
@few
@given(data=st.data())
def test_krylov_methods_are_exact_after_as_many_steps_as_unknowns(name, kind, data):
    problem = data.draw(systems(kind, min_size=2))
    per_step = ITERATIVE[name][2]
    solution = limited(name, per_step * problem.size)(problem.products(), (problem.rhs,))
    assert solution.num_products <= per_step * problem.size
    # Rounding is amplified by the condition number, of the normal equations where they are solved.
    assert problem.error(solution.value) < (1e-5 if name == "normal_cg" else 1e-8)


@pytest.mark.parametrize("name, kind", KRYLOV)
@few
@given(data=st.data())
def test_krylov_methods_need_a_step_for_each_distinct_eigenvalue(name, kind, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    low = -2.0 if kind == "indefinite" else 2.0
    values = torch.tensor([1.0, 1.0, 1.0, low, low, 5.0], dtype=torch.float64)
    problem = System(symmetric(values, generator), normal(generator, 6))
    per_step = ITERATIVE[name][2]
    solution = SOLVERS[name](problem.products(), (problem.rhs,), None)
    shorter = limited(name, 3 * per_step)(problem.products(), (problem.rhs,))
    assert problem.error(shorter.value) < 1e-10
    assert problem.error(solution.value) < 1e-10


def projected(name: str, problem: System, steps: int) -> torch.Tensor:
    """The iterate that defines a method, from a dense basis of its Krylov space."""
    H, b = problem.matrix, problem.rhs
    if name == "cg":  # least energy norm of the error
        V = krylov(H, b, steps)
        return V @ torch.linalg.solve(V.T @ H @ V, V.T @ b)
    V = krylov(H @ H, H @ b, steps) if name == "normal_cg" else krylov(H, b, steps)
    return V @ torch.linalg.lstsq(H @ V, b[:, None]).solution[:, 0]  # least residual


@pytest.mark.parametrize("name, kind", KRYLOV)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_iterate_is_the_best_in_its_krylov_space(name, kind, steps, seed):
    # A stale iterate, and a direction built from the residual before, fail here.
    problem = system(kind, 6, seed)
    max_products = ITERATIVE[name][2] * steps
    solution = limited(name, max_products)(problem.products(), (problem.rhs,))
    expected = projected(name, problem, steps)
    assert float((solution.value[0] - expected).norm()) < 1e-7 * float(problem.solution.norm())


@iterative
@pytest.mark.parametrize("max_products", [2, 3, 5, 8, 13])
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_products_and_residual_are_reported_as_they_are(name, max_products, seed):
    problem = system(ITERATIVE[name][1][-1], 12, seed)
    if "preconditioner" in name:
        max_products += 3
    matvec = problem.products()
    solution = limited(name, max_products)(matvec, (problem.rhs,))
    assert solution.num_products == matvec.count <= max_products
    true = problem.residual(solution.value)
    if name == "neumann" and solution.status is Status.TRUNCATED:
        assert true <= solution.residual + 1e-12  # that of the sum without its last term
    else:
        assert solution.residual == pytest.approx(true, rel=1e-6, abs=1e-9)


@any_solver
@few
@given(data=st.data())
def test_splitting_the_vector_into_tensors_changes_nothing(name, data):
    problem = system("definite", 7, data.draw(st.integers(0, 2**32 - 1)))
    cuts = data.draw(st.sampled_from([(1, 6), (2, 2, 3), (4, 0, 3), (1,) * 7]))
    parts = problem.rhs.split(list(cuts))
    parts = tuple(p.reshape(2, 2) if p.numel() == 4 else p for p in parts)
    parts = tuple(p.reshape(()) if p.numel() == 1 else p for p in parts)
    solver = SOLVERS[name] if name in DIRECT else limited(name, 5)
    whole = solver(problem.products(), (problem.rhs,))
    split = solver(problem.products(), parts)
    assert [v.shape for v in split.value] == [p.shape for p in parts]
    assert torch.equal(torch.cat([v.reshape(-1) for v in split.value]), whole.value[0])
    assert split[1:3] == whole[1:3]


@any_solver
@few
@given(
    seed=st.integers(0, 2**32 - 1),
    a=st.floats(-8, 8).map(lambda e: 10.0**e),
    c=st.floats(-30, 30).map(lambda e: 10.0**e),
)
def test_value_scales_with_the_right_hand_side_and_against_the_matrix(name, seed, a, c):
    problem = system("definite", 6, seed)
    scaled = System(a * problem.matrix, c * problem.rhs)
    solver = SOLVERS[name] if name in DIRECT else limited(name, 5)
    value = solver(problem.products(), (problem.rhs,)).value[0]
    other = solver(scaled.products(), (scaled.rhs,))
    torch.testing.assert_close(other.value[0], (c / a) * value, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", [*ITERATIVE, "dense"])
@few
@given(problem=systems("definite"))
def test_damping_is_added_to_the_diagonal(name, problem):
    shift = 0.7 * torch.eye(problem.size, dtype=torch.float64)
    shifted = System(problem.matrix + shift, problem.rhs)
    solution = replace(SOLVERS[name], damping=0.7)(problem.products(), (problem.rhs,))
    assert shifted.error(solution.value) < 1e-9


@any_solver
def test_a_right_hand_side_of_zeros_needs_no_products(name):
    matvec = system("definite", 3, seed=0).products()
    rhs = (torch.zeros(2, dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    solution = SOLVERS[name](matvec, rhs)
    assert matvec.count == solution.num_products == 0
    assert solution.status is Status.CONVERGED
    assert solution.residual == 0.0
    assert [v.shape for v in solution.value] == [(2,), ()]
    assert all(torch.equal(v, torch.zeros_like(v)) for v in solution.value)


@any_solver
@pytest.mark.parametrize("curvature", [3.0, 1e-3, 1e5])
def test_a_scalar_unknown_is_divided_by_its_curvature(name, curvature):
    rhs = (torch.tensor(1.5, dtype=torch.float64),)
    solution = SOLVERS[name](lambda v: (curvature * v[0],), rhs)
    assert solution.value[0].shape == ()
    assert float(solution.value[0]) == pytest.approx(1.5 / curvature, rel=1e-14)


@iterative
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_warm_start_from_the_solution_stops_after_the_product_of_its_residual(name, seed):
    problem = system(ITERATIVE[name][1][-1], 6, seed)
    matvec = problem.products()
    solver = replace(SOLVERS[name], rtol=1e-10)
    solution = solver(matvec, (problem.rhs,), (problem.solution,))
    assert matvec.count == solution.num_products == 1
    assert solution.status is Status.CONVERGED
    assert problem.error(solution.value) < 1e-12


@iterative
@few
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1e-1]))
def test_warm_start_near_the_solution_ends_nearer_than_a_start_from_zero(name, seed, scale):
    problem = system("definite", 12, seed)
    generator = torch.Generator().manual_seed(seed)
    near = problem.solution * (1 + scale * normal(generator, 12))
    solver = limited(name, 7 if "preconditioner" in name else 4)
    warm = solver(problem.products(), (problem.rhs,), (near,))
    assert warm.num_products <= solver.max_products
    assert problem.residual(warm.value) < problem.residual((near,))


@iterative
def test_warm_start_worse_than_zero_is_dropped(name):
    problem = system("definite", 6, seed=1)
    for far in (-5 * problem.solution, torch.full_like(problem.rhs, math.nan)):
        solver = limited(name, 7)
        warm = solver(problem.products(), (problem.rhs,), (far,))
        cold = limited(name, 6)(problem.products(), (problem.rhs,))
        torch.testing.assert_close(warm.value, cold.value)
        assert warm.num_products == cold.num_products + 1


@any_solver
@pytest.mark.parametrize("fail_from", [1, 2, 3, 4])
def test_products_that_are_not_numbers_leave_a_finite_value_and_the_status(name, fail_from):
    problem = system("definite", 6, seed=2)
    solution = SOLVERS[name](problem.products(fail_from), (problem.rhs,))
    assert solution.status is Status.DIVERGED
    assert all(bool(torch.isfinite(v).all()) for v in solution.value)


@any_solver
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_right_hand_side_that_is_not_finite_is_handed_back(name, bad):
    matvec = system("definite", 2, seed=0).products()
    rhs = (torch.tensor([1.0, bad]),)
    solution = SOLVERS[name](matvec, rhs)
    assert solution.status is Status.DIVERGED
    assert matvec.count == 0
    assert solution.value is rhs


@iterative
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_run_past_convergence_stays_at_the_solution(name, dtype, seed):
    problem = system("definite", 20, seed)
    solver = limited(name, 2000 if name == "neumann" else 400, rtol=0.0)
    solution = solver(problem.products(), (problem.rhs.to(dtype),))
    tolerance = 1e3 * torch.finfo(dtype).eps
    assert problem.error((solution.value[0].double(),)) < tolerance


@any_solver
def test_small_right_hand_sides_do_not_underflow(name):
    problem = system("definite", 6, seed=3)
    small = (1e-30 * problem.rhs).float()
    solution = SOLVERS[name](problem.products(), (small,))
    torch.testing.assert_close(
        1e30 * solution.value[0].double(), problem.solution, rtol=1e-4, atol=1e-5
    )


@any_solver
def test_half_precision_is_solved_in_float32(name):
    problem = system("definite", 6, seed=4)
    rhs = problem.rhs.bfloat16()
    seen = []

    def matvec(v):
        seen.append(v[0].dtype)
        return ((problem.matrix @ v[0].double()).bfloat16(),)

    value = SOLVERS[name](matvec, (rhs,)).value[0]
    assert value.dtype == torch.bfloat16
    assert set(seen) == {torch.bfloat16}
    error = (value.double() - problem.solution).norm() / problem.solution.norm()
    assert float(error) < 0.3  # products rounded to 3 digits, condition 20


@pytest.mark.parametrize("name", ["cg", "minres", "gmres", "normal_cg"])
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_a_singular_consistent_system_is_solved_in_the_range(name, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, 0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    matrix = symmetric(values, generator)
    solution_in_range = matrix @ normal(generator, 5)
    rhs = matrix @ solution_in_range
    value = SOLVERS[name](Products(matrix), (rhs,)).value[0]
    torch.testing.assert_close(value, solution_in_range, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", [*ITERATIVE, "dense"])
@few
@given(seed=st.integers(0, 2**32 - 1))
def test_a_system_without_solution_ends_finite_and_never_converged(name, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, 0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    problem = System(symmetric(values, generator), normal(generator, 5))
    solver = SOLVERS[name] if name in DIRECT else limited(name, 100)
    solution = solver(problem.products(), (problem.rhs,))
    assert solution.status is not Status.CONVERGED
    assert bool(torch.isfinite(solution.value[0]).all())
    true = problem.residual(solution.value)
    if name != "neumann":
        assert solution.residual == pytest.approx(true, rel=0.02)
    if name in ("minres", "gmres", "normal_cg", "dense"):
        least = torch.linalg.pinv(problem.matrix) @ problem.rhs
        assert true == pytest.approx(problem.residual((least,)), rel=0.02)


@pytest.mark.parametrize("n", [1, 4, 9])
@pytest.mark.parametrize("name", ["cg", "minres", "gmres", "normal_cg", "bicgstab"])
def test_two_times_the_identity_is_solved_in_one_step(name, n):
    rhs = normal(torch.Generator().manual_seed(n), n)
    solution = SOLVERS[name](lambda v: (2 * v[0],), (rhs,))
    torch.testing.assert_close(solution.value[0], rhs / 2, rtol=1e-15, atol=0)
    assert solution.status is Status.CONVERGED
    assert solution.num_products == (2 if name == "normal_cg" else 1)


@any_solver
def test_a_product_costs_at_most_two_waits_for_the_device(name, monkeypatch):
    # Each of these copies a number from the device, and blocks until it is known.
    waits = []
    for method in ("__float__", "__bool__", "__int__", "item", "tolist"):
        original = getattr(torch.Tensor, method)

        def counted(tensor, original=original):
            waits.append(original)
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, method, counted)
    problem = system("definite", 40, seed=0)
    solver = SOLVERS[name] if name in DIRECT else limited(name, 20)
    solution = solver(problem.products(), (problem.rhs,))
    at_start = 8
    assert solution.num_products >= 9
    assert len(waits) <= 2 * solution.num_products + at_start


NAMED = {
    "cg": lambda k, **settings: cg(k, **settings),
    "minres": lambda k, **settings: minres(k, **settings),
    "gmres": lambda k, **settings: gmres(k, **settings),
    "bicgstab": lambda k, **settings: bicgstab(2 * k, **settings),
    "normal_cg": lambda k, **settings: normal_cg(6 * k, **settings),
    "neumann": lambda k, **settings: neumann(12 * k, **settings),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_methods_reach_the_logistic_hypergradient_and_start_warm(name):
    problem = logistic()
    method = NAMED[name](20, rtol=1e-11, warm_start=True)
    args = (problem.upper_loss, problem.lower_loss, (problem.upper,), (problem.lower,))
    first = hypergradient(*args, method=method)
    assert relative_error(first.grads[0], problem.hypergradient) < 1e-9
    assert first.info.status is Status.CONVERGED
    again = hypergradient(*args, method=method, state=first.state)
    assert again.info.num_products == 2  # the residual and the mixed product
    torch.testing.assert_close(again.grads, first.grads)


# Conjugate gradients


def test_cg_solves_two_times_the_identity_without_rounding():
    rhs = torch.tensor([1.0, -3.0, 0.1])
    solution = CG(10)(lambda v: (2 * v[0],), (rhs,))
    assert torch.equal(solution.value[0], rhs / 2)
    assert solution[1:4] == (Status.CONVERGED, 1, 0.0)


def test_cg_meets_negative_curvature_at_once_and_returns_the_scaled_right_hand_side():
    matrix = torch.diag(torch.tensor([1.0, -2.0, -3.0], dtype=torch.float64))
    problem = System(matrix, torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64))
    solution = CG(10)(problem.products(), (problem.rhs,))
    expected = problem.rhs * problem.rhs.norm() / (matrix @ problem.rhs).norm()
    torch.testing.assert_close(solution.value[0], expected)
    assert solution.status is Status.INDEFINITE
    assert solution.num_products == 1
    assert solution.residual == pytest.approx(problem.residual(solution.value))


def test_cg_scales_the_right_hand_side_by_one_where_the_matrix_maps_it_to_zero():
    rhs = torch.tensor([1.0, 2.0])
    solution = CG(10)(lambda v: (0 * v[0],), (rhs,))
    assert torch.equal(solution.value[0], rhs)
    assert solution[1:4] == (Status.INDEFINITE, 1, 1.0)


@few
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(3, 12))
def test_cg_returns_the_iterate_before_negative_curvature(seed, size):
    generator = torch.Generator().manual_seed(seed)
    values = 1.0 + torch.rand(size, generator=generator, dtype=torch.float64)
    values[0] = -0.3
    problem = System(symmetric(values, generator), normal(generator, size))
    solution = CG(50)(problem.products(), (problem.rhs,))
    steps = solution.num_products - 1
    assert solution.status is Status.INDEFINITE
    if steps == 0:
        factor = problem.rhs.norm() / (problem.matrix @ problem.rhs).norm()
        expected = factor * problem.rhs
    else:
        truncated = CG(steps)(problem.products(), (problem.rhs,))
        assert truncated.status is Status.TRUNCATED
        expected = truncated.value[0]
    torch.testing.assert_close(solution.value[0], expected)
    assert solution.residual == pytest.approx(problem.residual(solution.value), rel=1e-6)


def test_cg_returns_a_warm_start_that_meets_negative_curvature():
    problem = System(
        torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)),
        torch.tensor([1.0, 1.0], dtype=torch.float64),
    )
    init = torch.tensor([1.0, -0.5], dtype=torch.float64)
    solution = CG(10)(problem.products(), (problem.rhs,), (init,))
    torch.testing.assert_close(solution.value[0], init)
    assert solution[1:3] == (Status.INDEFINITE, 2)


def test_cg_takes_rounding_in_the_null_space_for_zero_curvature():
    # Curvature of the order of rounding would give a step of the order of its inverse.
    generator = torch.Generator().manual_seed(0)
    matrix = symmetric(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64), generator)
    rhs = normal(generator, 3)
    solution = CG(20)(Products(matrix), (rhs,))
    assert solution.status is Status.INDEFINITE
    assert float(solution.value[0].norm()) < 10 * float(rhs.norm())


@pytest.mark.parametrize("gaussian", [False, True])
def test_nystrom_preconditions_cg_past_a_few_large_eigenvalues(gaussian):
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.logspace(6, 3, 8), torch.linspace(1.0, 2.0, 52)]).double()
    problem = System(symmetric(values, generator), normal(generator, 60))
    plain = CG(200, rtol=1e-8)(problem.products(), (problem.rhs,))
    preconditioner = Nystrom(10, gaussian=gaussian)
    solver = CG(200, rtol=1e-8, preconditioner=preconditioner)
    matvec = problem.products()
    solution = solver(matvec, (problem.rhs,))
    assert problem.residual(solution.value) < 2e-8
    assert solution.num_products == matvec.count
    assert solution.num_products < 30 < plain.num_products


# Identity and Dense


def test_identity_multiplies_each_tensor_by_its_factor():
    rhs = (torch.tensor([1.0, 2.0]), torch.tensor(3.0))
    solution = Identity((0.5, 2.0))(lambda v: v, rhs)
    assert [v.tolist() for v in solution.value] == [[0.5, 1.0], 6.0]
    assert solution.num_products == 0
    assert solution.scale == (0.5, 2.0)


def test_dense_matrix_has_the_products_as_columns():
    problem = system("general", 5, seed=7)
    parts = tuple(problem.rhs.split([2, 3]))
    torch.testing.assert_close(dense_matrix(problem.products(), parts), problem.matrix)


@few
@given(seed=st.integers(0, 2**32 - 1))
def test_dense_gives_a_singular_system_its_solution_of_least_norm(seed):
    # Pivots of rounding size would leave any multiple of the null space in the solution.
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, 1.0, 2.0, 7.0], dtype=torch.float64)
    matrix = symmetric(values, generator)
    expected = matrix @ normal(generator, 4)
    solution = Dense()(Products(matrix), (matrix @ expected,))
    torch.testing.assert_close(solution.value[0], expected)
    assert solution.status is Status.CONVERGED


def test_dense_refuses_more_unknowns_than_allowed():
    with pytest.raises(ValueError, match="3 x 3, above max_size=2; use an iterative solver"):
        Dense(max_size=2)(lambda v: v, (torch.ones(3),))


# Settings


@pytest.mark.parametrize("solver", [CG, MINRES, GMRES, BiCGSTAB, NormalCG, Neumann])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_products": 0}, "max_products must be an integer of at least"),
        ({"max_products": 2.5}, "max_products must be an integer"),
        ({"max_products": True}, "max_products must be an integer"),
        ({"damping": -1.0}, "damping must be finite and at least 0, got -1.0"),
        ({"damping": math.nan}, "damping must be finite"),
        ({"rtol": 1.0}, "rtol must be at least 0 and below 1"),
        ({"rtol": -1e-3}, "rtol must be at least 0"),
        ({"rtol": math.nan}, "rtol must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(solver, settings, message):
    with pytest.raises(ValueError, match=message):
        solver(**settings)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Neumann(scale=0.0), "scale must be positive and finite, or None to estimate it"),
        (lambda: Neumann(num_power_iterations=0), "num_power_iterations must be an integer"),
        (lambda: Identity(math.inf), "scale must be finite, got inf"),
        (lambda: Dense(max_size=0), "max_size must be an integer of at least 1"),
        (lambda: GMRES(restart=0), "restart must be an integer of at least 1"),
        (lambda: NormalCG(1), "max_products must be an integer of at least 2, got 1"),
        (lambda: CG(10, preconditioner=Nystrom(9)), "after the preconditioner's 10, got 10"),
        (lambda: MINRES(3, preconditioner=Nystrom(4, 1.0)), "after the preconditioner's 4, got 3"),
        (lambda: cg(1, warm_start=True), "at least 2 with warm_start=True"),
        (lambda: neumann(1, warm_start=True), "at least 2 with warm_start=True"),
        (lambda: minres(1, warm_start=True), "at least 2 with warm_start=True"),
        (lambda: gmres(1, warm_start=True), "at least 2 with warm_start=True"),
        (lambda: bicgstab(1, warm_start=True), "at least 2 with warm_start=True"),
        (lambda: normal_cg(2, warm_start=True), "with warm_start=True"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()
