"""The check of hypergradients: what is right passes, each planted fault fails with its symptom.

Every fault is a method or a rule for products that is wrong in exactly one way. The numbers of a
report are held to closed forms.
"""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from oracles import GRAPHS, NestedQuadratics, Vector, cosine, logistic, relative_error, ridge
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from blo import (
    Engine,
    Exact,
    FiniteDifference,
    Implicit,
    Info,
    OneStep,
    Problem,
    ProblemGraph,
    Requirements,
    Response,
    Solution,
    Status,
    alternating,
    cg,
    check_hypergradient,
    darts,
    dense,
    hypergradient,
    minres,
    neumann,
    sama,
    t1t2,
    unrolled,
)
from blo.derivatives.random_state import RandomState
from blo.linear.tensors import axpy, dot, leaves, norm, scale, subtract, zeros_like

EVERYTHING = 64  # directions, more than any problem here has upper numbers


def check(problem, method, **settings):
    """The report on a two-level problem, the lower level started at ones."""
    start = (torch.ones_like(problem.lower),)
    losses = problem.upper_loss, problem.lower_loss
    return check_hypergradient(*losses, (problem.upper,), start, method=method, **settings)


# Right methods pass.


@pytest.mark.parametrize("method", [dense(), cg(60), minres(60)], ids=["dense", "cg", "minres"])
@pytest.mark.parametrize("problem", [ridge, logistic])
def test_implicit_methods_pass_on_convex_problems(problem, method):
    report = check(problem(), method)
    assert not report.symptoms(1e-8), str(report)
    assert report.solved is None
    assert report.claimed.residual < 1e-11
    assert not report.mixed_vanished


class Net(nn.Module):
    """Two tanh layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    def forward(self, x):
        return self.layers(x)


class Transformer(nn.Module):
    """One encoder layer of torch, 183 parameters."""

    def __init__(self, dropout=0.0):
        super().__init__()
        encoder = nn.TransformerEncoderLayer(
            4, 2, 8, dropout=dropout, activation="gelu", batch_first=True
        )
        self.layers = encoder
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layers(x).mean(1))


def examples(*shape, classes, number=1, dtype=torch.float64, seed=1):
    """Batches whose classes depend on the inputs, as a batch a split."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(shape[-1], classes, generator=generator)
    batches = []
    for _ in range(2 * number):
        x = torch.randn(*shape, generator=generator)
        flat = x if x.dim() == 2 else x.mean(1)
        batches.append((x.to(dtype), (flat @ rule).argmax(-1)))
    return batches[:number], batches[number:]


def weighted(
    net,
    method,
    lower,
    upper,
    *,
    optimizer=None,
    classes=3,
    penalty=0.05,
    engine=None,
    captured=False,
    **problem,
):
    """A network below one weight a class; the engine."""
    weights = Vector(torch.linspace(-0.3, 0.3, classes).to(next(net.parameters())))

    def lower_loss(batch):
        batch = lower[0] if captured else batch  # which the check cannot cast
        each = functional.cross_entropy(net(batch[0]), batch[1], reduction="none")
        return (weights.value.exp()[batch[1]] * each).mean()

    def upper_loss(batch):
        return functional.cross_entropy(net(batch[0]), batch[1])

    if optimizer is None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=penalty)
    top = torch.optim.SGD(weights.parameters(), lr=0.1)
    graph = ProblemGraph(
        [
            Problem("upper", upper_loss, (net, weights), top, upper),
            Problem(
                "lower", lower_loss, (net, weights), optimizer, lower, method=method, **problem
            ),
        ]
    )
    return Engine(graph, **(engine or {}))


@pytest.mark.parametrize("method", [dense(), cg(200)], ids=["dense", "cg"])
def test_implicit_methods_pass_on_a_network_with_weight_decay(method):
    lower, upper = examples(20, 3, classes=2)
    report = check_hypergradient(weighted(Net(), method, lower, upper, classes=2))
    assert not report.symptoms(1e-7), str(report)


def test_implicit_methods_pass_on_a_network_of_plain_functions():
    (lower,), (upper,) = examples(20, 3, classes=2)
    net = Net()
    names = list(dict(net.named_parameters()))
    logits = lambda y, x: torch.func.functional_call(net, dict(zip(names, y, strict=True)), (x,))

    def lower_loss(x, y):
        penalty = sum(x[0][i].exp() * t.square().sum() for i, t in enumerate(y))
        return functional.cross_entropy(logits(y, lower[0]), lower[1]) + penalty

    upper_loss = lambda x, y: functional.cross_entropy(logits(y, upper[0]), upper[1])
    x = (torch.full((4,), -4.0).double(),)
    y = tuple(t.detach() for t in net.parameters())
    report = check_hypergradient(upper_loss, lower_loss, x, y, method=dense())
    assert not report.symptoms(1e-7), str(report)
    assert report.complete


def test_an_implicit_method_passes_on_a_transformer():
    lower, upper = examples(12, 3, 4, classes=3)
    report = check_hypergradient(weighted(Transformer().double(), minres(400), lower, upper))
    assert not report.symptoms(1e-6), str(report)
    assert any("scaled_dot_product_flash_attention" in note for note in report.notes)


def nested(reads, method, *, distance=0.1, steps=1, methods=None):
    """Nested quadratics near their solution; the engine, and the hypergradient at the solution."""
    quadratics = NestedQuadratics(reads)
    values, reference = quadratics.solve()
    modules = {
        k: Vector(v + (0.0 if k == quadratics.names[0] else distance)) for k, v in values.items()
    }
    problems = []
    for k in quadratics.names:
        loss = lambda _, k=k: quadratics.loss(k, {n: m.value for n, m in modules.items()})
        optimizer = torch.optim.SGD(modules[k].parameters(), lr=0.05)
        chosen = (methods or {}).get(k, method)
        pace = 1 if k == quadratics.names[0] else steps
        problems.append(Problem(k, loss, modules[k], optimizer, [None], method=chosen, steps=pace))
    return Engine(ProblemGraph(problems)), reference


@pytest.mark.parametrize("name", ["chain of 3", "3, skip connection", "diamond"])
@pytest.mark.parametrize("method", [dense(), cg(30)], ids=["dense", "cg"])
def test_implicit_methods_pass_at_every_level(name, method):
    report = check_hypergradient(nested(GRAPHS[name], method)[0])
    assert not report.symptoms(1e-8), str(report)
    assert len(report.methods) == len(GRAPHS[name]) - 1


def test_a_middle_problem_that_reads_below_is_solved_with_the_response_of_what_is_below():
    engine, _ = nested(GRAPHS["3, middle reads below"], dense())
    assert not check_hypergradient(engine).symptoms(1e-6)
    report = check_hypergradient(engine, problem="y")
    assert report.problem == "y"
    assert list(report.methods) == ["z"]
    assert not report.symptoms(1e-8), str(report)
    engine.graph["y"].through_response = False
    with pytest.warns(UserWarning, match="biased"):
        biased = Engine(ProblemGraph(engine.graph.problems))
    assert check_hypergradient(biased).relative_error > 0.01


# The numbers of a report.


@pytest.mark.parametrize(
    "problem, method",
    [(logistic, neumann(5)), (ridge, cg(2)), (ridge, cg(60, damping=0.3))],
    ids=["logistic, neumann", "ridge, cg", "ridge, damped cg"],
)
def test_errors_are_those_of_the_closed_form(problem, method):
    p = problem()
    report = check(p, method, num_directions=EVERYTHING)
    value = hypergradient(p.upper_loss, p.lower_loss, (p.upper,), (p.lower,), method=method).grads[
        0
    ]
    assert report.complete
    assert report.relative_error == pytest.approx(relative_error(value, p.hypergradient), rel=1e-6)
    assert report.cosine == pytest.approx(cosine(value, p.hypergradient), abs=1e-8)
    ratio = float(value.norm() / p.hypergradient.norm())
    assert report.scale_ratio == pytest.approx(ratio, rel=1e-6)
    estimate = check(p, method, num_directions=6)
    assert not estimate.complete
    assert 0.5 < estimate.relative_error / report.relative_error < 2.0


def test_the_direct_part_belongs_to_the_whole_error_alone():
    f = lambda x, y: ((y[0] - 1) ** 2).sum() + 100 * (x[0] ** 2).sum()
    g = lambda x, y: ((y[0] - x[0]) ** 2).sum()
    x, y = (torch.tensor([0.5, 0.2]).double(),), (torch.zeros(2).double(),)
    wrong = Implicit(dense().solver, Altered(lambda v: scale(1.1, v)))
    report = check_hypergradient(f, g, x, y, method=wrong)
    assert report.relative_error == pytest.approx(0.1, abs=1e-8)
    response, direct = 2 * (x[0] - 1), 200 * x[0]
    expected = float(0.1 * response.norm() / (response + direct).norm())
    assert report.claimed.total_error == pytest.approx(expected, abs=1e-8)


def test_the_solver_of_the_caller_is_used_and_held_to_account():
    p = ridge()
    calls = []

    def solve(x):
        calls.append(x)
        g = lambda w: p.lower_loss(x, (w,))
        zero = torch.zeros_like(p.lower)
        hessian = torch.autograd.functional.hessian(g, zero)
        return (-torch.linalg.solve(hessian, torch.autograd.functional.jacobian(g, zero)),)

    report = check(p, dense(), solve=solve)
    assert not report.symptoms(1e-8), str(report)
    assert len(calls) > 8
    inexact = check(p, dense(), solve=lambda x: (solve(x)[0] * 1.01,))
    assert any("cannot be relied on" in s for s in inexact.symptoms())
    with pytest.raises(ValueError, match=r"solve must return tensors of shapes \[\(10,\)\]"):
        check(p, dense(), solve=lambda x: (x[0][:3],))


# Methods that differentiate lower steps: held to the steps, and to the solution.


@pytest.mark.parametrize(
    "problem, method",
    [(logistic, t1t2()), (ridge, darts()), (ridge, t1t2(0.3))],
    ids=["logistic, t1t2", "ridge, darts", "ridge, t1t2(0.3)"],
)
def test_one_step_methods_are_held_to_one_step_and_to_the_solution(problem, method):
    p = problem()
    report = check(p, method)
    assert "one gradient step" in report.reference
    assert not report.symptoms(1e-6), str(report)
    value = hypergradient(p.upper_loss, p.lower_loss, (p.upper,), (p.lower,), method=method).grads[
        0
    ]
    report = check(p, method, num_directions=EVERYTHING)
    assert "solved again" in report.solved.reference
    expected = relative_error(value, p.hypergradient)
    assert report.solved.relative_error == pytest.approx(expected, rel=1e-5)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.02),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize(
    "method, kind",
    [
        (darts(), "momentum"),
        (t1t2(), "adam"),
        (sama(), "adam"),
        (sama(), "momentum"),
        (unrolled(), "adamw"),
        (unrolled(2), "momentum"),
    ],
    ids=repr,
)
def test_methods_through_steps_are_held_to_the_steps_of_the_optimizer(method, kind):
    lower, upper = examples(20, 3, classes=2, number=2)
    net = Net()
    optimizer = OPTIMIZERS[kind](net.parameters())
    engine = weighted(net, method, lower, upper, optimizer=optimizer, classes=2, steps=3)
    engine.run(2)
    beside = kind == "adamw"  # its loss has no minimum
    report = check_hypergradient(engine, to_solution=not beside)
    assert not report.symptoms(1e-5), str(report)
    assert beside == any("decays weights beside its loss" in note for note in report.notes)
    assert (report.solved is None) if beside else (report.solved.relative_error > 0.1)


def test_a_graph_of_both_kinds_is_held_to_both():
    engine, _ = nested(GRAPHS["chain of 3"], cg(30), methods={"z": darts()})
    report = check_hypergradient(engine)
    assert report.reference == "differences, 'y' solved again; 'z' one gradient step taken again"
    assert not report.symptoms(1e-7), str(report)
    assert report.solved.relative_error > 0.01


@dataclass(frozen=True)
class AtTheSteppedPoint:
    """One step, its mixed product taken after the step instead of before."""

    requirements = Requirements(before=True)

    def response(self, context, cotangent, state):
        rate = context.learning_rates[0]
        products = Exact().at(context.lower, context.after)
        return Response(scale(-rate, products.mixed(cotangent)), None, Info("wrong", "after"))


def test_a_product_at_the_wrong_point_of_the_step_fails():
    lower, upper = examples(20, 3, classes=2)
    engine = weighted(Net(), AtTheSteppedPoint(), lower, upper, classes=2)
    report = check_hypergradient(engine)
    assert not report.passed, str(report)
    assert report.relative_error > 1e-3
    assert "points elsewhere" in report.symptoms()[0]


# Planted faults.


@dataclass(frozen=True)
class Altered:
    """Exact products, but for a change to the mixed one."""

    change: object
    needs_upper_gradient = False

    def at(self, lower, point):
        products = Exact().at(lower, point)
        right = products.mixed
        products.mixed = lambda v: self.change(right(v))
        return products


def altered(change):
    return Implicit(dense().solver, Altered(change))


def test_a_flipped_sign_fails_as_such():
    report = check(ridge(), altered(lambda v: scale(-1.0, v)))
    assert not report.passed
    assert report.cosine == pytest.approx(-1.0, abs=1e-8)
    assert report.scale_ratio == pytest.approx(1.0, abs=1e-6)
    assert report.relative_error == pytest.approx(2.0, abs=1e-6)
    assert "a sign is flipped" in report.symptoms()[0]


def test_a_wrong_scale_fails_as_such():
    report = check(ridge(), altered(lambda v: scale(2.0, v)))
    assert not report.passed
    assert report.cosine == pytest.approx(1.0, abs=1e-8)
    assert report.scale_ratio == pytest.approx(2.0, abs=1e-6)
    assert report.symptoms() == ("the response is 2 times as long as it should be",)


@pytest.mark.parametrize("method", [altered(zeros_like), alternating()], ids=["zeros", "control"])
def test_a_missing_mixed_term_fails_as_such(method):
    report = check(ridge(), method)
    assert not report.passed
    assert report.mixed_vanished
    assert report.relative_error == pytest.approx(1.0, abs=1e-8)
    assert "the mixed derivative vanished" in report.symptoms()[0]


def test_a_missing_mixed_term_is_told_from_a_large_direct_part():
    p = ridge()
    direct = lambda x, y: p.upper_loss(x, y) + (x[0] ** 2).sum()
    problem = replace(p, upper_loss=direct)
    assert not check(problem, dense()).symptoms(1e-8)
    report = check(problem, altered(zeros_like))
    assert report.claimed.total_error < 1e-3
    assert report.mixed_vanished
    assert report.symptoms(1e-2), str(report)


@dataclass(frozen=True)
class StaleCG:
    """Conjugate gradients that return the iterate before the last, with the last one's residual."""

    def __call__(self, matvec, rhs, init=None):
        x, r, p = zeros_like(rhs), rhs, rhs
        previous, used = x, 0
        while float(norm(r)) > 1e-13 * float(norm(rhs)) and used < 100:
            hp = matvec(p)
            used += 1
            alpha = float(dot(r, r)) / float(dot(p, hp))
            previous, x = x, axpy(alpha, p, x)
            following = axpy(-alpha, hp, r)
            p = axpy(float(dot(following, following)) / float(dot(r, r)), p, following)
            r = following
        return Solution(previous, Status.CONVERGED, used, float(norm(r)) / float(norm(rhs)))


def test_a_stale_iterate_fails_and_the_solver_is_named():
    f = lambda x, y: ((y[0] - 1) ** 2).sum()
    h = torch.diag(torch.tensor([1.0, 1.5, 4.0]).double())
    g = lambda x, y: 0.5 * (y[0] - x[0]) @ h @ (y[0] - x[0])
    x, y = (torch.tensor([0.5, 1.5, -1.0]).double(),), (torch.zeros(3).double(),)
    report = check_hypergradient(f, g, x, y, method=Implicit(StaleCG()))
    assert not report.passed
    (solve,) = report.solves
    assert solve.stale
    assert solve.measured > 1e-3
    assert solve.reported < 1e-12
    assert any("not the iterate it stands at" in s for s in report.symptoms())
    identity = lambda x, y: ((y[0] - x[0]) ** 2).sum()  # A = 2 I: one step, and nothing is left
    report = check_hypergradient(f, identity, x, y, method=Implicit(StaleCG()))
    assert report.mixed_vanished
    assert report.solves[0].measured == pytest.approx(1.0)
    assert any("not the iterate it stands at" in s for s in report.symptoms())


def test_a_stale_iterate_is_traced_to_its_problem_in_a_graph():
    engine, _ = nested(GRAPHS["chain of 3"], cg(30), methods={"z": Implicit(StaleCG())})
    report = check_hypergradient(engine)
    assert not report.passed
    assert [s.problem for s in report.solves if s.stale] == ["z"]
    assert any("the solver of 'z' returns" in s for s in report.symptoms())


@dataclass(frozen=True)
class FreshMasks:
    """Finite differences whose two passes draw dropout masks of their own."""

    needs_upper_gradient = False

    def at(self, lower, point):
        losses = tuple(_Unfixed(o) for o in lower.losses)
        return FiniteDifference().at(replace(lower, losses=losses), point)


@dataclass(frozen=True)
class _Unfixed:
    objective: object
    precision = None

    def scope(self, upper, lower):
        return replace(self.objective, random_state=RandomState.draw()).scope(upper, lower)


def test_fresh_dropout_masks_fail_by_the_change_with_the_generator():
    lower, upper = examples(20, 3, classes=2)
    net = nn.Sequential(Net().layers[0], nn.Dropout(0.3), nn.Tanh(), nn.Linear(5, 2)).double()
    right = check_hypergradient(weighted(net, darts(), lower, upper, classes=2))
    assert not right.symptoms(1e-5), str(right)
    assert right.rng_sensitivity == 0.0
    assert any("draws random numbers" in note for note in right.notes)
    wrong = OneStep(products=FreshMasks())
    engine = weighted(net, wrong, lower, upper, classes=2)
    report = check_hypergradient(engine, to_solution=False)
    assert not report.passed
    assert report.solved is None
    assert report.rng_sensitivity > 0.1
    assert "different dropout masks" in report.symptoms()[0]


class Dora(nn.Module):
    """A linear layer of frozen weight, adapted in magnitude and direction as stock PEFT does it."""

    def __init__(self, *, detached, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=generator).double()
        self.register_buffer("weight", normal(4, 3))
        self.a = nn.Parameter(0.5 * normal(2, 3))
        self.b = nn.Parameter(0.5 * normal(4, 2))
        self.magnitude = nn.Parameter(self.weight.norm(dim=1))
        self.detached = detached

    def forward(self, x):
        direction = self.weight + self.b @ self.a
        length = direction.norm(dim=1, keepdim=True)
        length = length.detach() if self.detached else length
        return x @ (self.magnitude[:, None] * direction / length).T


@pytest.mark.parametrize("detached", [False, True])
def test_a_detached_norm_fails_by_the_gradient_against_the_loss(detached):
    layer = Dora(detached=detached)
    shifted = layer.weight + 0.5 * torch.randn(4, 3).double()
    inputs = torch.randn(2, 40, 3).double()
    lower, upper = ((x, (x @ shifted.T).argmax(-1)) for x in inputs)
    net = nn.Sequential(layer)
    loss = lambda batch: functional.cross_entropy(net(batch[0]), batch[1])
    penalised = lambda batch: loss(batch) + 0.01 * ((layer.a**2).sum() + (layer.b**2).sum())
    top = torch.optim.SGD([layer.magnitude], lr=0.1)
    below = torch.optim.SGD([layer.a, layer.b], lr=0.1)
    graph = ProblemGraph(
        [
            Problem("magnitude", loss, net, top, [upper]),
            Problem("direction", penalised, net, below, [lower], method=minres(50)),
        ]
    )
    report = check_hypergradient(Engine(graph))
    assert (not report.symptoms(1e-6)) == (not detached), str(report)
    if detached:
        assert min(report.gradient_errors.values()) > 0.01
        assert "detached" in report.symptoms()[0]
    else:
        assert max(report.gradient_errors.values()) < 1e-6


@pytest.mark.parametrize("stock", [True, False])
def test_dora_of_stock_peft_fails_where_bidora_passes(stock):
    peft = pytest.importorskip("peft")
    adapters = pytest.importorskip("adapters")
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs = torch.randn(2, 40, 3).double()
    train, held = ((x, plain(x + 0.3 * torch.randn_like(x)).argmax(-1)) for x in inputs)
    options = {"r": 1, "target_modules": ["0"], "init_lora_weights": False}
    chosen = peft.LoraConfig if stock else adapters.BiDoraConfig
    settings = chosen(**options, **({"use_dora": True} if stock else {}))
    net = peft.get_peft_model(plain, settings, autocast_adapter_dtype=False)
    parts = lambda *kinds: [
        p for n, p in net.named_parameters() if any(kind in n for kind in kinds)
    ]
    loss = lambda batch: functional.cross_entropy(net(batch[0]), batch[1])
    penalty = lambda: 0.05 * sum(p.square().sum() for p in parts("lora_A", "lora_B"))
    penalised = lambda batch: loss(batch) + penalty()
    upper = torch.optim.SGD(parts("magnitude"), lr=0.1)
    lower = torch.optim.SGD(parts("lora_A", "lora_B"), lr=0.1)
    graph = ProblemGraph(
        [
            Problem("magnitude", loss, net, upper, [held]),
            Problem("direction", penalised, net, lower, [train], method=dense()),
        ]
    )
    report = check_hypergradient(Engine(graph))
    assert (not report.symptoms(1e-6)) != stock, str(report)
    assert (max(report.gradient_errors.values()) > 0.01) == stock
    assert not stock or "detached" in report.symptoms()[0]


@dataclass(frozen=True)
class OneContext:
    """Finite differences that edit the weights in place inside one autocast context."""

    needs_upper_gradient = False

    def at(self, lower, point):
        products = FiniteDifference().at(lower, point)
        products.mixed = lambda v: self.mixed(lower.losses[0], point, v)
        return products

    def mixed(self, objective, point, v):
        x, y = leaves(point.upper), leaves(t.clone() for t in point.lower)
        e = 0.1 * float(norm(point.lower)) / float(norm(v))
        sides = []
        with torch.autocast("cpu", dtype=torch.bfloat16), objective.scope(x, y):
            for move in (e, -2 * e):
                with torch.no_grad():
                    for weight, direction in zip(y, v, strict=True):
                        weight.add_(direction, alpha=move)
                loss = objective.loss(objective.batch)
                sides.append(torch.autograd.grad(loss, x, retain_graph=True))
        return scale(0.5 / e, subtract(*sides))


def test_a_perturbation_inside_one_autocast_context_fails_as_such():
    lower, upper = examples(40, 3, classes=3, dtype=torch.float32)
    for method, passes in ((darts(), True), (OneStep(products=OneContext()), False)):
        torch.manual_seed(0)
        net = nn.Linear(3, 3, bias=False)
        engine = weighted(net, method, lower, upper, engine={"precision": torch.bfloat16})
        report = check_hypergradient(engine)
        assert report.passed == passes, str(report)
        assert report.mixed_vanished != passes
        assert report.tol == 0.2
        assert any("autocast to bfloat16 is off" in note for note in report.notes)
    assert "one autocast context" in report.symptoms()[0]


def test_a_lower_problem_without_a_minimum_is_no_reference():
    p = logistic()
    separable = lambda x, y: functional.softplus(-y[0] * x[0].exp()).sum()  # falls for ever
    report = check_hypergradient(p.upper_loss, separable, (p.upper,), (p.lower,), method=cg(3))
    assert not report.passed
    assert any("cannot be relied on" in s for s in report.symptoms())
    assert any("no isolated minimum" in note for note in report.notes)


def test_a_check_in_which_nothing_responds_does_not_pass():
    f = lambda x, y: ((y[0] - 1) ** 2).sum() + (x[0] ** 2).sum()
    g = lambda x, y: ((y[0] - 2) ** 2).sum() + (x[0] ** 3).sum()
    x, y = (torch.ones(2).double(),), (torch.zeros(2).double(),)
    report = check_hypergradient(f, g, x, y, method=darts())
    assert report.mixed_vanished
    assert not report.passed
    assert "nothing was checked" in report.symptoms()[0]


# Types.


def test_float32_engines_are_held_to_references_in_float64():
    lower, upper = examples(40, 3, classes=3, dtype=torch.float32)
    net = nn.Linear(3, 3)
    report = check_hypergradient(weighted(net, dense(), lower, upper))
    assert report.dtype == torch.float32
    assert report.tol == 0.02
    assert not report.symptoms(1e-4), str(report)
    assert report.claimed.uncertainty < 1e-8
    assert any("references in float64" in note for note in report.notes)


def test_losses_that_hold_to_float32_are_differenced_in_it():
    (lower,), (upper,) = examples(40, 3, classes=3, dtype=torch.float32)
    net = nn.Linear(3, 3)
    engine = weighted(net, dense(), [lower], [upper], captured=True)
    report = check_hypergradient(engine)
    assert report.passed, str(report)
    assert report.claimed.uncertainty > 1e-8
    assert any("not computed in float64: the loss of" in note for note in report.notes)
    assert any("a float64 copy" in note for note in report.notes)


# The engine is left as it was found.


def clip(net):
    nn.utils.clip_grad_norm_(net.parameters(), 0.5)


def eventful(method, *, clipped, seed=0):
    """An engine with all that a check could disturb: dropout, batch statistics, Adam, a scheduler,
    shuffled loaders with and without a generator of their own, a clipping hook.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3)
    ).double()
    (lower, more), (upper, rest) = examples(8, 3, classes=3, number=2)
    pooled = TensorDataset(torch.cat([lower[0], more[0]]), torch.cat([lower[1], more[1]]))
    held = TensorDataset(torch.cat([upper[0], rest[0]]), torch.cat([upper[1], rest[1]]))
    generator = torch.Generator().manual_seed(3)
    optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(0.05), weight_decay=0.02)
    if clipped:
        optimizer.register_step_pre_hook(lambda *_: clip(net))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)
    return weighted(
        net,
        method,
        DataLoader(pooled, 4, shuffle=True, generator=generator),
        DataLoader(held, 4, shuffle=True),
        optimizer=optimizer,
        steps=2,
        scheduler=scheduler,
    )


def identical(a, b):
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(identical, a, b))
    return a == b


@pytest.mark.filterwarnings("ignore:a step of the optimizer:UserWarning")  # clipped by a hook
@pytest.mark.parametrize("method", [cg(3, warm_start=True), darts(), unrolled()], ids=repr)
@pytest.mark.parametrize("rounds", [0, 3])
@pytest.mark.filterwarnings("ignore:a step of the optimizer of problem 'lower'")
def test_the_engine_is_left_bit_for_bit(rounds, method):
    engines = [eventful(method, clipped=method != unrolled()) for _ in range(2)]
    for engine in engines if rounds else ():
        torch.manual_seed(7)
        engine.run(rounds)
    engine, twin = engines
    before = copy.deepcopy(engine.state_dict())
    assert identical(before, twin.state_dict())
    random = torch.get_rng_state()
    optimizer = engine.graph["lower"].optimizer
    held = [*optimizer.param_groups, *optimizer.state.values()]
    grads = [p.grad for p in engine.graph["lower"].parameters]
    check_hypergradient(engine, num_directions=1)
    assert identical(engine.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), random)
    now = [*optimizer.param_groups, *optimizer.state.values()]
    assert all(a is b for a, b in zip(held, now, strict=True))
    after = [p.grad for p in engine.graph["lower"].parameters]
    assert all(a is b for a, b in zip(grads, after, strict=True))
    for e in (engine, twin):
        torch.set_rng_state(random)
        e.run(2)
    assert identical(engine.state_dict(), twin.state_dict())


def test_an_engine_is_put_back_after_an_error_too():
    engine = weighted(Net(), dense(max_size=3), *examples(20, 3, classes=2), classes=2)
    before = copy.deepcopy(engine.state_dict())
    with pytest.raises(ValueError, match="max_size"):
        check_hypergradient(engine)
    assert identical(engine.state_dict(), before)


# Batches and arguments.


def test_given_batches_are_averaged_in_place_of_the_first():
    lower, upper = examples(10, 3, classes=2, number=3)
    whole = tuple(torch.cat(tensors) for tensors in zip(*lower, strict=True))
    torch.manual_seed(0)
    engine = weighted(Net(), dense(), [whole], upper, classes=2)
    one = check_hypergradient(engine)
    torch.manual_seed(0)
    engine = weighted(Net(), dense(), lower, upper, classes=2)
    several = check_hypergradient(engine, batches={"lower": lower})
    first = check_hypergradient(engine)
    assert not one.symptoms(1e-6)
    assert not several.symptoms(1e-6)
    assert several.claimed.response == pytest.approx(one.claimed.response, rel=1e-6)
    assert abs(first.claimed.response / one.claimed.response - 1) > 1e-3


def test_batches_that_end_must_be_given():
    lower, upper = examples(10, 3, classes=2)
    engine = weighted(Net(), dense(), iter(lower * 5), upper, classes=2)
    with pytest.raises(ValueError, match=r"pass some as batches=\{'lower': \[\.\.\.\]\}"):
        check_hypergradient(engine)
    assert not check_hypergradient(engine, batches={"lower": lower}).symptoms(1e-6)


def test_misuse_names_the_argument():
    p = ridge()
    engine = weighted(Net(), dense(), *examples(10, 3, classes=2), classes=2)
    with pytest.raises(TypeError, match="method does not go with an engine"):
        check_hypergradient(engine, method=dense())
    with pytest.raises(TypeError, match="batches does not go with plain functions"):
        check(p, dense(), batches={})
    with pytest.raises(TypeError, match="upper_loss, lower_loss, upper and lower"):
        check_hypergradient(p.upper_loss)
    with pytest.raises(ValueError, match="the graph has no problem 'middle'"):
        check_hypergradient(engine, problem="middle")
    with pytest.raises(ValueError, match="no problem below it responds"):
        check_hypergradient(engine, problem="lower")
    with pytest.raises(ValueError, match="num_directions must be an integer of at least 1, got 0"):
        check(p, dense(), num_directions=0)
    with pytest.raises(ValueError, match="radius must be positive"):
        check(p, dense(), radius=-1.0)


def test_a_failure_raises_and_prints_where_asked(capsys):
    p = ridge()
    assert capsys.readouterr().out == ""
    report = check(p, dense(), verbose=True, raise_on_failure=True)
    assert capsys.readouterr().out == f"{report}\n"
    with pytest.raises(RuntimeError, match=r"FAILED at tolerance 0\.0001"):
        check(p, neumann(1), raise_on_failure=True)
    assert capsys.readouterr().out == ""
    report = check(p, neumann(1))
    assert not report.passed
    assert not report.symptoms(1.0)
    text = str(report)
    for part in ("Neumann(max_products=1", "relative error", "ran out of products", "float64"):
        assert part in text


def test_checks_run_where_the_problem_is(device):
    p = ridge()
    at = lambda t: t.to(device)
    data = [at(t) for t in (torch.randn(20, 4).double(), torch.randn(20).double())]
    f = lambda x, y: ((data[0] @ y[0] - data[1]) ** 2).mean()
    g = lambda x, y: f(x, y) + (x[0].exp() * y[0] ** 2).sum()
    x, y = (at(torch.full((4,), -2.0).double()),), (at(torch.zeros(4).double()),)
    assert not check_hypergradient(f, g, x, y, method=dense()).symptoms(1e-7)
    assert p.upper.device.type == "cpu"
    net = Net().to(device)
    engine = weighted(net, dense(), *examples(20, 3, classes=2), classes=2)
    assert not check_hypergradient(Engine(engine.graph)).symptoms(1e-6)
