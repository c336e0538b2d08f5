"""One run, in a process of its own, from the lock to the record of how it ended."""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from threading import Event

from applications.comparison.folder import RunPlace, place_of
from applications.comparison.grid import Run
from applications.comparison.settings import PRESET
from applications.options.command_line import words
from applications.pages.writing import write_json
from applications.runs.naming import HANDED

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
POLL_SECONDS = 0.05
GRACE_SECONDS = 5.0
LOG_LINES = 20


class Ended(Enum):
    """How an attempt at a run ended."""

    FINISHED = "finished"
    FOUND = "found finished"
    FAILED = "failed"
    HELD = "held by another process"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a run ended, and after how many seconds."""

    run: Run
    ended: Ended
    seconds: float = 0.0
    reason: str | None = None


def attempt(
    run: Run,
    out: Path,
    *,
    threads: int,
    overwrite: bool = False,
    devices: str | None = None,
    stop: Event | None = None,
) -> Outcome:
    """Run it unless it is finished or another process has it.

    A failure is recorded in failure.json and returned; it is not raised.

    Args:
        run: what to run.
        out: the grid's folder.
        threads: of the run's process.
        overwrite: first remove results with other options.
        devices: CUDA_VISIBLE_DEVICES of the run's process; None leaves it as it is.
        stop: set by the caller to end the run's process.
    """
    place = place_of(out, run)
    with place.lock() as lock:
        if lock is None:
            return Outcome(run, Ended.HELD)
        if stop is not None and stop.is_set():
            return Outcome(run, Ended.INTERRUPTED)
        changes = place.changes(run)
        if changes and not overwrite:
            # The options were checked before the start; another invocation came in between.
            reason = (
                f"results of other options or data were written meanwhile: {'; '.join(changes)}"
            )
            return Outcome(run, Ended.FAILED, reason=reason)
        if changes:
            place.clear()
        if place.finished(run):
            return Outcome(run, Ended.FOUND)
        return started(run, place, lock, environment(threads, devices), stop)


def program(command: str) -> list[str]:
    """The words that start an application."""
    return [sys.executable, "-m", f"applications.{command}"]


def environment(threads: int, devices: str | None) -> dict[str, str]:
    """The environment of a run's process."""
    own = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if devices is not None:
        own["CUDA_VISIBLE_DEVICES"] = devices
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", **own}


def started(
    run: Run, place: RunPlace, lock: int, variables: Mapping[str, str], stop: Event | None
) -> Outcome:
    """Start the run's process and wait for its end."""
    config = place.prepare(run)
    preset = words({PRESET: run.options.get(PRESET)})
    command = [*program(run.command), str(config), "--resume", *preset]
    begin = time.monotonic()
    with (place.path / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**variables, HANDED: str(lock)},
            pass_fds=(lock,),
            start_new_session=True,
        )
        os.pwrite(lock, f"{process.pid} on {platform.node()}\n".encode(), 0)
        try:
            while process.poll() is None and not (stop is not None and stop.is_set()):
                time.sleep(POLL_SECONDS)
        finally:
            stopped = process.poll() is None
            if stopped:
                end(process)
    seconds = time.monotonic() - begin
    if stopped:
        return Outcome(run, Ended.INTERRUPTED, seconds)
    if process.returncode == 0 and place.summary() is not None:
        return Outcome(run, Ended.FINISHED, seconds)
    log_end = last_lines(place.path / "log.txt")
    reason = ": ".join([explained(process.returncode), *log_end[-1:]])
    write_json(
        place.path / "failure.json",
        {
            "reason": reason,
            "status": process.returncode,
            "seconds": round(seconds, 1),
            "command": command,
            "log": log_end,
        },
    )
    return Outcome(run, Ended.FAILED, seconds, reason)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a run's process and its children: ask, insist, kill.

    Shells start background jobs with Ctrl-C ignored, and what they start inherits that: then it is
    no use to ask.
    """
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    asking = () if deaf else (signal.SIGINT,)
    for number in (*asking, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        break
    process.wait()


def explained(status: int) -> str:
    """A failing exit status in words."""
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", perhaps for want of memory" if status == -signal.SIGKILL else ""
        return f"killed by {name}{hint}"
    words = {
        0: "ended without a whole summary.json",
        2: "refused by the application",
        129: "interrupted",
        130: "interrupted",
        143: "interrupted",
    }
    return words.get(status, f"ended with status {status}")


def last_lines(path: Path) -> list[str]:
    """The last lines of a log."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
