"""The engine: hypergradients against closed forms, its loop against loops written by hand."""

import copy
import math
from collections import UserDict, namedtuple

import pytest
import torch
from oracles import GRAPHS, NestedQuadratics, Vector, relative_error
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from blo import (
    Engine,
    Problem,
    ProblemGraph,
    Status,
    alternating,
    cg,
    darts,
    dense,
    neumann,
    t1t2,
)

MORE_GRAPHS = {
    "two levels": {"x": ["y"], "y": ["x"]},
    "chain, bottom felt alone": {"x": ["z"], "y": ["x"], "z": ["y"]},
    "middle reads a bottom that ignores it": {"x": ["y"], "y": ["x", "z"], "z": ["x"]},
    "diamond, bottom felt through the middle": {
        "x": ["a", "b"],
        "a": ["x", "z"],
        "b": ["x", "z"],
        "z": ["x"],
    },
    "four levels": {"x": ["w"], "y": ["x", "w"], "z": ["y"], "w": ["z", "x"]},
    **GRAPHS,
}


def received(reads, method, **settings):
    """The gradient that the top's optimizer receives, and the closed form."""
    nested = NestedQuadratics(reads)
    values, reference = nested.solve()
    problems = nested.problems(values, method)
    for k, v in settings.items():
        setattr(problems[1], k, v)
    engine = Engine(ProblemGraph(problems))
    seen = []
    (parameter,) = problems[0].parameters
    problems[0].optimizer.register_step_pre_hook(lambda *_: seen.append(parameter.grad.clone()))
    record = engine.run(1)
    return seen[0], reference, record


@pytest.mark.parametrize("method", [dense(), cg(30)], ids=["dense", "cg"])
@pytest.mark.parametrize("reads", MORE_GRAPHS.values(), ids=MORE_GRAPHS)
def test_hypergradients_of_nested_quadratics_have_their_closed_form(reads, method):
    value, reference, _ = received(reads, method)
    assert float((value - reference).abs().max()) < 1e-8
    assert relative_error(value, reference) < 1e-10


def test_each_problem_is_solved_for_once_however_many_paths_meet_in_it():
    _, _, record = received(GRAPHS["diamond"], cg(30))
    assert sorted(k for k in record.responses if k.startswith("x")) == [
        "x <- a",
        "x <- b",
        "x <- z",
    ]


def test_the_cheap_form_of_a_middle_problem_that_reads_below_is_biased_and_warns():
    with pytest.warns(UserWarning, match="biased"):
        value, reference, _ = received(
            GRAPHS["3, middle reads below"], dense(), through_response=False
        )
    assert relative_error(value, reference) > 0.01


# A loop written by hand.


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def data(seed, n=5):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(10, 6, generator=generator), torch.randint(3, (10,), generator=generator))
        for _ in range(n)
    ]


class Weights(nn.Module):
    """One positive weight an example position, the upper level."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))


def optimizers(kind, net, weights):
    first, second = list(net[0].parameters()), list(net[3].parameters())
    if kind == "sgd":
        groups = [{"params": first, "lr": 0.1}, {"params": second, "lr": 0.03, "momentum": 0.9}]
        return torch.optim.SGD(groups, lr=1.0), torch.optim.SGD(weights.parameters(), lr=0.5)
    groups = [{"params": first, "lr": 1e-2}, {"params": second, "lr": 3e-3, "weight_decay": 0.1}]
    return torch.optim.AdamW(groups), torch.optim.AdamW(weights.parameters(), lr=0.05)


def losses(net, weights):
    def lower(batch):
        x, y = batch
        each = nn.functional.cross_entropy(net(x), y, reduction="none")
        return (weights.logits.sigmoid() * each).mean()

    def upper(batch):
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    return upper, lower


def length(u):
    """The norm of the norms of the rows, in the order of the engine's sums."""
    return float(u.reshape(len(u) if u.dim() > 1 else 1, -1).norm(dim=1).norm())


def by_hand(kind, steps, rounds, net, weights):
    """DARTS with a central difference, in plain torch."""
    upper_loss, lower_loss = losses(net, weights)
    lower_optimizer, upper_optimizer = optimizers(kind, net, weights)
    scheduler = torch.optim.lr_scheduler.StepLR(lower_optimizer, 4, 0.5)
    train, held_out = data(1), data(2)
    names = [n for n, _ in net.named_parameters()]
    i = 0
    for j in range(rounds):
        for _ in range(steps):
            batch = train[i % len(train)]
            i += 1
            state = torch.get_rng_state()
            rates = {id(p): g["lr"] for g in lower_optimizer.param_groups for p in g["params"]}
            before = [p.detach().clone() for p in net.parameters()]
            lower_optimizer.zero_grad()
            lower_loss(batch).backward(inputs=list(net.parameters()))
            lower_optimizer.step()
            scheduler.step()
        loss = upper_loss(held_out[j % len(held_out)])
        c = torch.autograd.grad(loss, list(net.parameters()))
        after_rng = torch.get_rng_state()
        v = [rates[id(p)] * g for p, g in zip(net.parameters(), c, strict=True)]
        sizes = [float(b.norm()) / math.sqrt(b.numel()) for b in before]
        floor = min(0.1, max(1e-3, *sizes))
        sides = [(int(u.reshape(len(u), -1).any(1).sum()), u.numel() / len(u)) for u in v]
        spectral = [math.sqrt(m) + math.sqrt(n) for m, n in sides]
        e = 2.5e-3 * min(
            max(size, floor) * norm / length(u)
            for size, norm, u in zip(sizes, spectral, v, strict=True)
            if length(u) > 0
        )
        grads = []
        for sign in (1, -1):
            moved = {
                n: torch.add(b, u, alpha=sign * e) for n, b, u in zip(names, before, v, strict=True)
            }
            torch.set_rng_state(state)
            x, y = batch
            each = nn.functional.cross_entropy(
                torch.func.functional_call(net, moved, (x,)), y, reduction="none"
            )
            grads.append(
                torch.autograd.grad((weights.logits.sigmoid() * each).mean(), weights.logits)[0]
            )
        torch.set_rng_state(after_rng)
        weights.logits.grad = -(grads[0] - grads[1]) * (0.5 / e)
        upper_optimizer.step()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_engine_equals_a_loop_written_by_hand_bit_for_bit(kind, steps):
    net, weights = small_net(), Weights()
    torch.manual_seed(7)
    by_hand(kind, steps, 6, net, weights)

    net2, weights2 = small_net(), Weights()
    upper_loss, lower_loss = losses(net2, weights2)
    lower_optimizer, upper_optimizer = optimizers(kind, net2, weights2)
    graph = ProblemGraph(
        [
            Problem("upper", upper_loss, (weights2, net2), upper_optimizer, data(2)),
            Problem(
                "lower",
                lower_loss,
                (weights2, net2),
                lower_optimizer,
                data(1),
                steps=steps,
                scheduler=torch.optim.lr_scheduler.StepLR(lower_optimizer, 4, 0.5),
                method=darts(),
            ),
        ]
    )
    torch.manual_seed(7)
    Engine(graph).run(6)
    assert float(weights.logits.detach().abs().max()) > 0
    for a, b in zip(
        [*net.parameters(), *weights.parameters()],
        [*net2.parameters(), *weights2.parameters()],
        strict=True,
    ):
        assert torch.equal(a, b)


def test_one_problem_alone_is_plain_training_bit_for_bit():
    net = small_net()
    twin = copy.deepcopy(net)
    optimizer, by_hand = torch.optim.AdamW(net.parameters()), torch.optim.AdamW(twin.parameters())
    loss = lambda b: nn.functional.cross_entropy(net(b[0]), b[1])
    graph = ProblemGraph([Problem("train", loss, net, optimizer, data(1))])
    torch.manual_seed(3)
    Engine(graph).run(7)
    torch.manual_seed(3)
    for i in range(7):
        x, y = data(1)[i % 5]
        by_hand.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        by_hand.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


METHODS = [darts(), darts(one_sided=True), t1t2(), neumann(2, scale=0.1), cg(2), alternating()]


def reweighting(method, net=None, weights=None, *, steps=1, train=None, held_out=None, **settings):
    net = small_net() if net is None else net
    weights = Weights() if weights is None else weights
    upper_loss, lower_loss = losses(net, weights)
    lower = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), lr=0.05)
    upper = torch.optim.Adam(weights.parameters(), lr=0.05)
    graph = ProblemGraph(
        [
            Problem("upper", upper_loss, (net, weights), upper, held_out or data(2)),
            Problem(
                "lower",
                lower_loss,
                (net, weights),
                lower,
                train or data(1),
                steps=steps,
                method=method,
                **settings,
            ),
        ]
    )
    return Engine(graph), net, weights


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_frozen_weights_are_bit_identical_after_fifty_rounds(method):
    net = small_net()
    net[0].weight.requires_grad_(False)
    net.register_buffer("constant", torch.randn(3))
    frozen, constant = net[0].weight.clone(), net.constant.clone()
    engine, net, weights = reweighting(method, net)
    trained = net[3].weight.clone()
    engine.run(50)
    assert torch.equal(net[0].weight, frozen)
    assert torch.equal(net.constant, constant)
    assert not torch.equal(net[3].weight, trained)
    if method != alternating():
        assert float(weights.logits.detach().abs().max()) > 0


def test_optimizers_keep_their_groups_and_state():
    engine, _, weights = reweighting(darts())
    optimizer = engine.graph["lower"].optimizer
    groups = [(g["lr"], [id(p) for p in g["params"]]) for g in optimizer.param_groups]
    engine.run(3)
    assert [(g["lr"], [id(p) for p in g["params"]]) for g in optimizer.param_groups] == groups
    assert int(engine.graph["upper"].optimizer.state[weights.logits]["step"]) == 3


def test_accumulation_averages_gradients_and_hypergradients():
    """Two batches accumulated equal one of both: means over equally many rows."""
    torch.manual_seed(0)
    halves = data(1, 2)
    whole = [tuple(torch.cat(parts) for parts in zip(*halves, strict=True))]

    def run(train, accumulate):
        net = nn.Linear(6, 3).double()
        nn.init.constant_(net.weight, 0.1)
        nn.init.zeros_(net.bias)
        gain = Vector(torch.ones(6, dtype=torch.float64))
        lower = lambda b: (
            nn.functional.cross_entropy(net(b[0].double() * gain.value), b[1])
            + 0.1 * net.weight.square().sum()
        )
        upper = lambda b: nn.functional.cross_entropy(net(b[0].double()), b[1])
        graph = ProblemGraph(
            [
                Problem(
                    "upper",
                    upper,
                    (net, gain),
                    torch.optim.SGD(gain.parameters(), lr=1.0),
                    train,
                    accumulate=accumulate,
                ),
                Problem(
                    "lower",
                    lower,
                    (net, gain),
                    torch.optim.SGD(net.parameters(), lr=0.1),
                    train,
                    accumulate=accumulate,
                    method=cg(5),
                ),
            ]
        )
        Engine(graph).run(3)
        return gain.value.detach()

    torch.testing.assert_close(run(halves, 2), run(whole, 1), rtol=1e-12, atol=0)


def test_coupled_weight_decay_is_part_of_the_lower_objective():
    """Decay in the optimizer and the penalty written out give CG the same problem."""

    def received(decay_in_optimizer):
        y, x = Vector(torch.tensor([0.3, -0.2]).double()), Vector(torch.tensor([1.0, 2.0]).double())
        penalty = 0.0 if decay_in_optimizer else 0.7
        lower = lambda b: ((y.value - x.value) ** 2).sum() + 0.5 * penalty * y.value.square().sum()
        upper = lambda b: (y.value**3).sum() + x.value.sum()
        optimizer = torch.optim.SGD(y.parameters(), lr=0.1, weight_decay=0.7 - penalty)
        graph = ProblemGraph(
            [
                Problem("upper", upper, (x, y), torch.optim.SGD(x.parameters(), lr=1.0), [None]),
                Problem("lower", lower, (x, y), optimizer, [None], method=cg(5)),
            ]
        )
        Engine(graph).run(1)
        return x.value.detach()

    torch.testing.assert_close(received(True), received(False), rtol=1e-12, atol=0)


def test_decoupled_weight_decay_stays_out_of_the_hessian():
    y = Vector(torch.ones(2))
    make = lambda cls: Problem("p", len, y, cls(y.parameters(), lr=0.1, weight_decay=0.3), [None])
    decay = lambda problem: problem.weight_decay(problem.options())
    assert decay(make(torch.optim.AdamW)) is None
    assert decay(make(torch.optim.Adam)) == (0.3,)


def test_a_maximising_lower_optimizer_flips_the_one_step_response():
    def received(maximize):
        y, x = Vector(torch.tensor([0.3]).double()), Vector(torch.tensor([1.0]).double())
        sign = -1 if maximize else 1
        graph = ProblemGraph(
            [
                Problem(
                    "upper",
                    lambda b: (y.value**3).sum() + x.value.sum(),
                    (x, y),
                    torch.optim.SGD(x.parameters(), lr=1.0),
                    [None],
                ),
                Problem(
                    "lower",
                    lambda b: sign * ((y.value - x.value) ** 2).sum(),
                    (x, y),
                    torch.optim.SGD(y.parameters(), lr=0.1, maximize=maximize),
                    [None],
                    method=t1t2(),
                ),
            ]
        )
        Engine(graph).run(2)
        return x.value.detach()

    assert torch.equal(received(True), received(False))


@pytest.mark.parametrize("structure", ["tensor", "dict", "tuple", "named", "nested", "encoding"])
def test_any_batch_structure_is_passed_through(structure):
    Pair = namedtuple("Pair", "a b")
    wrap = {
        "tensor": lambda t: t,
        "dict": lambda t: {"input": t},
        "tuple": lambda t: (t, "text"),
        "named": lambda t: Pair(t, 3),
        "nested": lambda t: {"inputs": [{"deep": (t, None)}]},
        "encoding": lambda t: UserDict(input=t),
    }[structure]
    unwrap = {
        "tensor": lambda b: b,
        "dict": lambda b: b.pop("input"),  # the loss may consume its batch
        "tuple": lambda b: b[0],
        "named": lambda b: b.a,
        "nested": lambda b: b["inputs"][0]["deep"][0],
        "encoding": lambda b: b.pop("input"),
    }[structure]
    net, scale = nn.Linear(2, 1), Vector(torch.ones(1))
    batch = torch.randn(4, 2)
    graph = ProblemGraph(
        [
            Problem(
                "upper",
                lambda b: net(unwrap(b)).square().mean(),
                (net, scale),
                torch.optim.SGD(scale.parameters(), lr=1.0),
                [wrap(batch)],
            ),
            Problem(
                "lower",
                lambda b: {
                    "loss": (scale.value * net(unwrap(b)) - 1).square().mean(),
                    "rows": 4,
                    "note": "text",
                },
                (net, scale),
                torch.optim.SGD(net.parameters(), lr=0.1),
                [wrap(batch)],
                method=darts(),
            ),
        ]
    )
    record = Engine(graph).run(3)
    assert record.metrics["lower"] == {"rows": 4.0}
    assert float(scale.value.detach()) != 1.0


def test_gradient_clipping_by_an_optimizer_hook_is_applied():
    engine, net, _ = reweighting(darts())
    seen = []

    def clip(optimizer, args, kwargs):
        nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
        seen.append(
            float(torch.stack(torch._foreach_norm([p.grad for p in net.parameters()])).norm())
        )

    engine.graph["lower"].optimizer.register_step_pre_hook(clip)
    with pytest.warns(UserWarning, match="'lower' ends .* away from the plain update of SGD"):
        engine.run(2)
    assert seen == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_plateau_schedulers_see_the_loss():
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.1)
    flat = lambda b: 0.0 * net[0].weight.sum() + 1.0
    Engine(ProblemGraph([Problem("p", flat, net, optimizer, [None], scheduler=scheduler)])).run(2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_loss_that_is_not_finite_stops_before_it_is_used():
    net = nn.Linear(2, 1)
    batches = [torch.ones(1, 2), torch.full((1, 2), math.inf)]
    problem = Problem(
        "p", lambda b: net(b).sum(), net, torch.optim.SGD(net.parameters(), 0.1), batches
    )
    engine = Engine(ProblemGraph([problem]))
    engine.run(1)
    before = net.weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"problem 'p' is (-?inf|nan) in round 2"):
        engine.run(1)
    assert torch.equal(net.weight, before)


def test_generators_and_empty_batches_end_with_a_clear_error():
    net = nn.Linear(2, 1)
    make = lambda batches: Problem(
        "p", lambda b: net(b).sum(), net, torch.optim.SGD(net.parameters(), 0.1), batches
    )
    engine = Engine(ProblemGraph([make(torch.ones(1, 2) for _ in range(2))]))
    with pytest.raises(RuntimeError, match="one-shot iterator"):
        engine.run(3)
    with pytest.raises(ValueError, match="at least one batch"):
        ProblemGraph([make([])])


def shuffled(seed):
    x, y = zip(*data(seed), strict=True)
    return DataLoader(TensorDataset(torch.cat(x), torch.cat(y)), batch_size=10, shuffle=True)


@pytest.mark.parametrize("method", [darts(), cg(2, warm_start=True)], ids=["darts", "warm cg"])
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_run_resumed_from_its_state_equals_the_straight_run_bit_for_bit(stop, method, tmp_path):
    """With dropout, shuffled loaders in mid-epoch, Adam's moments and the warm start."""

    def fresh():
        torch.manual_seed(11)
        return reweighting(method, steps=2, train=shuffled(1), held_out=shuffled(2))

    straight, net, weights = fresh()
    straight_records = [r.losses for r in straight.rounds(9)]

    first, _, _ = fresh()
    first.run(stop)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)
    second, net2, weights2 = fresh()
    second.run(1)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed = [r.losses for r in second.rounds(9 - stop)]
    assert resumed == straight_records[stop:]
    assert torch.equal(weights.logits, weights2.logits)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), net2.parameters(), strict=True))
    assert second.num_gradients == straight.num_gradients


def test_a_state_of_other_problems_is_refused_and_nothing_changes():
    engine, _, _ = reweighting(darts())
    state = engine.state_dict()
    other = copy.deepcopy(state)
    other["problems"]["lower"]["parameters"].popitem()
    with pytest.raises(ValueError, match="other parameters for problem 'lower'"):
        engine.load_state_dict(other)
    state["problems"]["third"] = {}
    with pytest.raises(ValueError, match="must hold the problems"):
        engine.load_state_dict(state)


def test_gradients_are_counted_as_the_cost_model_says():
    costs = [(darts(), 4, 2), (darts(one_sided=True), 3, 1), (t1t2(), 2, 0), (cg(2), 3, 0)]
    costs += [(darts(radius=1e-3), 4, 0)]
    for method, units, compared in reversed(costs):
        engine, _, _ = reweighting(method)
        engine.run(2)
        assert engine.num_gradients == 2 * units + compared  # two radii in the first response
        if method == cg(2):
            num_products = engine.num_products
    assert num_products == 2 * 3  # two of CG and the mixed one


def test_records_say_how_each_hypergradient_was_made():
    engine, _, _ = reweighting(darts(), steps=2)
    list(engine.rounds(2))
    info = engine.run(1).responses["upper <- lower"]
    assert info.method == repr(darts())
    assert (info.point, info.scale, info.batches) == ("before", 0.05, (5,))
    assert info.radius > 0
    engine, _, _ = reweighting(cg(2))
    info = engine.run(1).responses["upper <- lower"]
    assert info.point == "after"
    assert info.status in (Status.TRUNCATED, Status.INDEFINITE)
    assert info.num_products == 3


def test_callbacks_get_every_record():
    engine, _, _ = reweighting(darts())
    seen = []
    engine.callbacks = (seen.append,)
    engine.run(3)
    assert [r.round for r in seen] == [1, 2, 3]


def test_float16_is_refused():
    engine, _, _ = reweighting(darts())
    with pytest.raises(ValueError, match="loss scaling"):
        Engine(engine.graph, precision=torch.float16)
