"""What the screen shows of a phase under way: one live line on a terminal, few lines elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]

FIRST = 3
"""After so many rounds, the first of which is slower, it is said how long the others take."""
LONG = 20.0
"""Shorter rests, in seconds, are not worth a line."""


class Screen:
    """The live line of a phase, or its plain lines where there is none.

    Args:
        bar: a bar over the rounds; disabled where the screen is no terminal.
        name: of the phase.
        total: its rounds.
        say: prints a line.
    """

    def __init__(self, bar: Any, name: str, total: int, say: Callable[[str], None]) -> None:
        self.bar = bar
        self.name = name
        self.total = total
        self.say = say
        self.shown: dict[str, str] = {}
        self._seconds: list[float] = []

    @property
    def is_live(self) -> bool:
        """Whether there is a live line."""
        return not self.bar.disable

    def round(self, number: int, seconds: float, losses: Mapping[str, float] | None) -> None:
        """Count a round that took so long; its losses where it is logged."""
        if losses is not None:
            self.put({name: f"{loss:.3f}" for name, loss in losses.items()})
        self.bar.update()
        if len(self._seconds) < FIRST:
            self._seconds.append(seconds)
            if len(self._seconds) == FIRST:
                self.tell_rest(self.total - number)

    def tell_rest(self, left: int) -> None:
        """Say how long the rounds that are left will take, where that is long."""
        each = sum(self._seconds[1:]) / (FIRST - 1)
        if each * left > LONG:
            self.write(
                f"{self.name}: about {in_words(each * left)} for the {left:,} rounds left "
                f"({each:.2g} s each; evaluations come on top)"
            )

    def evaluated(
        self, updates: int, scores: Mapping[str, float | None], metric: str, best: bool | None
    ) -> None:
        """Show an evaluation on held-out data.

        Args:
            updates: after how many.
            scores: loss and metrics.
            metric: the one that is shown beside the loss.
            best: whether it is the best so far; None where none is selected.
        """
        found = {"loss": scores["loss"]} | {metric: scores[metric]}
        text = ", ".join(
            f"{n} {'undefined' if v is None else f'{v:.4g}'}" for n, v in found.items()
        )
        if self.is_live:
            self.put({"validation": text} | ({"best": f"after {updates:,}"} if best else {}))
        else:
            star = ", best so far" if best else ""
            self.say(f"{self.name}: after {updates:,} updates validation {text}{star}")

    def put(self, values: Mapping[str, str]) -> None:
        """Put values on the live line."""
        self.shown |= values
        self.bar.set_postfix(self.shown)

    def write(self, line: str) -> None:
        """Print a line, above the live one."""
        if self.is_live:
            self.bar.write(line)
        else:
            self.say(line)


@contextmanager
def screen(
    name: str, total: int, done: int, say: Callable[[str], None], *, label: str, hidden: bool
) -> Iterator[Screen]:
    """The screen of a phase.

    Args:
        name: of the phase.
        total: its rounds.
        done: those done before.
        say: prints a line.
        label: what the live line begins with.
        hidden: whether there is none in any case.
    """
    disable = True if hidden else None
    with tqdm(total=total, initial=done, desc=label, unit="round", disable=disable) as bar:
        yield Screen(bar, name, total, say)


def in_words(seconds: float) -> str:
    """A duration with one unit or two: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
