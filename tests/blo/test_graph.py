"""Graphs of problems: reads, order, refusals."""

import math

import pytest
import torch
from oracles import NestedQuadratics, Vector
from torch import nn

from blo import Engine, Problem, ProblemGraph, alternating, dense


def problem(name, loss, module, **settings):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return Problem(name, loss, module, optimizer, [None], **settings)


def quadratic_problems(nested, **settings):
    modules = {k: Vector(torch.zeros(nested.size, dtype=torch.float64)) for k in nested.names}

    def loss_of(name):
        return lambda batch: nested.loss(name, {k: m.value for k, m in modules.items()})

    return [problem(k, loss_of(k), modules[k], method=dense(), **settings) for k in nested.names]


def pair(lower_loss, upper_loss=None, **settings):
    x, y = Vector(torch.ones(2)), Vector(torch.ones(2))
    upper_loss = upper_loss or (lambda x, y: ((x - y) ** 2).sum())
    return [
        problem("upper", lambda b: upper_loss(x.value, y.value), x),
        problem("lower", lambda b: lower_loss(x.value, y.value), y, **settings),
    ]


def test_reads_are_found_by_probing():
    graph = ProblemGraph(quadratic_problems(NestedQuadratics({"x": ["z"], "y": ["x"], "z": ["y"]})))
    assert graph.reads == {"x": ("x", "z"), "y": ("x", "y"), "z": ("y", "z")}


def test_a_loss_that_needs_autocast_is_probed_under_it():
    base, head = nn.Linear(2, 2).bfloat16(), nn.Linear(2, 1)
    x = Vector(torch.ones(()))
    inputs = torch.randn(3, 2)
    loss = lambda _: (x.value * head(base(inputs))).float().square().mean()
    graph = ProblemGraph(
        [problem("upper", loss, x), problem("lower", loss, nn.ModuleList([base, head]))]
    )
    assert graph.reads == {"upper": ("upper", "lower"), "lower": ("upper", "lower")}
    assert math.isfinite(Engine(graph, precision=torch.bfloat16).run(1).losses["upper"])


def test_a_loss_that_fails_in_every_precision_says_what_it_says_without_autocast():
    x = Vector(torch.ones(2))
    wrong = lambda _: x.value @ torch.ones(3)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        ProblemGraph([problem("upper", wrong, x)])


def test_probing_leaves_random_state_buffers_and_batches_alone():
    norm = nn.BatchNorm1d(2)
    x, y = Vector(torch.ones(2)), nn.Sequential(nn.Linear(2, 2), norm, nn.Dropout(0.5))
    batches = [torch.randn(4, 2), torch.randn(4, 2)]
    seen = []

    def lower(batch):
        seen.append(batch)
        return (y(batch) * x.value).pow(2).mean()

    problems = [
        problem("upper", lambda b: y(batches[0]).mean() + x.value.sum(), x),
        Problem("lower", lower, y, torch.optim.SGD(y.parameters(), lr=0.1), batches),
    ]
    state, buffers = torch.get_rng_state(), [b.clone() for b in y.buffers()]
    graph = ProblemGraph(problems)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(buffers, y.buffers(), strict=True))
    assert graph.streams["lower"].next() is batches[0]


def test_declared_reads_that_the_probe_contradicts_raise():
    upper, lower = pair(lambda x, y: ((x - y) ** 2).sum())
    upper.reads = ("lower",)
    lower.reads = ()
    with pytest.raises(ValueError, match=r"reads of problem 'lower' is \[\], but .* \['upper'\]"):
        ProblemGraph([upper, lower])


def test_unknown_reads_are_named():
    upper, lower = pair(lambda x, y: ((x - y) ** 2).sum(), reads=["uper"])
    with pytest.raises(ValueError, match="'uper', which is not in the graph"):
        ProblemGraph([upper, lower])


def test_schedule_of_a_chain_nests_the_steps():
    nested = NestedQuadratics({"x": ["y", "z"], "y": ["x"], "z": ["x", "y"]})
    x, y, z = quadratic_problems(nested)
    y.steps, z.steps = 2, 3
    updates = ProblemGraph([x, y, z]).schedule()
    assert [(u.problem, u.step) for u in updates] == [
        ("z", 1),
        ("z", 2),
        ("z", 3),
        ("y", 1),
        ("z", 1),
        ("z", 2),
        ("z", 3),
        ("y", 2),
        ("x", 1),
    ]
    assert [u.last for u in updates] == [False, False, True, False, False, False, True, True, True]


def test_schedule_of_a_diamond_steps_the_middle_side_by_side():
    nested = NestedQuadratics({"x": ["a", "b", "z"], "a": ["x"], "b": ["x"], "z": ["a", "b"]})
    graph = ProblemGraph(quadratic_problems(nested))
    assert [u.problem for u in graph.schedule()] == ["z", "a", "b", "x"]


def test_problems_side_by_side_that_read_each_other_are_refused_as_a_game():
    nested = NestedQuadratics({"x": ["a", "b"], "a": ["x", "b"], "b": ["x", "a"]})
    x, a, b = quadratic_problems(nested)
    with pytest.raises(ValueError, match="Nash game"):
        ProblemGraph([x, (a, b)])


def test_a_detached_lower_loss_is_refused_since_no_hypergradient_exists():
    problems = pair(lambda x, y: ((x.detach() - y) ** 2).sum())
    with pytest.raises(ValueError, match="there is no hypergradient"):
        ProblemGraph(problems)


def test_alternating_training_on_purpose_is_allowed():
    problems = pair(lambda x, y: ((x.detach() - y) ** 2).sum(), method=alternating())
    assert ProblemGraph(problems).responding(problems[0]) == ()


def test_a_loss_that_reaches_nobody_is_refused():
    problems = pair(
        lambda x, y: (y**2).sum(), upper_loss=lambda x, y: (y**2).sum(), method=alternating()
    )
    with pytest.raises(ValueError, match="no gradient reaches problem 'upper'"):
        ProblemGraph(problems)


def test_a_problem_that_nobody_reads_is_refused():
    problems = pair(lambda x, y: (y**2).sum(), upper_loss=lambda x, y: (x**2).sum())
    with pytest.raises(ValueError, match="no other problem reads problem 'lower'"):
        ProblemGraph(problems)


def test_a_loss_without_graph_is_refused():
    problems = pair(lambda x, y: ((x - y) ** 2).sum().detach())
    with pytest.raises(ValueError, match="loss of problem 'lower' depends on no parameter"):
        ProblemGraph(problems)


def test_shared_and_homeless_parameters_are_refused():
    upper, lower = pair(lambda x, y: ((x - y) ** 2).sum())
    both = nn.ModuleList([*upper.modules, *lower.modules])
    greedy = Problem("lower", lower.loss, both, torch.optim.SGD(both.parameters(), lr=0.1), [None])
    with pytest.raises(ValueError, match="optimizers of problems 'upper' and 'lower'"):
        ProblemGraph([upper, greedy])
    loose = nn.Parameter(torch.ones(2))
    homeless = Problem("lower", lower.loss, lower.modules, torch.optim.SGD([loose], lr=0.1), [None])
    with pytest.raises(ValueError, match="parameters live in modules"):
        ProblemGraph([upper, homeless])


def test_a_parameter_taken_out_of_its_module_beforehand_is_refused():
    x, y = Vector(torch.ones(2)), Vector(torch.ones(2))
    captured = list(y.parameters())
    taken_inside = lambda b: (
        (x.value * y.value).sum() + sum(p.square().sum() for p in y.parameters())
    )
    taken_before = lambda b: (x.value * y.value).sum() + sum(p.square().sum() for p in captured)
    upper = problem("upper", lambda b: (y.value - x.value).square().sum(), x)
    ProblemGraph([upper, problem("lower", taken_inside, y)])
    with pytest.raises(
        ValueError, match=r"'lower' uses the parameter '1\.value' .* inside the loss"
    ):
        ProblemGraph([upper, problem("lower", taken_before, y)])


def test_names_are_unique():
    upper, lower = pair(lambda x, y: ((x - y) ** 2).sum())
    lower.name = "upper"
    with pytest.raises(ValueError, match="unique, got 'upper' twice"):
        ProblemGraph([upper, lower])


def test_leaving_out_the_response_below_warns():
    nested = NestedQuadratics({"x": ["y", "z"], "y": ["x", "z"], "z": ["x", "y"]})
    x, y, z = quadratic_problems(nested)
    y.through_response = False
    with pytest.warns(UserWarning, match="hypergradients above it are biased"):
        ProblemGraph([x, y, z])


def test_the_tree_names_problems_reads_and_methods():
    text = str(ProblemGraph(pair(lambda x, y: ((x - y) ** 2).sum())))
    assert text.splitlines()[0] == "upper: 2 parameters; reads upper, lower"
    assert text.splitlines()[1].startswith("   lower: 2 parameters, 1 step an update above")


@pytest.mark.parametrize(
    "argument, message",
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0 for problem 'lower'"),
        ({"accumulate": 1.5}, "accumulate must be an integer of at least 1, got 1.5"),
    ],
)
def test_bad_numbers_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        pair(lambda x, y: (y**2).sum(), **argument)


def test_bad_objects_are_named():
    module = Vector(torch.ones(2))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        Problem("p", len, module, None, [None])
    with pytest.raises(TypeError, match="method must be a hypergradient method"):
        Problem("p", len, module, optimizer, [None], method="darts")
    with pytest.raises(TypeError, match="batches must be iterable"):
        Problem("p", len, module, optimizer, 3)
    with pytest.raises(TypeError, match="without a closure, got LBFGS"):
        Problem("p", len, module, torch.optim.LBFGS(module.parameters()), [None])
    module.requires_grad_(False)
    with pytest.raises(ValueError, match="at least one parameter with requires_grad=True"):
        Problem("p", len, module, optimizer, [None])
