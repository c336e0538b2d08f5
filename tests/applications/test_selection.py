"""Which step is selected, and when waiting for a better one ends."""

import pytest

from applications.errors import UsageError
from applications.families.metrics import Evaluation
from applications.runs.selection import Selection


def found(loss: float, accuracy: float | None = 0.5) -> Evaluation:
    return Evaluation(loss, {"accuracy": accuracy})


def chosen(metric: str, evaluations: list[Evaluation]) -> int:
    selection = Selection(metric)
    for step, evaluation in enumerate(evaluations, start=1):
        selection.improved(evaluation, step)
    return selection.lower_steps


def test_less_loss_and_more_of_a_metric_are_better() -> None:
    evaluations = [found(0.5, 0.1), found(0.2, 0.3), found(0.3, 0.9), found(0.4, 0.2)]
    assert chosen("loss", evaluations) == 2
    assert chosen("accuracy", evaluations) == 3


def test_of_equal_scores_the_first_is_selected() -> None:
    assert chosen("loss", [found(0.5), found(0.2), found(0.2)]) == 2
    assert chosen("accuracy", [found(0.5, 0.7), found(0.4, 0.7)]) == 1


def test_a_score_that_is_not_defined_is_never_selected() -> None:
    assert chosen("accuracy", [found(0.5, None), found(0.5, 0.1), found(0.5, None)]) == 2


def test_patience_counts_evaluations_since_the_best() -> None:
    selection = Selection("loss", patience=2)
    losses = [0.5, 0.6, 0.4, 0.4, 0.7]
    exhausted = []
    for step, loss in enumerate(losses):
        selection.improved(found(loss), step)
        exhausted.append(selection.exhausted)
    assert exhausted == [False, False, False, False, True]


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no metric 'f1'; choose one of loss, accuracy"):
        Selection("f1").improved(found(0.5), 1)
