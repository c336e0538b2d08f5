"""What the screen shows while a grid runs: bars on a terminal, a line a run elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from applications.comparison.attempt import Ended, Outcome
from applications.comparison.folder import place_of
from applications.comparison.grid import Run
from applications.pages.table import shown


class Screen:
    """Reports the runs of a grid as they start and end."""

    def __init__(self, console: Console, bars: Progress, *, total: int, out: Path) -> None:
        self.console = console
        self.bars = bars
        self.out = out
        self.total = total
        self.done = 0
        self.whole = bars.add_task("runs", total=total)
        self.tasks: dict[str, TaskID] = {}

    def started(self, run: Run) -> None:
        """Show a run that is being tried."""
        self.tasks[run.name] = self.bars.add_task(run.name, total=None)

    def waiting(self, number: int) -> None:
        """Say that only runs of other processes are left."""
        self.say(f"waiting for {number} runs that other processes hold")

    def ended(self, outcome: Outcome) -> None:
        """Say how a run ended; those found finished are counted, not told."""
        self.done += 1
        self.bars.advance(self.whole)
        if outcome.run.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(outcome.run.name))
        if outcome.ended is not Ended.FOUND:
            self.say(f"[{self.done}/{self.total}] {self.told(outcome)}")

    def told(self, outcome: Outcome) -> str:
        """One line on an outcome."""
        name, seconds = outcome.run.name, f"{outcome.seconds:.0f} s"
        if outcome.ended is Ended.FINISHED:
            found = place_of(self.out, outcome.run).summary() or {}
            metric, value = found.get("metric_name"), shown(found.get("test_metric"))
            return f"{name}: test {metric} {value}, {seconds}"
        return f"{name}: {outcome.ended.value}: {outcome.reason}, {seconds}"

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def screen(console: Console, *, total: int, out: Path) -> Iterator[Screen]:
    """A screen for ``total`` runs; its bars are shown on terminals only."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        yield Screen(console, bars, total=total, out=out)
