"""The engine against the simulator on random graphs, and the simulator against what is known."""

import math

import pytest
import torch
from random_graphs import FEATURES, METHODS, Graph, compared, difference
from simulator import How, Node, Simulator, stepped

import blo

SETTINGS = (
    "steps",
    "accumulation",
    "sizes",
    "schedulers",
    "groups",
    "momentum",
    "decay",
    "adam",
    "maximize",
)
PACELESS = tuple(s for s in SETTINGS if s != "steps")
EXPLICIT = ("one step", "differences", "sama", "unrolled", "forward mode")
DEEP = ("reads below", "skips", "siblings", "side by side", "through solutions")

# Profiles: features, seeds, rounds. Their graphs are 300 and more.
PROFILES = {
    "two levels": ((*SETTINGS, *EXPLICIT, "alternating"), range(100), 2),
    "two levels, mixed signs": ((*SETTINGS, *EXPLICIT, "mixed maximize"), range(30), 2),
    "chains": (("three levels", "skips", *SETTINGS, *EXPLICIT), range(40), 2),
    "siblings": (("three levels", "siblings", "skips", *SETTINGS, *EXPLICIT), range(30), 2),
    "middle reads below": (("three levels", "reads below", "skips", *SETTINGS), range(20), 2),
    "middle reads below, all methods": (
        ("three levels", "reads below", "skips", *SETTINGS, *EXPLICIT),
        range(30),
        1,
    ),
    "siblings that meet below": (("three levels", *DEEP, "steps", *EXPLICIT), range(50), 2),
    "without response": (
        ("three levels", "reads below", "fixed below", "skips", *SETTINGS),
        range(10),
        2,
    ),
    "four levels": (("four levels", *DEEP, "apart", *PACELESS), range(20, 30), 1),
    "four levels, all methods": (("four levels", *DEEP, *PACELESS, *EXPLICIT), range(20, 30), 1),
    "five levels": (("five levels", "reads below", "skips", *PACELESS), range(5), 1),
}
CHUNK = 10
CHUNKS = [
    pytest.param(name, seeds[i : i + CHUNK], id=f"{name}-{seeds[i]}")
    for name, (_, seeds, _) in PROFILES.items()
    for i in range(0, len(seeds), CHUNK)
]


@pytest.mark.parametrize("profile, seeds", CHUNKS)
def test_every_update_of_random_graphs_is_that_of_the_simulator(profile, seeds):
    features, _, num_rounds = PROFILES[profile]
    wrong = []
    for seed in seeds:
        graph = Graph(seed, features)
        error, where = compared(graph, num_rounds)
        if not error <= graph.tolerance:
            wrong.append(f"seed {seed}: {error:.1e} above {graph.tolerance}, {where}")
    assert not wrong, "\n".join(wrong)


def test_the_profiles_hold_three_hundred_graphs_and_every_feature():
    assert sum(len(seeds) for _, seeds, _ in PROFILES.values()) >= 300
    assert {f for features, _, _ in PROFILES.values() for f in features} == set(FEATURES)
    assert {
        m for n, (f, c, _) in PROFILES.items() for s in c for m in Graph(s, f).methods.values()
    } == set(METHODS)


def test_problems_side_by_side_are_constants_for_each_other_inside_a_third_loss():
    # f reads c and d, c reads f: c feels d through f. The loss of b holds the solutions of all.
    reads = {"a": {"b"}, "b": {"a", "c", "d"}, "c": {"b", "f"}, "d": {"b"}, "f": {"b", "c", "d"}}
    graph = Graph(0, (), structure=(reads, {"a": 0, "b": 1, "c": 2, "d": 2, "f": 3}))
    error, where = compared(graph, 1)
    assert error <= graph.tolerance, where


# The simulator against what is known.


def scalar_node(name, level, reads, loss, start, how, lr=0.0, **settings):
    """A node of one number, `loss` a function of the numbers of all by name."""
    return Node(
        name,
        level,
        frozenset(reads),
        lambda v, _: loss(**{k: t[0] for k, t in v.items()}),
        (torch.tensor(start, dtype=torch.float64),),
        [None],
        how,
        options=({"lr": lr},),
        **settings,
    )


def gradient_of(simulator, name):
    """The last gradient of `name` in one round."""
    return [float(u.gradient[0]) for u in simulator.run(1) if u.name == name][-1]


@pytest.mark.parametrize("retaken", ["there", "then"])
def test_a_sibling_that_moved_stands_where_it_stood_in_the_step(retaken):
    nodes = [
        scalar_node("x", 0, "pr", lambda x, p, r, **_: (p + r - x) ** 2, 0.1, None, 0.01),
        scalar_node(
            "p",
            1,
            "xq",
            lambda p, q, x, **_: (q - 1) ** 2 + (p - x) ** 2,
            0.5,
            How("one step"),
            0.01,
        ),
        scalar_node(
            "r",
            1,
            "xq",
            lambda r, q, x, **_: (q + 1) ** 2 + (r - x) ** 2,
            0.7,
            How("one step"),
            0.01,
        ),
        scalar_node(
            "q", 2, "pr", lambda q, p, r, **_: (q - p.sin() * r) ** 2, 0.2, How("one step"), 0.1
        ),
    ]
    q = 0.2 - 0.2 * (0.2 - math.sin(0.5) * 0.7)
    expected = 2 * (q + 1) * 0.2 * math.sin(0.5) + 2 * 0.6
    assert gradient_of(Simulator(nodes, retaken=retaken), "r") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_steps_are_unrolled_past_a_sibling_that_moves(rate):
    nodes = [
        scalar_node("a", 0, "b", lambda b, **_: (b - 1) ** 2, 0.1, None),
        scalar_node(
            "b",
            1,
            "ad",
            lambda a, b, d, **_: (b - a) ** 2 + d**2,
            0.5,
            How("unrolled"),
            0.1,
            steps=2,
        ),
        scalar_node(
            "c", 1, "", lambda c, **_: (c - 3) ** 2, 0.7, How("alternating"), rate, steps=2
        ),
        scalar_node(
            "d",
            2,
            "bc",
            lambda b, c, d, **_: (d - (b * c).sin() - 0.2 * b) ** 2,
            0.3,
            How("implicit"),
            0.5,
        ),  # solved by each step
    ]
    a = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    b, c = torch.tensor(0.5, dtype=torch.float64), 0.7
    for _ in range(2):
        b = b if b.requires_grad else b.requires_grad_()
        (slope,) = torch.autograd.grad(
            (b - a) ** 2 + ((b * c).sin() + 0.2 * b) ** 2, b, create_graph=True
        )
        b, c = b - 0.1 * slope, c - rate * 2 * (c - 3)
    (expected,) = torch.autograd.grad((b - 1) ** 2, a)
    assert gradient_of(Simulator(nodes), "a") == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("how", [How("one step"), How("unrolled", 1)])
def test_the_step_of_a_middle_problem_sees_the_solution_below_move(how):
    nodes = [
        scalar_node("x", 0, "y", lambda y, **_: (y - 2) ** 2, 0.5, None),
        scalar_node("y", 1, "xz", lambda x, y, z: (y - x) ** 2 + (z - 1) ** 2, 0.3, how, 0.1),
        scalar_node("z", 2, "xy", lambda x, y, z: (z - x * y**2) ** 2, 0.0, How("implicit"), 0.5),
    ]
    x, y = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 0.3))
    total = (y - x) ** 2 + (x * y**2 - 1) ** 2
    (slope,) = torch.autograd.grad(total, y, create_graph=True)
    (expected,) = torch.autograd.grad((y - 0.1 * slope - 2) ** 2, x)
    assert float(expected) == pytest.approx(-0.991110, abs=1e-6)
    assert gradient_of(Simulator(nodes), "x") == pytest.approx(float(expected), rel=1e-12)


def test_a_solution_that_depends_on_a_problem_through_one_below_is_deeper():
    nodes = [
        scalar_node("a", 0, "b", lambda b, **_: (b - 1) ** 2, 0.1, None, 0.1),
        scalar_node(
            "b", 1, "ad", lambda a, b, d, **_: (b - a) ** 2 + d**2, 0.2, How("implicit"), 0.1
        ),
        scalar_node("c", 2, "d", lambda c, d, **_: (c - d) ** 2 + c**2, 0.3, How("implicit"), 0.1),
        scalar_node("d", 3, "bc", lambda b, c, d, **_: (d - b - c) ** 2, 0.4, How("implicit"), 0.1),
    ]
    simulator = Simulator(nodes)
    assert [name for name, _ in simulator.schedule()] == ["d", "c", "b", "a"]
    # d* = b + c, so c* = 0 and d* = b: the loss of b is (b - a)^2 + b^2, and db*/da = 1/2.
    b = [float(u.parameters[0]) for u in simulator.run(1) if u.name == "b"][-1]
    assert gradient_of(simulator, "a") == pytest.approx(2 * (b - 1) / 2, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_implicit_solutions_of_nested_quadratics_have_their_closed_form(seed):
    from oracles import GRAPHS, NestedQuadratics

    name = list(GRAPHS)[seed % len(GRAPHS)]
    nested = NestedQuadratics(GRAPHS[name], size=2, seed=seed)
    values, expected = nested.solve()
    diamond = {"x": 0, "a": 1, "b": 1, "z": 2}
    level = diamond if name == "diamond" else {p: i for i, p in enumerate(nested.names)}
    nodes = [
        Node(
            p,
            level[p],
            frozenset(nested.reads[p]),
            lambda v, _, p=p: nested.loss(p, {k: t[0] for k, t in v.items()}),
            (values[p],),
            [None],
            How("implicit"),
            options=({"lr": 0.0},),
        )
        for p in nested.names
    ]
    (last,) = [u for u in Simulator(nodes).run(1) if u.name == "x"]
    assert torch.allclose(last.gradient[0], expected, rtol=1e-9, atol=1e-9)


OPTIMIZERS = {
    "momentum": ("sgd", {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2}),
    "nesterov": ("sgd", {"lr": 0.1, "momentum": 0.7, "nesterov": True, "maximize": True}),
    "dampening": ("sgd", {"lr": 0.1, "momentum": 0.7, "dampening": 0.4}),
    "adam": ("adam", {"lr": 0.1, "betas": (0.6, 0.8), "weight_decay": 0.2}),
    "adamw": ("adamw", {"lr": 0.1, "betas": (0.6, 0.8), "weight_decay": 0.2}),
}
CLASSES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("name, options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_unrolled_gradients_are_differences_through_the_real_optimizer(name, options):
    sign = -1.0 if options.get("maximize") else 1.0

    def lower(x, y, b):
        return sign * ((y - x.sin()) ** 2 + 0.3 * (x * y * b).cos()).sum()

    def upper(x, y):
        return ((y - 1) ** 2).sum() + (x * y).sum()

    start, batches = torch.tensor([0.3, -0.2]).double(), [0.5, 1.5, -1.0]

    def value(x):
        y = torch.nn.Parameter(start.clone())
        optimizer = CLASSES[name]([y], **options)
        for b in batches:
            optimizer.zero_grad()
            lower(x, y, b).backward()
            optimizer.step()
        return float(upper(x, y.detach()))

    x = torch.tensor([0.7, 0.1]).double()
    nodes = [
        Node(
            "x",
            0,
            frozenset("y"),
            lambda v, _: upper(v["x"][0], v["y"][0]),
            (x,),
            [None],
            None,
            options=({"lr": 0.0},),
        ),
        Node(
            "y",
            1,
            frozenset("x"),
            lambda v, b: lower(v["x"][0], v["y"][0], b),
            (start,),
            batches,
            How("unrolled"),
            name,
            (options,),
            steps=3,
        ),
    ]
    *_, last = Simulator(nodes).run(1)
    unit = torch.eye(2).double() * 1e-6
    expected = torch.tensor([(value(x + e) - value(x - e)) / 2e-6 for e in unit]).double()
    assert torch.allclose(last.gradient[0], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name, options", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_those_of_torch(name, options):
    y = torch.nn.Parameter(torch.tensor([0.3, -0.2]).double())
    optimizer = CLASSES[name]([y], **options)
    mine, states = (y.detach().clone(),), ({},)
    for k in range(4):
        g = torch.tensor([0.5 - k, 0.1 * k + 0.2]).double()
        y.grad = g.clone()
        optimizer.step()
        mine, states = stepped(name, mine, states, (g,), (options,))
    assert torch.allclose(mine[0], y.detach(), rtol=1e-13, atol=1e-15)


# Faults, planted in what the engine runs: each must be seen.


class Wrapped:
    """A method with `change` applied to each response; `responding` says that one is computed."""

    def __init__(self, method, change=lambda value: value):
        self.method, self.change, self.responding = method, change, False

    def __getattr__(self, name):
        return getattr(self.method, name)

    def response(self, context, cotangent, state):
        self.responding = True
        try:
            value, state, info = self.method.response(context, cotangent, state)
        finally:
            self.responding = False
        return blo.Response(self.change(value), state, info)


def faulty(fault):
    """A graph, and what a fault replaces in what the engine runs of it (None: the control)."""
    settings = {"steps", "sizes", "accumulation", "decay"}
    features = {"three levels", "skips", *settings} if "path" in fault else settings
    if fault == "momentum ignored":
        features |= {"momentum", "unrolled"}
    if fault in ("wrong learning rate", "wrong point", "scheduled too early"):
        features |= {"one step", "schedulers"}
    for seed in range(500):
        graph = Graph(seed, features)
        if _shows(fault, graph):
            return graph, _plant(fault, graph)
    raise AssertionError(f"no graph shows the fault {fault!r}")


def _shows(fault, graph):
    *_, low = graph.nodes
    name, options, number = graph.methods[low.name], low.options[0], len(low.batches)
    return {
        "dropped weight decay": options.get("weight_decay") and name in ("cg", "dense"),
        "stale batch": number > 1 and low.accumulate == 1 and number % 2,
        "first batch alone": low.accumulate == 2 and number > 2,
        "momentum ignored": name == "unrolled(1)" and options.get("nesterov"),
        "wrong learning rate": name == "t1t2" and low.steps == 1,
        "scheduled too early": name == "t1t2" and low.steps == 1 and low.pace(1) < 1,
        "wrong point": name == "t1t2" and low.steps == 1,
        "missing path": len(graph.nodes) == 3 and low.reads == {"a", "b"},
        "path counted twice": len(graph.nodes) == 3 and low.reads == {"a", "b"},
    }.get(fault, name in ("cg", "dense"))


def _plant(fault, graph):
    *_, low = graph.nodes
    q, method = low.name, METHODS[graph.methods[low.name]][0]()
    rate = low.options[0]["lr"]
    first = sum(t.numel() > 0 for t in graph.nodes[0].start)
    changes = {
        "sign flipped": lambda v: tuple(-t for t in v),
        "missing path": lambda v: tuple(0 * t if i < first else t for i, t in enumerate(v)),
        "path counted twice": lambda v: tuple(2 * t if i < first else t for i, t in enumerate(v)),
        "no response": lambda v: tuple(0 * t for t in v),
    }
    if fault in changes:
        return {"methods": {q: Wrapped(method, changes[fault])}}
    if fault == "wrong learning rate":
        return {"methods": {q: blo.t1t2(1.1 * rate)}}
    if fault == "scheduled too early":
        return {"methods": {q: blo.t1t2(rate * low.pace(1))}}
    if fault == "momentum ignored":
        return {"methods": {q: blo.t1t2()}}
    if fault == "wrong point":

        def identity(matvec, rhs, init=None):
            value = tuple(o["lr"] * t for o, t in zip(low.options, rhs, strict=True))
            return blo.CG(1)(lambda v: v, rhs)._replace(value=value)

        return {"methods": {q: blo.Implicit(identity)}}
    wrapped = Wrapped(method)
    seen = []

    def loss(values, batch):
        if not wrapped.responding:
            seen.append(batch)
            return low.loss(values, batch)
        if fault == "stale batch":  # the one before; the probe's is among those seen
            return low.loss(values, low.batches[(len(seen) - 3) % len(low.batches)])
        if fault == "first batch alone":
            return low.loss(values, seen[-2])
        if fault == "dropped weight decay":
            pairs = zip(values[q], low.options, strict=True)
            decay = sum(0.5 * o["weight_decay"] * t.square().sum() for t, o in pairs)
            return low.loss(values, batch) - decay
        assert fault == "none"
        return low.loss(values, batch)

    return {"methods": {q: wrapped}, "losses": {q: loss}}


FAULTS = (
    "sign flipped",
    "missing path",
    "path counted twice",
    "no response",
    "wrong learning rate",
    "scheduled too early",
    "momentum ignored",
    "wrong point",
    "stale batch",
    "first batch alone",
    "dropped weight decay",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault):
    graph, replaced = faulty(fault)
    error, _ = compared(graph, 2)
    assert error <= graph.tolerance
    error, _ = compared(graph, 2, **replaced)
    assert error > 10 * graph.tolerance


def test_the_wrapping_that_faults_are_planted_with_is_not_one():
    graph, replaced = faulty("none")
    error, _ = compared(graph, 2, **replaced)
    assert error <= graph.tolerance


def test_another_order_of_updates_is_seen():
    graph = Graph(0, {"steps"})
    updates = list(graph.simulator().run(1))
    assert difference(updates, updates)[0] == 0.0
    assert difference(updates[::-1], updates)[0] == math.inf


def test_a_response_left_out_of_a_middle_problem_is_seen():
    for seed in range(100):
        graph = Graph(seed, {"three levels", "reads below", "steps"})
        if len(graph.nodes) == 3 and "c" in graph.nodes[1].reads:
            break
    assert compared(graph, 1)[0] <= graph.tolerance
    error, _ = compared(graph, 1, settings={"b": {"through_response": False}})
    assert error > 10 * graph.tolerance
