"""How a command ends: its exit status, what is said of an early end, and how the command goes on.

What goes on with a run is known here alone: ``--resume`` for a fine-tuning command, the grid's own
command for a run of ``applications.compare``, the same command for the rest.
"""

import os
import signal
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from applications.errors import UsageError
from applications.runs.interruption import signals
from applications.runs.naming import HANDED


class GoesOn(Enum):
    """How a command goes on after an early end, as a clause."""

    RESUMED = "--resume goes on from the last checkpoint"
    BY_THE_GRID = "the grid's own command (applications.compare) goes on from the last checkpoint"
    CONTINUED = "the same command goes on from here"
    REPEATED = "the same command begins again"

    @property
    def untouched(self) -> str:
        """The same where nothing was written yet."""
        return str((self if self is GoesOn.CONTINUED else GoesOn.REPEATED).value)


def of_a_grid() -> bool:
    """Whether ``applications.compare`` has started this process."""
    return HANDED in os.environ


def resumed() -> GoesOn:
    """How a fine-tuning command goes on."""
    return GoesOn.BY_THE_GRID if of_a_grid() else GoesOn.RESUMED


def begun_anew(place: Path) -> str:
    """How a run that cannot be gone on with is begun anew, as a clause.

    Args:
        place: the run's folder.
    """
    if of_a_grid():
        return f"remove {place}"
    return "give another --output_dir, or leave --resume out to begin anew"


def explained(error: Exception, goes_on: GoesOn) -> str | None:
    """One sentence on an error that neither the user nor the code is to blame for; None else."""
    from applications import processes  # brings torch, which --help goes without
    from applications.runs.failures import sentence

    if isinstance(error, RuntimeError) and processes.was_left(error):
        return (
            f"process {processes.rank()} of {processes.count()} ends, because another one is gone "
            f"(what it said stands above or in its own log; if it said nothing, it was killed, as "
            f"for memory): {goes_on.value}"
        )
    return sentence(error, goes_on.value)


def ended(work: Callable[[], int | None], goes_on: GoesOn) -> int:
    """Do the work of a command; what ends it early is one sentence on the screen.

    Args:
        work: all that the command does; may return an exit status of its own.
        goes_on: how the command goes on.

    Returns:
        The exit status: 0, 1 where something failed on the way, 2 where something cannot be done as
        asked, 128 and the signal's number after an interruption (130 for Ctrl-C).
    """
    with signals() as asked:
        try:
            return work() or 0
        except UsageError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            print(str(error) or f"interrupted: {goes_on.untouched}", file=sys.stderr)
            number = getattr(error, "number", signal.SIGINT)
            return 128 + int(number if asked.asked is None else asked.asked)
        except Exception as error:
            said = explained(error, goes_on)
            if said is None:
                raise
            print(f"error: {said}", file=sys.stderr)
            return 1
