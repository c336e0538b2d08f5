"""Many attempts at once: in threads that watch processes, or in tasks of a Ray cluster."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from applications.comparison.attempt import Ended, Outcome, attempt
from applications.comparison.grid import Run
from applications.errors import UsageError

HELD_SECONDS = 1.0


@dataclass(frozen=True)
class Work:
    """What every attempt of an invocation shares."""

    out: Path
    threads: int = 1
    overwrite: bool = False
    devices: Sequence[str] = ()


class Pool(Protocol):
    """Where attempts are made."""

    def start(self, run: Run) -> Any:
        """Start an attempt; returns its handle."""

    def ended(self, handles: Sequence[Any], seconds: float) -> list[tuple[Any, Outcome]]:
        """The handles, and outcomes, of attempts that ended; waits at most ``seconds``."""

    def close(self) -> None:
        """End what still runs and wait for its end."""


class Processes:
    """Attempts in threads of this process, each of which watches a process of its own."""

    def __init__(self, work: Work, size: int) -> None:
        self.work = work
        self.stop = Event()
        self.threads = ThreadPoolExecutor(size)
        self.devices = deque(work.devices)
        self.device_of: dict[Future[Outcome], str] = {}

    def start(self, run: Run) -> Future[Outcome]:
        """Start an attempt, on the next of the listed devices."""
        device = self.devices.popleft() if self.devices else None
        handle = self.threads.submit(
            attempt,
            run,
            self.work.out,
            threads=self.work.threads,
            overwrite=self.work.overwrite,
            devices=device,
            stop=self.stop,
        )
        if device is not None:
            self.device_of[handle] = device
        return handle

    def ended(
        self, handles: Sequence[Future[Outcome]], seconds: float
    ) -> list[tuple[Future[Outcome], Outcome]]:
        """The attempts that ended; their devices are free again."""
        done, _ = wait(handles, timeout=seconds, return_when=FIRST_COMPLETED)
        for handle in done:
            if handle in self.device_of:
                self.devices.append(self.device_of.pop(handle))
        return [(handle, handle.result()) for handle in handles if handle in done]

    def close(self) -> None:
        """Ask the processes to end, and wait."""
        self.stop.set()
        self.threads.shutdown(cancel_futures=True)


class RayTasks:
    """Attempts in tasks of a Ray cluster, whose machines see the grid's folder by the same name."""

    def __init__(self, work: Work, *, address: str | None, gpus: float) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "argument --backend: ray is not installed; pip install ray, or --backend processes"
            ) from error
        self.ray: Any = ray
        self.work = work
        self.own = not ray.is_initialized()
        if self.own:
            ray.init(address=address, include_dashboard=False, log_to_driver=False)
        limits = {"num_cpus": work.threads, "num_gpus": gpus, "max_retries": 0}
        self.task = ray.remote(attempt).options(**limits)
        self.handles: list[Any] = []

    def start(self, run: Run) -> Any:
        """Submit a task."""
        handle = self.task.remote(
            run, self.work.out, threads=self.work.threads, overwrite=self.work.overwrite
        )
        self.handles.append(handle)
        return handle

    def ended(self, handles: Sequence[Any], seconds: float) -> list[tuple[Any, Outcome]]:
        """The tasks that ended; one that Ray lost (its machine died) counts as held, to be tried
        again.
        """
        done, _ = self.ray.wait(list(handles), num_returns=1, timeout=seconds)
        for handle in done:
            self.handles.remove(handle)
        return [(handle, self.ray.get(handle)) for handle in done]

    def close(self) -> None:
        """Cancel what still runs: the task's process ends its run as after Ctrl-C."""
        for handle in self.handles:
            self.ray.cancel(handle)
        self.ray.wait(self.handles, num_returns=len(self.handles)) if self.handles else None
        if self.own:
            self.ray.shutdown()


def outcomes(
    runs: Sequence[Run],
    pool: Pool,
    *,
    at_once: int,
    on_start: Callable[[Run], None] = lambda run: None,
    on_wait: Callable[[int], None] = lambda number: None,
) -> Iterator[Outcome]:
    """The outcome of every run, as they come.

    A run that another process holds is tried again until it is finished, or free because that
    process has died.

    Args:
        runs: what to run, in this order.
        pool: where.
        at_once: attempts at the same time.
        on_start: told of every run that is tried.
        on_wait: told how many runs are left when all of them are in other hands.
    """
    pending, active, waiting = deque(runs), dict[Any, Run](), list[Run]()
    said = -1
    try:
        while pending or active or waiting:
            while pending and len(active) < at_once:
                run = pending.popleft()
                on_start(run)
                active[pool.start(run)] = run
            for handle, outcome in pool.ended(list(active), HELD_SECONDS) if active else ():
                del active[handle]
                if outcome.ended is Ended.HELD:
                    waiting.append(outcome.run)
                else:
                    yield outcome
            if waiting and not pending and not active:
                if said != len(waiting):
                    said = len(waiting)
                    on_wait(said)
                time.sleep(HELD_SECONDS)
                pending.extend(waiting)
                waiting.clear()
    finally:
        pool.close()
