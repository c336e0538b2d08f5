"""What training took."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Costs:
    """What one phase, or several together, took."""

    lower_steps: int = 0
    upper_steps: int = 0
    num_gradients: int = 0
    num_hvps: int = 0
    seconds: float = 0.0
    """Time spent in updates; evaluations, checkpoints and loading are left out."""

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(
            self.lower_steps + other.lower_steps,
            self.upper_steps + other.upper_steps,
            self.num_gradients + other.num_gradients,
            self.num_hvps + other.num_hvps,
            self.seconds + other.seconds,
        )


def updates(found: Mapping[str, Any]) -> int:
    """The updates of a phase in a summary, or those that a line of the log comes after: of the
    lower level, or of the upper one where the phase trains it alone.
    """
    return int(found["lower_steps"] or found.get("upper_steps") or found.get("round", 0))
