"""Where Python's global random generator stands, read within a microsecond.

``random.getstate`` makes a tuple of 625 numbers, and whether a loss has drawn from the generator is
asked twice in every update. Here the words of its Mersenne Twister are copied from the object of
`random.Random`, where CPython keeps them.
"""

from __future__ import annotations

import ctypes
import functools
import random
import struct

WORDS = 625  # a position and 624 words of the key


def python_mark() -> object:
    """Return what two equal values of say that nothing was drawn between them."""
    generator = random._inst
    if type(generator) is not random.Random or not _lies_as_expected():
        return random.getstate()
    return _words(generator), vars(generator).get("gauss_next")


@functools.cache
def _lies_as_expected() -> bool:
    """Return whether the words of a generator lie behind the head of its object."""
    if random.Random.__basicsize__ < object.__basicsize__ + 4 * WORDS:
        return False
    generator = random.Random(0)
    generator.random()
    _, (*key, position), _ = generator.getstate()
    return struct.unpack(f"{WORDS}I", _words(generator)) == (position, *key)


def _words(generator: random.Random) -> bytes:
    return ctypes.string_at(id(generator) + object.__basicsize__, 4 * WORDS)
