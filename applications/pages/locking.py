"""Locks on files by the operating system: they end with the processes that hold them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[int | None]:
    """The descriptor of an exclusive lock on ``path``; without ``wait``, None if it is taken.

    The operating system releases it when every process that inherited the descriptor has ended,
    however that came about.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)
