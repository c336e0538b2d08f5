"""Against scikit-learn and SciPy; the calibration error against its definition."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
import torch
from torch import Tensor

from applications.families.metrics import ECE_BINS, evaluation


def predictions(classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(200, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (200,), generator=generator)
    labels[:120] = logits[:120].argmax(-1)
    return logits, labels


# torchmetrics counts in float32.
ATOL = 1e-6


@pytest.mark.parametrize("classes", [2, 5])
def test_classification_metrics_are_those_of_scikit_learn(classes: int) -> None:
    logits, labels = predictions(classes)
    found = evaluation(logits, labels, "classification")
    y, guess = labels.numpy(), logits.argmax(-1).numpy()
    average = "binary" if classes == 2 else "macro"
    expected = {
        "accuracy": sk.accuracy_score(y, guess),
        "f1": sk.f1_score(y, guess, average=average),
        "matthews": sk.matthews_corrcoef(y, guess),
    }
    for name, value in expected.items():
        assert found.metrics[name] == pytest.approx(value, abs=ATOL)
    probabilities = logits.softmax(-1).numpy()
    assert found.loss == pytest.approx(sk.log_loss(y, probabilities), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 5])
def test_ece_is_the_mean_gap_of_fifteen_equal_bins_of_top_confidence(classes: int) -> None:
    logits, labels = predictions(classes)
    probabilities = logits.softmax(-1).numpy()
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels.numpy()
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    gaps = [
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean())
        for b in range(ECE_BINS)
        if (bins == b).any()
    ]
    found = evaluation(logits, labels, "classification")
    assert found.metrics["ece"] == pytest.approx(sum(gaps), abs=ATOL)


def test_regression_metrics_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(100, generator=generator) * 5
    outputs = (targets + torch.randn(100, generator=generator)).unsqueeze(-1)
    found = evaluation(outputs, targets, "regression")
    x, y = outputs.squeeze(-1).numpy(), targets.numpy()
    assert found.metrics["pearson"] == pytest.approx(scipy.stats.pearsonr(x, y)[0], abs=ATOL)
    assert found.metrics["spearman"] == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=ATOL)
    assert found.loss == pytest.approx(sk.mean_squared_error(y, x), abs=ATOL)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_brier_score_is_the_mean_squared_distance_to_the_truth(classes: int) -> None:
    logits, labels = predictions(classes)
    probabilities = logits.softmax(-1).numpy()
    truth = np.eye(classes)[labels.numpy()]
    expected = ((probabilities - truth) ** 2).sum(-1).mean()
    found = evaluation(logits, labels, "classification").metrics["brier"]
    assert found == pytest.approx(expected, abs=ATOL)
    if classes == 2:  # scikit-learn's counts one of the two classes
        half = sk.brier_score_loss(labels.numpy(), probabilities[:, 1])
        assert found == pytest.approx(2 * half, abs=ATOL)


def test_the_bins_of_a_reliability_diagram_add_up_to_the_calibration_error() -> None:
    logits, labels = predictions(5)
    found = evaluation(logits, labels, "classification")
    assert found.reliability is not None
    assert [b["count"] for b in found.reliability if b["confidence"] is None] == [
        0 for b in found.reliability if b["count"] == 0
    ]
    assert sum(b["count"] for b in found.reliability) == len(labels)
    filled = [b for b in found.reliability if b["count"]]
    gap = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in filled) / len(labels)
    assert gap == pytest.approx(found.metrics["ece"], abs=ATOL)
    right = sum(b["count"] * b["accuracy"] for b in filled) / len(labels)
    assert right == pytest.approx(found.metrics["accuracy"], abs=ATOL)
    for k, each in enumerate(found.reliability):
        if each["confidence"] is not None:
            assert k / ECE_BINS < each["confidence"] <= (k + 1) / ECE_BINS


@pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero")
def test_an_undefined_correlation_is_none() -> None:
    found = evaluation(torch.ones(4, 1), torch.arange(4.0), "regression")
    assert found.metrics["pearson"] is None
