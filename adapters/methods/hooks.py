"""What acts before or after every step of an optimizer."""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["StepHook"]

Act = Callable[[torch.optim.Optimizer], None]


class StepHook:
    """Acts before and after every step of an optimizer, and counts the steps.

    Args:
        optimizer: what it is attached to.
        before: called with the optimizer before each step.
        after: called with the optimizer after each step, before the step is counted.

    Attributes:
        num_steps: steps taken since it was attached, or since the state that was loaded.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        before: Act | None = None,
        after: Act | None = None,
    ) -> None:
        self.num_steps = 0
        self._before = before
        self._after = after
        self._handles = (
            optimizer.register_step_pre_hook(self._begin),
            optimizer.register_step_post_hook(self._end),
        )

    def _begin(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._before is not None:
            self._before(optimizer)

    def _end(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._after is not None:
            self._after(optimizer)
        self.num_steps += 1

    def remove(self) -> None:
        """Detach it from the optimizer, whose steps are then its own again."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps taken."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting where `state` was taken."""
        self.num_steps = state["num_steps"]
