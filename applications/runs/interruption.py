"""Signals that end a run: Ctrl-C, SIGTERM and SIGHUP. The round under way is finished first."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SECONDS = 1.0
"""A signal that comes again so soon is the same one: torchrun passes on what a terminal has sent to
all processes already.
"""


class Interrupted(KeyboardInterrupt):
    """A run was asked to end; the message says how to go on.

    Args:
        message: one sentence.
        number: the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Signals:
    """What the process has been asked.

    Attributes:
        asked: the signal, None where there was none.
        ending: whether some process of the run had one when they last agreed.
        patient: whether a signal is kept until somebody looks at ``asked``; if not, it raises a
            KeyboardInterrupt where it arrives, as a second one always does.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.since = 0.0
        self.ending = False
        self.patient = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        del frame
        now, before = time.monotonic(), self.asked
        if number == before and now - self.since < SAME_SECONDS:
            return
        self.asked, self.since = number, now
        if before is not None or not self.patient:
            raise KeyboardInterrupt
        os.write(2, b"\nending after this update; once more ends at once\n")

    def check(self) -> None:
        """Raise a KeyboardInterrupt if the run is to end."""
        if self.ending:
            raise KeyboardInterrupt

    def agree(self) -> None:
        """Let all processes of the run end if one of them was asked to."""
        from applications import processes  # brings torch, which --help goes without

        self.ending = any(asked is not None for asked in processes.gathered(self.asked))

    @contextmanager
    def waiting(self, patient: bool) -> Iterator[None]:
        """Within, signals wait or do not."""
        before, self.patient = self.patient, patient
        try:
            yield
        finally:
            self.patient = before


@contextmanager
def signals() -> Iterator[Signals]:
    """What the process is asked meanwhile.

    Signals that are ignored (nohup, a job in the background) stay so; outside the main thread,
    where Python takes no handlers, all stay as they are.
    """
    found = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {
        number: signal.signal(number, found)
        for number in NUMBERS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
