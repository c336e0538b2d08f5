"""numpy's state as numpy itself gives it, read and set faster."""

import time

import numpy as np
import pytest

from blo.derivatives.numpy_state import numpy_state, set_numpy_state


@pytest.fixture(autouse=True)
def restored():
    before = np.random.get_bit_generator(), np.random.get_state(legacy=False)
    yield
    np.random.set_bit_generator(before[0])
    np.random.set_state(before[1])


def is_at(state):
    now = np.random.get_state(legacy=False)
    return all(
        np.array_equal(a, b)
        for a, b in (
            *((state[k], now[k]) for k in ("bit_generator", "has_gauss", "gauss")),
            *((state["state"][k], now["state"][k]) for k in ("key", "pos")),
        )
    )


def test_states_are_those_of_numpy_with_and_without_a_number_left_over():
    np.random.seed(0)
    leftovers = set()
    for count in range(60):
        np.random.rand(37 * count)
        np.random.randn(count % 3)
        expected = np.random.get_state(legacy=False)
        found = numpy_state(np)
        assert is_at(expected)  # reading moves nothing
        assert is_at(found)
        for moved in (1, 2):  # and away from there with a number left over, and without
            np.random.randn(moved)
            set_numpy_state(found, np)
            assert is_at(expected)
        leftovers.add(expected["has_gauss"])
    assert leftovers == {0, 1}


def test_another_kind_of_generator_is_left_to_numpy():
    np.random.set_bit_generator(np.random.PCG64(3))
    found = numpy_state(np)
    first = np.random.randn(3)
    set_numpy_state(found, np)
    assert np.array_equal(np.random.randn(3), first)
    np.random.set_bit_generator(np.random.MT19937(3))
    with pytest.raises(ValueError, match="MT19937"):
        set_numpy_state(found, np)


def test_a_state_takes_a_fraction_of_numpys_own_time():
    def taken(get, set_):
        start = time.process_time()
        for _ in range(200):
            set_(get())
        return time.process_time() - start

    np.random.seed(0)
    fast = taken(lambda: numpy_state(np), lambda state: set_numpy_state(state, np))
    assert fast < 0.5 * taken(lambda: np.random.get_state(legacy=False), np.random.set_state)
