"""What ends a command beside wrong usage, in one sentence each."""

import errno

import torch
from safetensors import SafetensorError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No room is left: on the disk, in the quota, or for so large a file."""


def sentence(error: Exception, goes_on: str) -> str | None:
    """One sentence on an error that the machine is to blame for; None for any other error.

    Args:
        error: what was raised.
        goes_on: how the command goes on, as a clause.
    """
    if isinstance(error, FloatingPointError):
        return str(error).partition(". No state was saved")[0]  # by a call that commands have not
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate" in str(error):
        return (
            "out of memory; use a smaller --per_device_train_batch_size (with "
            "--gradient_accumulation_steps), --per_device_eval_batch_size or --max_seq_length"
        )
    if isinstance(error, SafetensorError):
        return not_written(None, str(error), goes_on)
    if isinstance(error, OSError) and error.errno is None and error.filename is None:
        said = " ".join(str(error).split())[:200]
        return f"{type(error).__name__} ({said}): mend what it names, and {goes_on}"
    if isinstance(error, OSError):
        remedy = "free some room" if error.errno in FULL else "see that the folder can be written"
        return not_written(error.filename, error.strerror or str(error), goes_on, remedy)
    return None


def not_written(file: object, why: str, goes_on: str, remedy: str = "free some room") -> str:
    """A file that could not be written."""
    what = "a file" if file is None else str(file)
    return (
        f"{what} could not be written ({why}); what was there is as it was: {remedy}, and {goes_on}"
    )
