"""The state of numpy's global generator, read and set within microseconds.

``numpy.random.get_state`` and ``set_state`` go through the 624 words of a Mersenne Twister one by
one in Python, a quarter of a millisecond each, and a loss is evaluated again thousands of times.
Here its words are copied from and to where numpy says that it keeps them (``state_address``). The
normal number that numpy may have left over from a pair lies elsewhere, out of reach: whether there
is one is found by drawing.
"""

from __future__ import annotations

import ctypes
import functools
import random
import sys
from typing import Any, TypeAlias

State: TypeAlias = Any  # the dictionary of numpy.random.get_state(legacy=False)

WORDS = 625  # 624 words of the key and the position in it


def numpy_state(numpy: Any) -> State:
    """Return what ``numpy.random.get_state(legacy=False)`` does."""
    bits = _twister(numpy)
    if bits is None:
        return numpy.random.get_state(legacy=False)
    with bits.lock:
        words = _words(bits, numpy)
        before = words.copy()
        drawn = _without_leftover(words, numpy)
        words[:] = before
        state = {
            "bit_generator": "MT19937",
            "state": {"key": before[:-1], "pos": int(before[-1])},
            "has_gauss": int(drawn is not None),
            "gauss": 0.0 if drawn is None else drawn,
        }
        if drawn is not None:
            numpy.random.set_state(state)
    return state


def set_numpy_state(state: State, numpy: Any) -> None:
    """Do what ``numpy.random.set_state(state)`` does."""
    bits = _twister(numpy)
    if bits is None or state["bit_generator"] != "MT19937" or state["has_gauss"]:
        numpy.random.set_state(state)
        return
    with bits.lock:
        words = _words(bits, numpy)
        _without_leftover(words, numpy)
        words[:-1] = state["state"]["key"]
        words[-1] = state["state"]["pos"]


def drawn_numpy_state(numpy: Any, source: random.Random) -> State:
    """Return a state of numpy's global generator that is drawn from `source`; for a Mersenne
    Twister in a tenth of the time that numpy takes to seed one.
    """
    kind = type(numpy.random.rand.__self__._bit_generator)
    if kind is not numpy.random.MT19937:
        state = kind(source.getrandbits(62)).state
        return {**state, "has_gauss": 0, "gauss": 0.0}
    key = numpy.frombuffer(source.randbytes(4 * (WORDS - 1)), dtype=numpy.uint32)
    state = {"key": key, "pos": WORDS - 1}
    return {"bit_generator": "MT19937", "state": state, "has_gauss": 0, "gauss": 0.0}


def _without_leftover(words: Any, numpy: Any) -> float | None:
    """Return the normal number left over, now drawn, or None where there was none; the words may
    move.
    """
    before = words.tobytes()
    drawn = float(numpy.random.standard_normal())
    if words.tobytes() == before:
        return drawn
    numpy.random.standard_normal()  # the other of the pair
    return None


def _twister(numpy: Any) -> Any:
    """Return the bit generator behind numpy's functions, or None unless it is a Mersenne Twister
    whose words lie as expected.
    """
    if not hasattr(numpy.random, "get_bit_generator"):
        return None
    bits = numpy.random.get_bit_generator()
    return bits if type(bits) is numpy.random.MT19937 and _lies_as_expected() else None


@functools.cache
def _lies_as_expected() -> bool:
    """Return whether the words of a generator are those of its ``state``."""
    numpy = sys.modules["numpy"]
    bits = numpy.random.MT19937(0)
    bits.random_raw(3)
    state = bits.state["state"]
    same: bool = [*state["key"], state["pos"]] == _words(bits, numpy).tolist()
    return same


def _words(bits: Any, numpy: Any) -> Any:
    """Return the words of a Mersenne Twister, as an array over numpy's own memory."""
    memory = (ctypes.c_uint32 * WORDS).from_address(bits.ctypes.state_address)
    return numpy.frombuffer(memory, dtype=numpy.uint32)
