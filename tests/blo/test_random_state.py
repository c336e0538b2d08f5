"""Random states: every source is replayed, and the generators of a loss are found."""

import functools
import random
import time
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from blo import hypergradient, t1t2
from blo.derivatives.random_state import RandomState, drawn_from, foreign_marks, generators_of

SOURCES = {
    "torch": lambda own: torch.randn(3),
    "numpy": lambda own: torch.from_numpy(np.random.randn(3)),
    "numpy's integers": lambda own: torch.from_numpy(np.random.randint(1000, size=3)),
    "python": lambda own: torch.tensor([random.gauss(0, 1) for _ in range(3)]),
    "torch.Generator": lambda own: torch.randn(3, generator=own["torch"]),
    "random.Random": lambda own: torch.tensor([own["python"].gauss(0, 1) for _ in range(3)]),
    "numpy.random.Generator": lambda own: torch.from_numpy(own["numpy"].standard_normal(3)),
    "numpy's Mersenne": lambda own: torch.from_numpy(own["mersenne"].standard_normal(3)),
    "numpy.random.RandomState": lambda own: torch.from_numpy(own["legacy"].randn(3)),
}


@pytest.fixture
def own():
    np.random.seed(0)
    return {
        "torch": torch.Generator().manual_seed(1),
        "python": random.Random(2),
        "numpy": np.random.default_rng(3),
        "mersenne": np.random.Generator(np.random.MT19937(4)),
        "legacy": np.random.RandomState(5),
    }


@pytest.mark.parametrize("source", SOURCES)
def test_a_state_is_replayed_and_leaves_the_generators_alone(source, own):
    draw = functools.partial(SOURCES[source], own)
    state = RandomState.capture(generators=own.values())
    first, second = draw(), draw()
    with state.replay():
        assert torch.equal(draw(), first)
        assert torch.equal(draw(), second)
    third = draw()
    state.restore()
    assert [torch.equal(draw(), value) for value in (first, second, third)] == [True] * 3
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


@pytest.mark.parametrize("source", SOURCES)
def test_drawn_states_differ_and_move_no_generator_but_the_cpus(source, own):
    draw = functools.partial(SOURCES[source], own)
    start = RandomState.capture(generators=own.values())
    states = [RandomState.draw(generators=own.values()) for _ in range(2)]
    values = []
    for state in (*states, *states):
        with state.replay():
            values.append(draw())
    assert torch.equal(values[0], values[2])
    assert torch.equal(values[1], values[3])
    assert not torch.equal(values[0], values[1])
    after = draw()
    start.restore()
    if source == "torch":
        torch.randint(2**62, ()), torch.randint(2**62, ())
    assert torch.equal(draw(), after)


def test_a_drawn_state_is_that_of_a_seed():
    before = torch.get_rng_state()
    seed = int(torch.randint(2**62, ()))
    torch.set_rng_state(before)
    state = RandomState.draw()
    torch.manual_seed(seed)
    assert torch.equal(state.states[0][1], torch.get_rng_state())


def test_foreign_states_can_be_left_out():
    state = RandomState.capture(foreign=False)
    drawn = RandomState.draw(foreign=False)
    assert state.python is state.numpy is drawn.python is drawn.numpy is None
    with state.replay():
        inside = random.random(), np.random.rand()
    assert (random.random(), np.random.rand()) != inside


def test_a_global_numpy_generator_of_another_kind_is_replayed():
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        captured, drawn, marks = RandomState.capture(), RandomState.draw(), foreign_marks()
        assert not drawn_from(marks)
        first = np.random.randn(3)
        assert drawn_from(marks)
        with captured.replay():
            assert (np.random.randn(3) == first).all()
        with drawn.replay():
            assert (np.random.randn(3) != first).all()
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.parametrize("source", ["numpy", "numpy's integers", "python", "torch"])
def test_draws_from_python_and_numpy_are_noticed(source):
    marks = foreign_marks()
    assert not drawn_from(marks)
    SOURCES[source]({})
    assert drawn_from(marks) == (source != "torch")


def test_other_objects_are_refused_as_generators():
    with pytest.raises(TypeError, match=r"torch\.Generator.*got int"):
        RandomState.capture(generators=(3,))


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_a_plain_function_meets_the_same_draws_at_each_evaluation(source):
    seen = []

    def lower(x, y):
        seen.append(SOURCES[source](None).double())
        return 0.5 * (y[0] - x[0] * seen[-1]).square().sum()

    x, y = (torch.ones(3).double(),), (torch.ones(3).double(),)
    result = hypergradient(lambda x, y: y[0].sum(), lower, x, y, method=t1t2())
    assert torch.allclose(result.grads[0], seen[0])
    hypergradient(lambda x, y: y[0].sum(), lower, x, y, method=t1t2())
    assert not torch.equal(seen[0], seen[-1])


# Where a generator can hide.

GLOBAL = torch.Generator()
SPACE = types.ModuleType("augmentations")
SPACE.rng = random.Random(0)


@dataclass
class Noise:
    source: object

    def __call__(self, x):
        return x

    def loss(self, batch):
        return batch


class Dropout(nn.Module):
    def __init__(self, source):
        super().__init__()
        self.source = source

    def forward(self, x):
        return x


class Global(nn.Module):
    def forward(self, x):
        return x + torch.rand((), generator=GLOBAL)


class Calls:
    def __call__(self, batch):
        return torch.rand((), generator=GLOBAL)


def in_a_closure(g):
    return lambda batch: g


def in_a_helper(g):
    def noise():
        return g

    return lambda batch: noise()


def in_a_helper_of_a_helper(g):
    helper = in_a_closure(g)

    def noise():
        return helper(None)

    return lambda batch: noise()


def in_a_decorated_function(g):
    @functools.wraps(in_a_closure)
    def wrapped(batch):
        return inner(batch)

    inner = in_a_closure(g)
    return wrapped


def with_a_default(g):
    return lambda batch, source=g: batch


def with_a_keyword(g):
    return lambda batch, *, source=g: batch


WAYS = {
    "closure": in_a_closure,
    "helper": in_a_helper,
    "helper of a helper": in_a_helper_of_a_helper,
    "decorated": in_a_decorated_function,
    "default": with_a_default,
    "keyword default": with_a_keyword,
    "partial": lambda g: functools.partial(lambda source, batch: batch, g),
    "partial's keyword": lambda g: functools.partial(lambda batch, source: batch, source=g),
    "bound method": lambda g: Noise(g).loss,
    "callable object": lambda g: Noise(g),
    "object in a closure": lambda g: in_a_closure(Noise(g)),
    "method of an object in a closure": lambda g: in_a_closure(Noise(g).loss),
    "list in a closure": lambda g: in_a_closure([None, (1, g)]),
    "dict in an object": lambda g: Noise({"a": {"b": g}}).loss,
    "module in a closure": lambda g: in_a_closure(nn.Sequential(nn.Linear(1, 1), Dropout(g))),
    "object in a module": lambda g: in_a_closure(Dropout(Noise(g))),
}


@pytest.mark.parametrize("way", WAYS)
def test_generators_of_a_loss_are_found(way, own):
    for generator in own.values():
        if not isinstance(generator, np.random.RandomState):
            assert generators_of(WAYS[way](generator)) == (generator,)


def test_generators_of_modules_and_of_globals_are_found(own):
    g = own["torch"]
    assert generators_of(lambda b: b, [nn.Sequential(nn.Sequential(Dropout(g)))]) == (g,)
    assert generators_of(lambda b: torch.rand((), generator=GLOBAL)) == (GLOBAL,)
    assert generators_of(lambda b: [torch.rand((), generator=GLOBAL) for _ in b]) == (GLOBAL,)
    assert generators_of(lambda b: SPACE.rng.random()) == (SPACE.rng,)
    assert generators_of(lambda b: b, [nn.Sequential(Global())]) == (GLOBAL,)
    assert generators_of(Calls()) == (GLOBAL,)


def test_generators_are_found_once_in_a_stable_order(own):
    a, b, c = own["torch"], own["python"], own["numpy"]
    loss = in_a_closure([a, b, a, Noise(b)])
    assert generators_of(loss, [Dropout(c), Dropout(a)]) == (a, b, c)


def test_global_generators_and_losses_without_one_give_none():
    assert generators_of(lambda b: (random.random(), np.random.rand(), torch.rand(1))) == ()
    assert generators_of(in_a_closure([torch.default_generator, random.SystemRandom()])) == ()
    assert generators_of(lambda b: b, [nn.Linear(2, 2)]) == ()


def test_cycles_and_cells_without_a_value_end():
    box = [None]
    box[0] = box

    def loss(batch):
        return loss, box, later

    assert generators_of(loss) == ()
    later = Noise(None)
    later.source = later
    assert generators_of(loss) == ()


def test_a_generator_is_found_though_its_holder_was_met_too_deep_before(own):
    holder = Noise([[own["torch"]]])
    deep = [[holder]]
    assert generators_of(lambda b: (deep, holder)) == (own["torch"],)


def test_the_search_does_not_take_long():
    net = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(50)))
    start = time.perf_counter()
    generators_of(lambda b: net(b), [net])
    assert time.perf_counter() - start < 0.5
