"""Against scikit-learn and SciPy; the calibration error against its definition."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
import torch
from torch import Tensor, nn

from applications.common.metrics import ECE_BINS, evaluate, evaluation


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


class Outputs:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Linear(nn.Module):
    """A model in the form of transformers: keywords in, ``logits`` out; with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Outputs:
        return Outputs(self.layer(self.dropout(x)))


def test_an_evaluation_in_batches_is_that_of_the_whole_and_changes_no_state() -> None:
    model = Linear().train()
    x, labels = torch.randn(10, 3), torch.arange(10) % 2
    batches = [{"x": x[i : i + 4], "labels": labels[i : i + 4]} for i in (0, 4, 8)]
    before = torch.get_rng_state()
    found = evaluate(model, batches, kind="classification", device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    probabilities = model.layer(x).detach().double().softmax(-1)
    assert found.loss == pytest.approx(sk.log_loss(labels.numpy(), probabilities), abs=1e-6)


@pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero")
def test_an_undefined_correlation_is_none() -> None:
    found = evaluation(torch.ones(4, 1), torch.arange(4.0), "regression")
    assert found.metrics["pearson"] is None
