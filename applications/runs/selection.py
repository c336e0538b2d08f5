"""Which step of a run is the best, by its score on held-out data."""

from dataclasses import dataclass

from applications.errors import UsageError
from applications.families.metrics import Evaluation

SMALLER_IS_BETTER = ("loss", "ece", "brier", "perplexity")


@dataclass
class Selection:
    """The step with the best score on held-out data, and when to stop waiting for a better one."""

    metric: str
    patience: int | None = None
    best: float | None = None
    lower_steps: int = 0
    waited: int = 0

    def improved(self, found: Evaluation, lower_steps: int) -> bool:
        """Whether this is the best evaluation so far; a tie is not better.

        Raises:
            UsageError: the task has no such metric.
        """
        scores = {"loss": found.loss, **found.metrics}
        if self.metric not in scores:
            raise UsageError(
                f"argument --metric_for_best_model: no metric {self.metric!r}; choose one of "
                f"{', '.join(scores)}"
            )
        score = scores[self.metric]
        if score is not None and self.metric in SMALLER_IS_BETTER:
            score = -score
        if score is None or (self.best is not None and score <= self.best):
            self.waited += 1
            return False
        self.best, self.lower_steps, self.waited = score, lower_steps, 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience
