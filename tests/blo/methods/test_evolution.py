"""Evolution strategies: unbiased, cheaper in variance by pairs, and right for losses without
gradient."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import NestedQuadratics, Vector, finite_difference
from torch import nn

from blo import Engine, Evolution, Problem, ProblemGraph, cg, evolution, hypergradient

DOUBLE = torch.float64
# Standard errors. The directions are seeded: 120 of them are 1.7 off at most, and 3.2 at least if
# the estimate is twice as large.
SURE = 2.5


class Kept:
    """A method that keeps what it was asked, and answers by another.

    What it keeps shares memory with the parameters: valid as long as they rest.
    """

    def __init__(self, method):
        self.method = method
        self.requirements = method.requirements
        self.asked = None

    def response(self, context, cotangent, state):
        self.asked = (context, cotangent)
        return self.method.response(context, cotangent, state)


def draws(problems, method, num):
    """Single-direction estimates for the response of the last problem in one round."""
    kept = Kept(replace(method, num_directions=1))
    problems[-1].method = kept
    Engine(ProblemGraph(problems)).run(1)
    context, cotangent = kept.asked
    state, values = None, []
    for _ in range(num):
        value, state, _ = kept.method.response(context, cotangent, state)
        values.append(torch.cat([v.reshape(-1) for v in value]))
    return torch.stack(values)


def z_scores(values, reference):
    """The distance of the mean from the reference, in standard errors."""
    error = values.std(0) / math.sqrt(len(values))
    return ((values.mean(0) - reference) / error).abs()


# A quadratic: the smoothed gradient is the gradient.

H = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]], dtype=DOUBLE)
C = torch.tensor([[1.0, 0.5], [-0.3, 0.2], [0.4, -1.0]], dtype=DOUBLE)
X = torch.tensor([0.7, -0.4], dtype=DOUBLE)
Y = torch.tensor([0.5, -1.0, 0.2], dtype=DOUBLE)


def lower_loss(x, y):
    return 0.5 * y @ H @ y + y @ C @ x


def upper_loss(x, y):
    return 0.5 * ((y - 1) ** 2).sum() + 0.3 * (x * y[:2]).sum() + 0.7 * (x**2).sum()


def quadratic(*, blind, optimizer=torch.optim.SGD, num_steps=2, **options):
    """A two-level problem; with `blind` the upper loss has no gradient."""
    upper, lower = Vector(X.clone()), Vector(Y.clone())

    def loss(batch):
        value = upper_loss(upper.value, lower.value)
        return value.detach() if blind else value

    options = options or {"lr": 0.2}
    return [
        Problem(
            "upper",
            loss,
            upper,
            torch.optim.SGD(upper.parameters(), lr=0.0),
            [None],
            reads=["lower"],
        ),
        Problem(
            "lower",
            lambda _: lower_loss(upper.value, lower.value),
            lower,
            optimizer(lower.parameters(), **options),
            [None],
            steps=num_steps,
            method=evolution(),
        ),
    ]


def trained(x, optimizer=torch.optim.SGD, num_steps=2, **options):
    """The lower parameters after training at `x`, by torch's own optimizer."""
    y = Y.clone().requires_grad_()
    stepping = optimizer([y], **(options or {"lr": 0.2}))
    for _ in range(num_steps):
        y.grad = H @ y.detach() + C @ x
        stepping.step()
    return y.detach()


def total(x, **settings):
    return upper_loss(x, trained(x, **settings))


def indirect(x, **settings):
    return upper_loss(X, trained(x, **settings))


@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_without_a_gradient_of_the_upper_loss_the_estimate_is_unbiased_for_the_total(
    sigma, antithetic
):
    values = draws(quadratic(blind=True), Evolution(sigma=sigma, antithetic=antithetic), 120)
    assert float(z_scores(values, finite_difference(total, X)).max()) < SURE


@pytest.mark.parametrize("linearised", [True, False])
def test_with_a_gradient_of_the_upper_loss_the_estimate_is_unbiased_for_the_indirect_part(
    linearised,
):
    values = draws(quadratic(blind=False), Evolution(sigma=0.5, linearised=linearised), 120)
    z = z_scores(values, finite_difference(indirect, X))
    assert float(z.max()) < SURE
    assert float(z_scores(values, finite_difference(total, X)).max()) > 4


@pytest.mark.parametrize(
    "optimizer, options",
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}),
        (torch.optim.Adam, {"lr": 0.1}),
        (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.3}),
    ],
    ids=["SGD", "Adam", "AdamW"],
)
def test_the_steps_are_those_of_the_optimizer(optimizer, options):
    settings = {"optimizer": optimizer, "num_steps": 3, **options}
    values = draws(quadratic(blind=True, **settings), Evolution(sigma=1e-3), 120)
    reference = finite_difference(lambda x: total(x, **settings), X)
    assert float(z_scores(values, reference).max()) < SURE


def test_pairs_have_a_smaller_variance_than_single_shifts():
    def variance(antithetic):
        method = Evolution(sigma=1.0, antithetic=antithetic)
        return float(draws(quadratic(blind=True), method, 60).var(0).sum())

    assert variance(True) < 0.7 * variance(False)


def test_the_estimate_is_the_mean_over_its_directions():
    problems = quadratic(blind=True)
    kept = problems[-1].method = Kept(evolution(5, sigma=0.3))
    Engine(ProblemGraph(problems)).run(1)
    value = kept.method.response(*kept.asked, None).value[0]
    singles = draws(quadratic(blind=True), Evolution(sigma=0.3), 5)
    assert torch.allclose(value, singles.mean(0), rtol=1e-12)


# Losses that are steps.


class Threshold:
    """f = 1[y + direct * x > t] with y = x after one lower step."""

    def __init__(self, direct):
        self.upper = Vector(torch.tensor([0.2], dtype=DOUBLE))
        self.lower = Vector(torch.tensor([-3.0], dtype=DOUBLE))
        self.direct = direct

    def problems(self, t):
        x, y = self.upper, self.lower
        return [
            Problem(
                "upper",
                lambda _: (y.value + self.direct * x.value > t).double().mean(),
                x,
                torch.optim.SGD(x.parameters(), lr=0.0),
                [None],
                reads=["lower"],
            ),
            Problem(
                "lower",
                lambda _: 0.5 * ((y.value - x.value) ** 2).sum(),
                y,
                torch.optim.SGD(y.parameters(), lr=1.0),
                [None],
                method=evolution(),
            ),
        ]


@pytest.mark.parametrize("direct, t", [(0.0, 0.3), (1.0, 0.9)])
def test_the_gradient_of_a_step_is_that_of_the_smoothed_step(direct, t):
    sigma = 0.25
    values = draws(Threshold(direct).problems(t), Evolution(sigma=sigma), 400)
    edge = t / (1 + direct)
    density = math.exp(-0.5 * ((0.2 - edge) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    assert float(z_scores(values, density)) < 4


def accuracy_problem(method, seed=0):
    """The share of one mislabelled group, weighed by the upper level, decides the accuracy."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(60, 2, generator=generator)
    labels = (features[:, 0] > 0).long()
    noisy = labels.clone()
    noisy[20:60] = 1 - labels[20:60]
    groups = torch.arange(60) // 20  # one clean, two mislabelled
    validation = torch.randn(200, 2, generator=generator)
    truth = (validation[:, 0] > 0).long()

    torch.manual_seed(seed)
    net, weights = nn.Linear(2, 2), Vector(torch.zeros(3))

    def errors(_):
        return {"loss": (net(validation).argmax(-1) != truth).float().mean()}

    def weighted(_):
        losses = nn.functional.cross_entropy(net(features), noisy, reduction="none")
        return (weights.value.sigmoid()[groups] * losses).mean()

    return [
        Problem(
            "weights",
            errors,
            weights,
            torch.optim.Adam(weights.parameters(), lr=0.3),
            [None],
            reads=["net"],
        ),
        Problem(
            "net",
            weighted,
            net,
            torch.optim.SGD(net.parameters(), lr=1.0),
            [None],
            steps=5,
            method=method,
        ),
    ]


def test_weights_learnt_from_accuracy_alone_separate_clean_from_mislabelled_examples():
    problems = accuracy_problem(evolution(4, sigma=1.0))
    records = list(Engine(ProblemGraph(problems)).rounds(30))
    weights = problems[0].parameters[0].detach()
    assert records[0].losses["weights"] > 0.5
    assert records[-1].losses["weights"] < 0.1
    assert float(weights[0]) > 0 > float(weights[1:].max())


# Randomness and cost.


def test_directions_leave_torch_s_generators_alone_and_repeat_with_their_seed():
    problems = quadratic(blind=True)
    kept = problems[-1].method = Kept(evolution(2))
    Engine(ProblemGraph(problems)).run(1)
    before = torch.get_rng_state()
    first = kept.method.response(*kept.asked, None)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = kept.method.response(*kept.asked, None)
    following = kept.method.response(*kept.asked, first.state)
    other = evolution(2, seed=1).response(*kept.asked, None)
    assert torch.equal(first.value[0], again.value[0])
    assert not torch.equal(first.value[0], following.value[0])
    assert not torch.equal(first.value[0], other.value[0])


def test_a_run_resumed_from_its_state_continues_bit_for_bit():
    def engine():
        return Engine(ProblemGraph(accuracy_problem(evolution(2, sigma=1.0))))

    whole, first, second = engine(), engine(), engine()
    whole.run(4)
    first.run(2)
    second.load_state_dict(first.state_dict())
    second.run(2)
    pairs = zip(whole.graph.problems, second.graph.problems, strict=True)
    for a, b in pairs:
        for p, q in zip(a.parameters, b.parameters, strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize(
    "blind, settings, expected",
    [
        (True, {}, 4 * (1 + 2 * 3)),
        (False, {}, 4 * (1 + 2 * 3) + 1),
        (True, {"antithetic": False}, 4 * (1 + 3)),
        (True, {"steps": 2}, 2 * (1 + 2 * 3)),
        (False, {"linearised": True}, 4 * (1 + 2 * 3)),
    ],
    ids=["blind", "with a gradient", "one-sided", "truncated", "linearised"],
)
def test_each_setting_costs_what_it_says(blind, settings, expected):
    problems = quadratic(blind=blind, num_steps=4, lr=0.2)
    problems[-1].method = evolution(3, **settings)
    calls, loss = [], problems[-1].loss
    problems[-1].loss = lambda batch: (calls.append(batch), loss(batch))[1]
    graph = ProblemGraph(problems)
    calls.clear()
    record = Engine(graph).run(1)
    info = record.responses["upper <- lower"]
    assert info.num_gradients == expected
    assert len(calls) == 4 + expected - int(not blind and not settings)
    assert record.num_gradients == 4 + expected + int(not blind)


# Deeper graphs.


def chain(reads, *, skip):
    """x -> y -> z with y = 2 x and z = 3 y (+ x), f = (z^2 / 2 + y) without gradient."""
    x, y, z = (Vector(torch.tensor([v], dtype=DOUBLE)) for v in (0.5, 1.0, 0.0))

    def upper(_):
        with torch.no_grad():
            value = 0.5 * z.value**2 + (y.value if "y" in reads else 0)
            return (value + 0.25 * x.value**2).sum()

    def target():
        return 3 * y.value + (x.value if skip else 0)

    sgd = torch.optim.SGD
    return [
        Problem("x", upper, x, sgd(x.parameters(), lr=0.0), [None], reads=reads),
        Problem(
            "y",
            lambda _: 0.5 * ((y.value - 2 * x.value) ** 2).sum(),
            y,
            sgd(y.parameters(), lr=1.0),
            [None],
            method=cg(3),
        ),
        Problem(
            "z",
            lambda _: 0.5 * ((z.value - target()) ** 2).sum(),
            z,
            sgd(z.parameters(), lr=1.0),
            [None],
            method=evolution(200, sigma=0.1),
        ),
    ]


@pytest.mark.parametrize("reads", [["z"], ["y", "z"]], ids=["bottom", "middle and bottom"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_loss_without_gradient_reaches_through_the_problems_between(reads, skip):
    problems = chain(reads, skip=skip)
    seen = []
    parameter = problems[0].parameters[0]
    problems[0].optimizer.register_step_pre_hook(lambda *_: seen.append(parameter.grad.clone()))
    Engine(ProblemGraph(problems)).run(1)
    dz = 6.0 + skip
    z = dz * 0.5
    reference = z * dz + (2 if "y" in reads else 0) + 0.5 * 0.5
    # Each direction estimates with a standard deviation of at most sqrt(2) |(f_y, f_x)| |(dy, 1)|.
    deviation = math.sqrt(2) * math.hypot(3 * z + 1, z + 0.25) * math.hypot(2, 1)
    assert abs(float(seen[0]) - reference) < 4 * deviation / math.sqrt(200)


# Misuse.


def test_a_loss_without_gradient_declares_what_it_reads():
    problems = quadratic(blind=True)
    problems[0].reads = None
    with pytest.raises(ValueError, match=r"reads=\[...\] and method=evolution\(\)"):
        ProblemGraph(problems)


def test_a_loss_without_gradient_is_refused_by_methods_that_differentiate_it():
    problems = quadratic(blind=True)
    problems[1].method = cg(3)
    with pytest.raises(ValueError, match="no parameter of the graph"):
        ProblemGraph(problems)
    problems[1].method = evolution(linearised=True)
    with pytest.raises(ValueError, match="no parameter of the graph"):
        ProblemGraph(problems)


def test_a_loss_without_gradient_through_two_separate_problems_is_refused():
    x, a, b = (Vector(torch.ones(1)) for _ in range(3))

    def problem(name, loss, module, **options):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        return Problem(name, loss, module, optimizer, [None], **options)

    def pull(module):
        return lambda _: ((module.value - x.value) ** 2).sum()

    top = problem("x", lambda _: (a.value + b.value).sum().detach(), x, reads=["a", "b"])
    sides = [
        problem("a", pull(a), a, method=evolution()),
        problem("b", pull(b), b, method=evolution()),
    ]
    with pytest.raises(ValueError, match="one chain of problems"):
        ProblemGraph([top, sides])


def test_a_loss_without_gradient_of_a_problem_in_between_is_refused():
    x, y, z = (Vector(torch.ones(1)) for _ in range(3))

    def problem(name, loss, module, **options):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        return Problem(name, loss, module, optimizer, [None], **options)

    with pytest.raises(ValueError, match="cannot respond"):
        ProblemGraph(
            [
                problem("x", lambda _: (y.value**2).sum(), x),
                problem("y", lambda _: (z.value**2).sum().detach(), y, reads=["z"]),
                problem(
                    "z",
                    lambda _: ((z.value - y.value - x.value) ** 2).sum(),
                    z,
                    method=evolution(),
                ),
            ]
        )


def test_steps_that_see_a_solution_below_are_refused():
    nested = NestedQuadratics({"x": ["y", "z"], "y": ["x", "z"], "z": ["x", "y"]})
    problems = nested.problems(nested.solve()[0], cg(3))
    problems[1].method = evolution(1)
    with pytest.raises(ValueError, match="through_response=False"):
        Engine(ProblemGraph(problems)).run(1)


def test_steps_that_a_hook_had_a_hand_in_are_refused():
    problems = quadratic(blind=True)
    parameter = problems[1].parameters[0]

    def clip(*_):
        nn.utils.clip_grad_norm_([parameter], 1e-3)

    problems[1].optimizer.register_step_pre_hook(clip)
    with pytest.raises(RuntimeError, match="taken again"):
        Engine(ProblemGraph(problems)).run(1)


def test_a_loss_that_overflows_at_a_shifted_point_is_an_error():
    problems = quadratic(blind=True)
    problems[1].method = evolution(2, sigma=1e200)
    with pytest.raises(FloatingPointError, match="sigma"):
        Engine(ProblemGraph(problems)).run(1)


def test_plain_functions_have_no_steps_to_take_again():
    with pytest.raises(ValueError, match="use it as the method of a Problem"):
        hypergradient(
            lambda x, y: upper_loss(x[0], y[0]),
            lambda x, y: lower_loss(x[0], y[0]),
            (X,),
            (Y,),
            method=evolution(),
        )


@pytest.mark.parametrize(
    "settings, name",
    [({"num_directions": 0}, "num_directions"), ({"sigma": 0.0}, "sigma"), ({"steps": 0}, "steps")],
)
def test_settings_out_of_range_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        evolution(**settings)
