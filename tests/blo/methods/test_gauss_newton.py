"""Gauss-Newton products against the dense ``J^T l_zz J``."""

import pytest
import torch
from oracles import Vector, by_matrices, flat, relative_error
from torch import nn

from blo import (
    Context,
    Engine,
    Exact,
    GaussNewton,
    Point,
    Problem,
    ProblemGraph,
    SplitLoss,
    Status,
    cg,
    dense,
    hypergradient,
    minres,
    nystrom,
)
from blo.derivatives.lower import LowerObjective
from blo.derivatives.objective import FunctionObjective
from blo.derivatives.random_state import RandomState
from blo.evaluation import ModuleObjective, ParameterSpace
from blo.linear.direct import dense_matrix

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


INPUTS = normal(20, 3, seed=1)
TARGETS = torch.randint(3, (20,), generator=generator(2))


def logits(x, y):
    """A layer of tanh between two weight matrices of sizes (3, 4) and (4, 3), the input scaled."""
    w1, w2 = y
    return torch.tanh((INPUTS * x[0]) @ w1) @ w2


def weighted(z, x, y):
    """Cross-entropy with a weight for each sample."""
    return (x[1].sigmoid() * nn.functional.cross_entropy(z, TARGETS, reduction="none")).mean()


NET = SplitLoss(logits, weighted)
UPPER = (normal(3, seed=3), normal(20, seed=4))
LOWER = (normal(3, 4, seed=5), normal(4, 3, seed=6))


def context_of(loss, upper, lower, **settings) -> Context:
    point = Point(upper, lower)
    objective = FunctionObjective(loss, RandomState.capture(), CPU)
    return Context(LowerObjective((objective,), **settings), after=point, before=point)


def products_of(loss, upper, lower, rule, **settings):
    context = context_of(loss, upper, lower, **settings)
    return rule.at(context.lower, context.after)


def dense_gauss_newton(split: SplitLoss, upper, lower) -> torch.Tensor:
    """J^T l_zz J from a Jacobian row by row."""
    sizes = [t.numel() for t in lower]

    def outputs(flat_lower):
        pieces = flat_lower.split(sizes)
        y = tuple(p.view_as(t) for p, t in zip(pieces, lower, strict=True))
        return split.outputs(upper, y).reshape(-1)

    point = flat(lower)
    z = split.outputs(upper, lower)
    J = torch.autograd.functional.jacobian(outputs, point)
    curvature = torch.autograd.functional.hessian(
        lambda o: split.loss(o.view_as(z), upper, lower), outputs(point)
    )
    return J.T @ curvature @ J


def test_products_are_those_of_the_dense_matrix():
    products = products_of(NET, UPPER, LOWER, GaussNewton())
    matrix = dense_matrix(products.hvp, LOWER)
    torch.testing.assert_close(matrix, dense_gauss_newton(NET, UPPER, LOWER))


def test_products_are_positive_semi_definite_where_the_hessian_is_not():
    gauss_newton = dense_matrix(products_of(NET, UPPER, LOWER, GaussNewton()).hvp, LOWER)
    hessian = dense_matrix(products_of(NET, UPPER, LOWER, Exact()).hvp, LOWER)
    assert float(torch.linalg.eigvalsh(hessian)[0]) < -1e-3
    assert float(torch.linalg.eigvalsh(gauss_newton)[0]) > -1e-12


def test_a_linear_model_has_its_hessian():
    linear = SplitLoss(lambda x, y: INPUTS @ y[0], weighted)
    lower = (normal(3, 3, seed=7),)
    v = (normal(3, 3, seed=8),)
    torch.testing.assert_close(
        products_of(linear, UPPER, lower, GaussNewton()).hvp(v),
        products_of(linear, UPPER, lower, Exact()).hvp(v),
    )


def test_targets_that_are_met_leave_the_hessian():
    target = logits(UPPER, LOWER)
    split = SplitLoss(logits, lambda z, x, y: 0.5 * ((z - target) ** 2).sum())
    v = (normal(3, 4, seed=8), normal(4, 3, seed=9))
    torch.testing.assert_close(
        products_of(split, UPPER, LOWER, GaussNewton()).hvp(v),
        products_of(split, UPPER, LOWER, Exact()).hvp(v),
    )


def test_mixed_products_are_exact():
    v = (normal(3, 4, seed=8), normal(4, 3, seed=9))
    torch.testing.assert_close(
        products_of(NET, UPPER, LOWER, GaussNewton()).mixed(v),
        products_of(NET, UPPER, LOWER, Exact()).mixed(v),
    )


def test_a_penalty_among_the_outputs_has_its_exact_curvature():
    penalised = SplitLoss(
        lambda x, y: (logits(x, y), *y),
        lambda z, x, y: weighted(z[0], x, y) + 0.5 * sum((w**2).sum() for w in z[1:]),
    )
    v = (normal(3, 4, seed=8), normal(4, 3, seed=9))
    plain = products_of(NET, UPPER, LOWER, GaussNewton()).hvp(v)
    with_penalty = products_of(penalised, UPPER, LOWER, GaussNewton()).hvp(v)
    torch.testing.assert_close(with_penalty, tuple(p + t for p, t in zip(plain, v, strict=True)))


def test_weight_decay_and_the_sign_of_a_maximiser_enter_as_in_exact_products():
    linear = SplitLoss(lambda x, y: INPUTS @ y[0], weighted)
    lower, v = (normal(3, 3, seed=7),), (normal(3, 3, seed=8),)
    settings = {"signs": (-1.0,), "weight_decay": (0.3,)}
    torch.testing.assert_close(
        products_of(linear, UPPER, lower, GaussNewton(), **settings).hvp(v),
        products_of(linear, UPPER, lower, Exact(), **settings).hvp(v),
    )


def test_several_batches_are_averaged():
    halves = [
        SplitLoss(lambda x, y, i=i: logits(x, y)[i::2], lambda z, x, y: (z**2).mean())
        for i in (0, 1)
    ]
    objectives = tuple(FunctionObjective(h, RandomState.capture(), CPU) for h in halves)
    point = Point(UPPER, LOWER)
    both = GaussNewton().at(LowerObjective(objectives), point)
    v = (normal(3, 4, seed=8), normal(4, 3, seed=9))
    single = [products_of(h, UPPER, LOWER, GaussNewton()).hvp(v) for h in halves]
    expected = tuple(0.5 * (a + b) for a, b in zip(*single, strict=True))
    torch.testing.assert_close(both.hvp(v), expected)


class Normalised(nn.Module):
    """What reverse over forward mode gets wrong: layer normalisation; with dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(6, 3)
        self.double()

    def forward(self, inputs):
        return self.head(self.body(inputs))


def module_products(model: nn.Module, rule):
    loss = SplitLoss(
        lambda batch: model(batch[0]), lambda z, batch: nn.functional.cross_entropy(z, batch[1])
    )
    lower = tuple(model.parameters())
    objective = ModuleObjective(
        ParameterSpace([model]),
        (),
        lower,
        loss,
        (INPUTS, TARGETS),
        RandomState.capture(),
        None,
        "lower",
    )
    point = Point((), tuple(t.detach() for t in lower))
    return rule.at(LowerObjective((objective,)), point), loss, lower


def test_layer_normalisation_is_differentiated_right():
    model = Normalised()
    products, loss, lower = module_products(model, GaussNewton())
    matrix = dense_matrix(products.hvp, tuple(t.detach() for t in lower))
    names = [name for name, _ in model.named_parameters()]
    sizes = [t.numel() for t in lower]

    def outputs(vector):
        pieces = [p.view_as(t) for p, t in zip(vector.split(sizes), lower, strict=True)]
        values = dict(zip(names, pieces, strict=True))
        return torch.func.functional_call(model, values, (INPUTS,)).reshape(-1)

    point = flat(lower).detach()
    J = torch.autograd.functional.jacobian(outputs, point)  # reverse mode once
    curvature = torch.autograd.functional.hessian(
        lambda o: loss.loss(o.view(20, 3), (INPUTS, TARGETS)), outputs(point)
    )
    torch.testing.assert_close(matrix, J.T @ curvature @ J)


def test_dropout_masks_are_those_of_the_step():
    model = Normalised(dropout=0.5)
    v = tuple(torch.ones_like(t) for t in model.parameters())
    torch.manual_seed(3)
    products, _, _ = module_products(model, GaussNewton())
    torch.manual_seed(4)
    first, again = products.hvp(v), products.hvp(v)
    torch.manual_seed(3)
    other = module_products(model, GaussNewton())[0].hvp(v)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first, other, rtol=0, atol=0)


def test_cost_is_a_graph_each_for_hessian_and_mixed_products():
    products = products_of(NET, UPPER, LOWER, GaussNewton())
    v = (normal(3, 4, seed=8), normal(4, 3, seed=9))
    for _ in range(3):
        products.hvp(v)
    products.mixed(v)
    assert (products.num_gradients, products.num_products) == (2, 4)


@pytest.mark.parametrize("method", [cg, minres, nystrom], ids=["cg", "minres", "nystrom"])
def test_every_solver_takes_gauss_newton_products(method):
    # Linear outputs, for which Gauss-Newton is exact.
    split = SplitLoss(
        lambda x, y: (INPUTS @ y[0], y[0]),
        lambda z, x, y: weighted(z[0], x, y) + 0.05 * (z[1] ** 2).sum(),
    )

    def upper_loss(x, y):
        return (y[0] ** 3).sum()

    problem = by_matrices(
        lambda x, y: upper_loss(x, (y[0].view(3, 3),)),
        lambda x, y: split((UPPER[0], x[0]), (y[0].view(3, 3),)),
        UPPER[1],
        torch.zeros(9, dtype=torch.float64),
    )
    result = hypergradient(
        upper_loss,
        split,
        (UPPER[0], problem.upper),
        (problem.lower.view(3, 3),),
        method=method(40, products=GaussNewton()),
    )
    assert relative_error(result.grads[1], problem.hypergradient) < 1e-9


def test_cg_goes_on_where_the_hessian_would_stop_it():
    args = (lambda x, y: y[0].sum() + y[1].sum(), NET, UPPER, LOWER)
    exact = hypergradient(*args, method=cg(10, damping=1e-2))
    gauss_newton = hypergradient(*args, method=cg(200, damping=1e-2, products=GaussNewton()))
    assert exact.info.status is Status.INDEFINITE
    assert gauss_newton.info.status is Status.CONVERGED
    matrix = dense_gauss_newton(NET, UPPER, LOWER) + 1e-2 * torch.eye(24, dtype=torch.float64)
    v = torch.linalg.solve(matrix, torch.ones(24, dtype=torch.float64))
    mixed = products_of(NET, UPPER, LOWER, Exact()).mixed((v[:12].view(3, 4), v[12:].view(4, 3)))
    for grad, expected in zip(gauss_newton.grads, mixed, strict=True):
        torch.testing.assert_close(grad, -expected)


def test_a_problem_over_modules_uses_it_in_a_round():
    x, y = Vector(normal(2, seed=1)), Vector(normal(2, seed=2))
    matrix = normal(5, 2, seed=3)
    lower_loss = SplitLoss(
        lambda batch: matrix @ y.value - batch * x.value.sum(),
        lambda z, batch: 0.5 * (z**2).sum(),
    )
    lower = Problem(
        "lower",
        lower_loss,
        y,
        torch.optim.SGD(y.parameters(), lr=0.05),
        [normal(5, seed=4)],
        method=cg(10, products=GaussNewton()),
    )
    upper = Problem(
        "upper",
        lambda batch: (y.value**2).sum(),
        x,
        torch.optim.SGD(x.parameters(), lr=0.0),
        [None],
    )
    engine = Engine(ProblemGraph([upper, lower]))
    seen = []
    upper.optimizer.register_step_pre_hook(lambda *_: seen.append(x.value.grad.clone()))
    record = next(iter(engine.rounds(1)))
    info = record.responses["upper <- lower"]
    assert info.status is Status.CONVERGED
    # Linear outputs: dF/dx = (d y*/dx)^T 2 y with y* = (M^T M)^{-1} M^T b sum(x).
    response = torch.linalg.lstsq(matrix, normal(5, seed=4)[:, None]).solution[:, 0]
    expected = (2 * y.value.detach() @ response).expand(2)
    torch.testing.assert_close(seen[0], expected)


def test_a_loss_that_does_not_split_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"says what its outputs are.*give SplitLoss"):
        hypergradient(
            lambda x, y: y[0].sum(),
            lambda x, y: (x[0] * y[0] ** 2).sum(),
            (torch.ones(2),),
            (torch.ones(2),),
            method=cg(3, products=GaussNewton()),
        )


def test_lower_parameters_beside_the_outputs_are_refused():
    split = SplitLoss(logits, lambda z, x, y: weighted(z, x, y) + (y[0] ** 2).sum())
    with pytest.raises(ValueError, match="through its outputs alone"):
        products_of(split, UPPER, LOWER, GaussNewton()).hvp(LOWER)


def test_outputs_cut_from_the_lower_parameters_are_an_error():
    split = SplitLoss(lambda x, y: logits(x, y).detach(), weighted)
    with pytest.raises(RuntimeError, match="depend on no lower parameter"):
        products_of(split, UPPER, LOWER, GaussNewton()).hvp(LOWER)


def test_outputs_of_another_type_are_refused():
    split = SplitLoss(lambda x, y: {"logits": logits(x, y)}, lambda z, x, y: z["logits"].sum())
    with pytest.raises(TypeError, match="a tensor or a tuple of tensors, got dict"):
        products_of(split, UPPER, LOWER, GaussNewton()).hvp(LOWER)
    with pytest.raises(TypeError, match="loss must be callable, got None"):
        SplitLoss(logits, None)


def test_an_object_with_the_two_functions_needs_no_split_loss():
    class Model:
        def outputs(self, x, y):
            return logits(x, y)

        def loss(self, z, x, y):
            return {"loss": weighted(z, x, y)}

        def __call__(self, x, y):
            return self.loss(self.outputs(x, y), x, y)

    v = (normal(3, 4, seed=8), normal(4, 3, seed=9))
    torch.testing.assert_close(
        products_of(Model(), UPPER, LOWER, GaussNewton()).hvp(v),
        products_of(NET, UPPER, LOWER, GaussNewton()).hvp(v),
    )


def test_a_loss_linear_in_its_outputs_has_no_curvature():
    split = SplitLoss(logits, lambda z, x, y: z.sum())
    products = products_of(split, UPPER, LOWER, GaussNewton())
    assert all(torch.equal(p, torch.zeros_like(p)) for p in products.hvp(LOWER))


def test_a_middle_problem_sees_the_response_below_it_in_its_outputs():
    # z* = 3 y, so that |y - x|^2/2 + |z* - 1|^2/2 has the curvature 1 + 9 and y* = (x + 3)/10.
    x, y, z = (Vector(torch.tensor(v, dtype=torch.float64)) for v in (2.0, 0.5, 1.5))

    def still(module):
        return torch.optim.SGD(module.parameters(), lr=0.0)

    middle_loss = SplitLoss(
        lambda batch: torch.stack([y.value - x.value, z.value - 1]),
        lambda outputs, batch: 0.5 * (outputs**2).sum(),
    )
    top_optimizer = still(x)
    graph = ProblemGraph(
        [
            Problem("top", lambda batch: 7 * y.value, x, top_optimizer, [None]),
            Problem(
                "middle", middle_loss, y, still(y), [None], method=cg(3, products=GaussNewton())
            ),
            Problem(
                "bottom",
                lambda batch: 0.5 * (z.value - 3 * y.value) ** 2,
                z,
                still(z),
                [None],
                method=dense(),
            ),
        ]
    )
    seen = []
    top_optimizer.register_step_pre_hook(lambda *_: seen.append(float(x.value.grad)))
    Engine(graph).run(1)
    assert seen[0] == pytest.approx(7 / 10)
