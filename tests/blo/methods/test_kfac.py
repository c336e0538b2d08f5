"""Kronecker factors against explicit loops, dense matrices and other spellings of a layer."""

import pytest
import torch
from oracles import flat, relative_error
from torch import nn
from torch.nn.functional import cross_entropy, embedding, linear

from blo import (
    CG,
    KFAC,
    MINRES,
    Engine,
    GaussNewton,
    Implicit,
    Point,
    Problem,
    ProblemGraph,
    SplitLoss,
    cg,
    check_hypergradient,
    dense,
    hypergradient,
    minres,
)
from blo.derivatives.kronecker_blocks import blocks_of
from blo.derivatives.lower import LowerObjective
from blo.derivatives.nested import Spent
from blo.derivatives.objective import FunctionObjective
from blo.derivatives.random_state import RandomState
from blo.linear.kronecker import Covariance, Diagonal, Kronecker

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


ROWS, LABELS = normal(7, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2, 2])
WIDE = normal(7, 3, seed=2)
UPPER = (normal(7, seed=3),)
NETWORK = (normal(5, 4, seed=4), normal(5, seed=5), normal(3, 5, seed=6))


def network(x, y):
    return linear(torch.tanh(linear(ROWS, y[0], y[1])), y[2])


def weighted(z, x, y):
    return (x[0].sigmoid() * cross_entropy(z, LABELS, reduction="none")).mean()


SPLIT = SplitLoss(network, weighted)


def objective_of(*losses, **settings) -> LowerObjective:
    parts = tuple(FunctionObjective(g, RandomState.capture(), CPU) for g in losses)
    return LowerObjective(parts, **settings)


def curvature(*losses, at=NETWORK, upper=UPPER, num_samples=None, **settings):
    leaves = tuple(t.clone().requires_grad_() for t in at)
    generator = torch.Generator().manual_seed(0)
    return blocks_of(objective_of(*losses, **settings), upper, leaves, num_samples, generator)


def inverse(settings, loss, upper, lower, matvec=None, damping=0.0, **options):
    """``r -> P^{-1} r`` at a point."""
    at = Point(upper, lower)
    placed = settings.at(objective_of(loss, **options), at, Spent())
    return placed.inverse(matvec, lower, damping)


def matrix(factor) -> torch.Tensor:
    size = factor.vectors.shape[0] if isinstance(factor, Covariance) else len(factor.values)
    half = factor.outwards(factor.values.sqrt().diag())
    assert half.shape[0] == size
    return half @ half.T


def response(method, loss, upper, lower, upper_loss):
    found = hypergradient(upper_loss, loss, upper, lower, method=method)
    return flat(found.grads)


def quarter(x, y):
    return 0.25 * sum((t - 1.0).pow(4).sum() for t in y)


# --- factors


def by_loops():
    """A and G of both layers, example by example, from derivatives of one example's outputs."""
    factors = [[torch.zeros(5, 5), torch.zeros(5, 5)], [torch.zeros(5, 5), torch.zeros(3, 3)]]
    factors = [[t.double() for t in pair] for pair in factors]
    w, b, v = NETWORK
    for n in range(len(ROWS)):
        a, one = ROWS[n], torch.ones(1, dtype=torch.float64)
        z1 = w @ a + b
        h = torch.tanh(z1)

        def loss(z, n=n):
            weight = torch.sigmoid(UPPER[0][n]) / len(ROWS)
            return -weight * torch.log_softmax(z, 0)[LABELS[n]]

        curved = torch.autograd.functional.hessian(loss, v @ h)
        jacobian = v @ torch.diag(1 - h * h)
        homogeneous = torch.cat([a, one])
        factors[0][0] += torch.outer(homogeneous, homogeneous) / len(ROWS)
        factors[0][1] += jacobian.T @ curved @ jacobian
        factors[1][0] += torch.outer(h, h) / len(ROWS)
        factors[1][1] += curved
    return factors


def test_the_factors_of_a_split_loss_are_those_of_explicit_loops():
    blocks = curvature(SPLIT).blocks
    assert [(b.weight, b.bias) for b in blocks] == [(0, 1), (2, None)]
    for block, (a, g) in zip(blocks, by_loops(), strict=True):
        torch.testing.assert_close(matrix(block.curvature.inputs), a)
        torch.testing.assert_close(matrix(block.curvature.outputs), g)


def test_samples_have_the_factors_of_the_outputs_for_their_mean():
    sampled = curvature(SPLIT, num_samples=4000).blocks[0].curvature.outputs
    assert relative_error(matrix(sampled), by_loops()[0][1]) < 0.03  # 1 / sqrt(7 * 4000), and more


def test_the_factors_of_a_plain_loss_are_its_own_gradients():
    blocks = curvature(lambda x, y: weighted(network(x, y), x, y)).blocks
    z = network(UPPER, NETWORK)
    rows = (z.softmax(1) - nn.functional.one_hot(LABELS, 3)) * UPPER[0].sigmoid()[:, None] / 7
    torch.testing.assert_close(matrix(blocks[1].curvature.outputs), rows.T @ rows)


def test_batches_of_one_update_share_the_factors():
    once, twice = curvature(SPLIT).blocks, curvature(SPLIT, SPLIT).blocks
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(matrix(a.curvature.inputs), matrix(b.curvature.inputs))
        torch.testing.assert_close(matrix(a.curvature.outputs), matrix(b.curvature.outputs))


# --- the damped inverse


@pytest.mark.parametrize("count", [3, 20])  # of low rank, of full rank
@pytest.mark.parametrize("damping", [0.3, 0.0])
def test_the_damped_inverse_is_that_of_the_dense_product(count, damping):
    rows, slopes = normal(count, 4, seed=1), normal(count, 5, seed=2)
    block = Kronecker(Covariance.of([rows], 1 / count), Covariance.of([slopes], 2.0), 5.0)
    whole = 5.0 * torch.kron(2.0 * slopes.T @ slopes, rows.T @ rows / count)
    v = normal(5, 4, seed=3)
    damped = whole + damping * torch.eye(20, dtype=torch.float64)
    expected = (torch.linalg.pinv(damped, rtol=1e-12) @ v.flatten()).view(5, 4)
    torch.testing.assert_close(block.inverse(v, damping), expected)
    assert block.mean == pytest.approx(float(whole.trace() / 20))


@pytest.mark.parametrize("count", [2, 9])  # fewer and more rows than columns
def test_eigenvalues_of_rounding_are_left_out(count):
    rows = normal(1, 4, seed=1).expand(count, 4) * (1.0 + normal(count, 1, seed=2))
    assert Covariance.of([rows], 1.0).values.shape == (1,)


def test_a_diagonal_factor_is_the_dense_one():
    counts = torch.tensor([0.5, 0.0, 0.25, 0.25], dtype=torch.float64)
    dense_factor = Covariance.of([torch.diag(counts.sqrt())], 1.0)
    other, v = Covariance.of([normal(2, 3)], 1.0), normal(3, 4)
    for damping in (0.1, 0.0):
        found = [Kronecker(a, other).inverse(v, damping) for a in (Diagonal(counts), dense_factor)]
        torch.testing.assert_close(*found)
    assert Diagonal(counts).mean == pytest.approx(dense_factor.mean)


def test_draws_have_the_product_for_their_covariance():
    block = Kronecker(
        Covariance.of([normal(5, 2, seed=1)], 1.0), Diagonal(torch.tensor([1.0, 4.0]).double())
    )
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([block.draw(generator)[0].flatten() for _ in range(4000)])
    expected = torch.kron(matrix(block.outputs), matrix(block.inputs))
    assert relative_error(draws.T @ draws / 4000, expected) < 0.05
    _, size = block.draw(generator)
    assert size == pytest.approx(float(expected.square().sum()))


# --- where it is exact


def squared(z, x, y):
    return (x[0][:, None] - z).square().mean()


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_one_linear_layer_with_squared_errors_is_solved_by_one_product(num_outputs):
    loss = SplitLoss(lambda x, y: linear(ROWS, y[0], y[1]), squared)
    lower = normal(num_outputs, 4, seed=7), normal(num_outputs, seed=8)
    exact = response(dense(), loss, UPPER, lower, quarter)
    found = response(cg(2, preconditioner=KFAC(0.0, num_samples=None)), loss, UPPER, lower, quarter)
    assert relative_error(found, exact) < 1e-10


def test_one_softmax_layer_on_one_example_is_its_pseudo_inverse():
    a, label = ROWS[:1], LABELS[:1]
    loss = SplitLoss(lambda x, y: linear(a, y[0]), lambda z, x, y: cross_entropy(z, label))
    lower = (normal(3, 4, seed=7),)
    h = torch.autograd.functional.hessian(lambda w: loss((), (w.view(3, 4),)), lower[0].flatten())
    r = (h @ normal(12, seed=9)).view(3, 4)  # where its inverse is defined
    apply = inverse(KFAC(0.0, num_samples=None), loss, (), lower)
    (found,) = apply((r,))
    torch.testing.assert_close(found.flatten(), torch.linalg.pinv(h, rtol=1e-10) @ r.flatten())


def solved_both_ways(loss, lower):
    """A right-hand side divided by the factors, and by the dense Hessian."""
    sizes = [t.numel() for t in lower]

    def pieces(v):
        return tuple(p.view_as(t) for p, t in zip(v.split(sizes), lower, strict=True))

    h = torch.autograd.functional.hessian(lambda v: loss(UPPER, pieces(v)), flat(lower))
    apply = inverse(KFAC(0.0), loss, UPPER, lower, matvec=lambda v: pieces(h @ flat(v)))
    r = normal(len(h), seed=9)
    return flat(apply(pieces(r))), torch.linalg.solve(h, r)


def test_a_plain_loss_of_one_output_is_brought_to_the_scale_of_the_hessian():
    def loss(x, y):
        return (x[0] - linear(ROWS, y[0])[:, 0]).square().mean()

    torch.testing.assert_close(*solved_both_ways(loss, (normal(1, 4, seed=7),)))


def test_other_parameters_have_their_mean_curvature():
    """A tensor that is no layer, of curvature 3 in each entry, beside a layer that it does not
    meet.
    """

    def loss(x, y):
        fit = (x[0] - linear(ROWS, y[0])[:, 0]).square().mean()
        return fit + 1.5 * (y[1] - x[0]).square().sum()

    torch.testing.assert_close(*solved_both_ways(loss, (normal(1, 4, seed=7), normal(7, seed=8))))


def test_weight_decay_and_the_solvers_damping_are_part_of_the_damping():
    r = tuple(normal(*t.shape, seed=9) for t in NETWORK)
    decayed = inverse(
        KFAC(0.0, num_samples=None), SPLIT, UPPER, NETWORK, damping=0.1, weight_decay=(0.2,) * 3
    )
    damped = inverse(KFAC(0.3, num_samples=None), SPLIT, UPPER, NETWORK)
    for a, b in zip(decayed(r), damped(r), strict=True):
        torch.testing.assert_close(a, b)


def test_a_penalty_among_the_outputs_is_part_of_the_damping():
    penalised = SplitLoss(
        lambda x, y: (network(x, y), *y),
        lambda z, x, y: weighted(z[0], x, y) + 0.15 * sum(t.square().sum() for t in z[1:]),
    )
    r = tuple(normal(*t.shape, seed=9) for t in NETWORK)
    found = inverse(KFAC(0.0, num_samples=None), penalised, UPPER, NETWORK)
    damped = inverse(KFAC(0.3, num_samples=None), SPLIT, UPPER, NETWORK)
    for a, b in zip(found(r), damped(r), strict=True):
        torch.testing.assert_close(a, b)


# --- one layer in several spellings


def scores_of(spelling):
    """Outputs of one layer ``a W^T + b``, and what its parameters are here."""
    w, b = normal(3, 4, seed=7), normal(3, seed=8)
    if spelling == "linear":
        return lambda y: linear(ROWS, y[0], y[1]), (w, b)
    if spelling == "of GPT-2":
        return lambda y: torch.addmm(y[1], ROWS, y[0]), (w.T.contiguous(), b)
    return lambda y: linear(ROWS, y[0], y[1]).unsqueeze(0), (w, b)


@pytest.mark.parametrize("spelling", ["of GPT-2", "with positions"])
def test_a_layer_is_known_however_it_is_computed(spelling):
    found = []
    for name in ("linear", spelling):
        outputs, lower = scores_of(name)
        split = SplitLoss(
            lambda x, y, outputs=outputs: outputs(y),
            lambda z, x, y: weighted(z.reshape(-1, 3), x, y),
        )
        apply = inverse(KFAC(0.1, num_samples=None), split, UPPER, lower)
        rhs = tuple(
            t.T if name == "of GPT-2" and t.dim() == 2 else t for t in scores_of("linear")[1]
        )
        w, b = apply(rhs)
        found.append((w.T if name == "of GPT-2" else w, b))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_matmul_is_a_layer():
    found = []
    for outputs, turned in ((lambda y: ROWS @ y[0], True), (lambda y: linear(ROWS, y[0]), False)):
        split = SplitLoss(lambda x, y, outputs=outputs: outputs(y), weighted)
        w = normal(3, 4, seed=7)
        lower = (w.T.contiguous() if turned else w,)
        (r,) = inverse(KFAC(0.1, num_samples=None), split, UPPER, lower)(lower)
        found.append(r.T if turned else r)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("look_up", [embedding, lambda i, w: torch.embedding(w, i)])
def test_an_embedding_is_a_layer_on_unit_vectors(look_up):
    numbers, table = torch.tensor([3, 0, 3, 1, 3, 5, 0]), normal(6, 3, seed=7)
    ones = nn.functional.one_hot(numbers, 6).double()
    found = []
    for outputs in (lambda y: look_up(numbers, y[0]), lambda y: ones @ y[0]):
        split = SplitLoss(lambda x, y, outputs=outputs: outputs(y), weighted)
        found.append(inverse(KFAC(0.1, num_samples=None), split, UPPER, (table,))((table,))[0])
    torch.testing.assert_close(*found)


def test_a_weight_that_is_used_twice_has_the_rows_of_both_uses():
    def twice(x, y):
        return linear(linear(ROWS[:, :3], y[0]), y[0])

    (block,) = curvature(SplitLoss(twice, weighted), at=(normal(3, 3, seed=7),)).blocks
    w = normal(3, 3, seed=7)
    a = torch.cat([ROWS[:, :3], ROWS[:, :3] @ w.T])
    torch.testing.assert_close(matrix(block.curvature.inputs), a.T @ a / 14)


def test_a_weight_that_two_kinds_of_layers_share_is_no_layer():
    """An embedding whose rows are the weights of the last layer, too."""
    numbers = torch.tensor([2, 0, 1, 1, 2, 0, 1])

    def tied(x, y):
        return linear(torch.tanh(linear(embedding(numbers, y[0]), y[1])), y[0])

    found = curvature(SplitLoss(tied, weighted), at=(normal(3, 4, seed=7), normal(4, 4, seed=8)))
    assert found.covered == {1}


def test_every_factor_of_an_adapter_is_a_layer():
    from peft import get_peft_model

    from adapters import BiLoraConfig, levels

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model = get_peft_model(model, BiLoraConfig(r=2, target_modules=["0", "2"]))
    split = levels(model)

    def outputs(x, y):
        placed = dict(zip(split.lower_names, y, strict=True))
        return torch.func.functional_call(model, placed, (ROWS,))

    found = curvature(SplitLoss(outputs, weighted), at=tuple(split.lower))
    assert found.covered == set(range(4))
    ranks = [b.curvature.outputs.vectors.shape[0] for b in found.blocks]
    assert sorted(ranks) == [2, 2, 3, 6]


# --- solvers


def test_solvers_reach_the_same_solution_with_it_in_fewer_products():
    """On a softmax layer whose rows weigh nearly the same, and its inputs of six sizes."""
    rows = normal(200, 6, seed=1) * torch.logspace(1, -1, 6, dtype=torch.float64)
    labels = torch.randint(3, (200,), generator=torch.Generator().manual_seed(2))
    upper, lower = (0.1 * normal(200, seed=3),), (1e-3 * normal(3, 6, seed=7),)
    loss = SplitLoss(
        lambda x, y: linear(rows, y[0]),
        lambda z, x, y: (x[0].sigmoid() * cross_entropy(z, labels, reduction="none")).mean(),
    )
    exact = response(dense(damping=1e-3), loss, upper, lower, quarter)
    for make in (cg, minres):
        plain, preconditioned, long = (
            response(make(k, damping=1e-3, preconditioner=p), loss, upper, lower, quarter)
            for k, p in ((5, None), (5, KFAC()), (60, KFAC()))
        )
        assert relative_error(preconditioned, exact) < 0.1 * relative_error(plain, exact)
        assert relative_error(long, exact) < 1e-7


def test_it_goes_with_gauss_newton_products_and_its_cost_is_counted():
    plain, with_it = (
        cg(6, damping=0.1, preconditioner=p, products=GaussNewton())
        for p in (None, KFAC(num_samples=2))
    )
    costs = []
    for method in (plain, with_it):
        info = hypergradient(quarter, SPLIT, UPPER, NETWORK, method=method).info
        costs.append((info.num_gradients, info.num_products))
    assert costs[1][0] - costs[0][0] == 2


def engine_with(method) -> Engine:
    torch.manual_seed(0)
    net, weights = nn.Linear(4, 3).double(), nn.Linear(1, 7).double()

    def below(_):
        logits = weights(torch.ones(1, dtype=torch.float64)).sigmoid()
        each = cross_entropy(net(ROWS), LABELS, reduction="none")
        return (logits * each).mean() + 0.05 * sum(p.square().sum() for p in net.parameters())

    upper = Problem(
        "upper",
        lambda _: cross_entropy(net(WIDE @ torch.ones(3, 4).double()), LABELS),
        [net, weights],
        torch.optim.SGD(weights.parameters(), 0.1),
        [None],
    )
    lower = Problem(
        "lower",
        below,
        [net, weights],
        torch.optim.SGD(net.parameters(), 0.1),
        [None],
        method=method,
    )
    return Engine(ProblemGraph([upper, lower]))


def test_an_engine_passes_the_check_with_it():
    report = check_hypergradient(engine_with(cg(60, preconditioner=KFAC())))
    assert report, str(report)


def test_three_levels_agree_with_the_dense_solver():
    def chain(method):
        torch.manual_seed(0)
        low, mid, top = (nn.Linear(2, 2).double() for _ in range(3))
        rows = normal(5, 2, seed=1)

        def loss_low(_):
            return (low(rows) - mid(rows)).square().mean() + 0.1 * low.weight.square().sum()

        def loss_mid(_):
            return (low(mid(rows)) - top(rows)).square().mean() + 0.2 * mid.weight.square().sum()

        problems = [
            Problem("top", lambda _: low(mid(rows)).square().mean(), [low, mid, top],
                    torch.optim.SGD(top.parameters(), 0.1), [None]),
            Problem("mid", loss_mid, [low, mid, top], torch.optim.SGD(mid.parameters(), 0.1),
                    [None], method=method),
            Problem("low", loss_low, [low, mid, top], torch.optim.SGD(low.parameters(), 0.1),
                    [None], method=method),
        ]  # fmt: skip
        before = flat([p.detach().clone() for p in top.parameters()])
        Engine(ProblemGraph(problems)).run(1)
        return before - flat([p.detach() for p in top.parameters()])

    settings = {"damping": 0.5}  # the middle Hessian is indefinite without
    exact = chain(dense(**settings))
    found = chain(minres(60, preconditioner=KFAC(), **settings))
    assert relative_error(found, exact) < 1e-6


# --- refusals


def test_a_loss_without_layers_is_refused_by_name():
    with pytest.raises(ValueError, match=r"no linear layer and no embedding .* 'lower_loss'"):
        hypergradient(
            quarter,
            lambda x, y: (y[0] - x[0]).square().sum(),
            UPPER,
            UPPER,
            method=cg(3, preconditioner=KFAC()),
        )


@pytest.mark.parametrize("kind", [CG, MINRES])
def test_products_alone_are_refused(kind):
    with pytest.raises(TypeError, match="takes its factors from the layers of a lower loss"):
        kind(4, preconditioner=KFAC())(lambda v: v, (torch.ones(2),))


def test_it_is_no_solver():
    with pytest.raises(TypeError, match=r"solver must be callable, got KFAC\(.*CG\(10, precond"):
        hypergradient(quarter, SPLIT, UPPER, NETWORK, method=Implicit(KFAC()))


def test_too_many_outputs_are_refused():
    loss = SplitLoss(lambda x, y: linear(ROWS, y[0]), lambda z, x, y: z.square().mean())
    with pytest.raises(ValueError, match="at most 1024 outputs a row, got 1025"):
        curvature(loss, at=(normal(1025, 4),))


@pytest.mark.parametrize(
    "settings, message",
    [({"damping": -1.0}, "damping"), ({"num_samples": 0}, "num_samples")],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        KFAC(**settings)
