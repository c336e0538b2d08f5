"""Temperature scaling against SciPy's minimiser and torchmetrics' calibration error."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from scipy.special import log_softmax, softmax  # type: ignore[import-untyped]
from torchmetrics.classification import MulticlassCalibrationError

from applications.families.metrics import Evaluation, evaluation
from applications.families.tagging import tagging_evaluation
from applications.families.temperature import CALIBRATED, calibrated, temperature


def drawn(seed: int, *, scale: float, classes: int = 3, count: int = 200) -> Evaluation:
    """Logits that are ``scale`` times those that the labels were drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    return evaluation(scale * logits, labels, "classification")


def nll(evaluated: Evaluation, scale: float) -> float:
    """The mean negative log-likelihood at a temperature, in NumPy."""
    assert evaluated.outputs is not None
    logits, labels = (part.numpy() for part in evaluated.outputs)
    return float(-log_softmax(logits / scale, axis=-1)[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("scale", [0.2, 1.0, 8.0])
def test_the_temperature_is_where_scipy_finds_the_least_loss(scale: float) -> None:
    found = drawn(0, scale=scale)
    assert found.outputs is not None
    expected = minimize_scalar(
        lambda log_t: nll(found, math.exp(log_t)), bounds=(-4, 4), method="bounded"
    )
    assert math.log(temperature(*found.outputs)) == pytest.approx(expected.x, abs=1e-4)


def test_test_data_are_scaled_by_the_temperature_of_the_held_out_data() -> None:
    held_out, test = drawn(1, scale=5.0), drawn(2, scale=5.0)
    found = calibrated(held_out, test)
    assert held_out.outputs is not None
    assert test.outputs is not None
    scale = temperature(*held_out.outputs)
    logits, labels = test.outputs
    probabilities = softmax(logits.numpy() / scale, axis=-1)
    ece = MulticlassCalibrationError(num_classes=3, n_bins=15, norm="l1")
    truth = np.eye(3)[labels.numpy()]
    assert found["temperature"] == scale
    assert found["calibrated_loss"] == pytest.approx(nll(test, scale), rel=1e-12)
    assert found["calibrated_ece"] == pytest.approx(
        float(ece(torch.from_numpy(probabilities), labels)), rel=1e-6
    )
    assert found["calibrated_brier"] == pytest.approx(
        float(((probabilities - truth) ** 2).sum(-1).mean()), rel=1e-12
    )
    assert found["calibrated_loss"] < test.loss  # five times too sure of itself


def test_without_a_minimum_the_loss_is_near_its_infimum_and_the_temperature_within_limits() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    for labels, infimum in (([0, 1], 0.0), ([1, 0], math.log(2))):
        found = evaluation(logits, torch.tensor(labels), "classification")
        scale = temperature(logits, torch.tensor(labels))
        assert 0.01 <= scale <= 100
        assert nll(found, scale) == pytest.approx(infimum, abs=2e-2)


def test_tags_have_a_temperature_too() -> None:
    logits = [torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])]
    found = tagging_evaluation(logits, [[0, 1, 2]], [[0, 1, 1]], ["O", "B-x"])
    assert found.outputs is not None
    assert torch.equal(found.outputs[0], torch.cat(logits).double())
    assert found.outputs[1].tolist() == [0, 1, 1]


def test_without_held_out_data_or_classes_there_is_no_temperature() -> None:
    classes = drawn(3, scale=1.0, count=20)
    numbers = evaluation(torch.randn(4, 1), torch.randn(4), "regression")
    assert calibrated(None, classes) == calibrated(numbers, numbers) == dict.fromkeys(CALIBRATED)
