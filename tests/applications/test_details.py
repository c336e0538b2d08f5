"""What lies behind the metrics, against scikit-learn and seqeval's own report, and by hand."""

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from seqeval.metrics import classification_report

from applications.families.details import NUM_MISTAKES, of_classes, of_numbers
from applications.families.entities import of_entities


def test_class_scores_and_confusions_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(200, 4, generator=generator)
    labels = torch.randint(4, (200,), generator=generator)
    names, texts = list("abcd"), [str(n) for n in range(200)]
    found = of_classes(outputs, labels, names, texts)
    guess = outputs.argmax(-1)
    assert np.array_equal(found.confusion, sk.confusion_matrix(labels, guess))
    expected = sk.classification_report(labels, guess, target_names=names, output_dict=True)
    for name in names:
        one, other = found.per_class[name], expected[name]
        assert one["support"] == other["support"]
        for key, theirs in {"precision": "precision", "recall": "recall", "f1": "f1-score"}.items():
            assert one[key] == pytest.approx(other[theirs])  # type: ignore[literal-required]


def test_the_surest_mistakes_come_first() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 5.0], [0.0, 1.0], [4.0, 0.0]])
    found = of_classes(logits, torch.tensor([1, 0, 0, 0]), ["no", "yes"], ["a", "b", "c", "d"])
    assert [(m.text, m.truth, m.predicted) for m in found.mistakes] == [
        ("b", "no", "yes"),
        ("a", "yes", "no"),
        ("c", "no", "yes"),
    ]
    assert found.num_mistakes == 3
    assert found.mistakes[0].weight == pytest.approx(1 / (1 + np.exp(-5.0)))


def test_ratios_of_nothing_are_none_and_few_mistakes_are_kept() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0]] * 50)
    found = of_classes(logits, torch.ones(50, dtype=torch.int64), list("xyz"), ["t"] * 50)
    assert found.per_class["x"] == {"precision": 0.0, "recall": None, "f1": 0.0, "support": 0}
    assert found.per_class["y"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 50}
    assert set(found.per_class["z"].values()) == {None, 0}
    assert (len(found.mistakes), found.num_mistakes) == (NUM_MISTAKES, 50)


def test_numbers_are_ordered_by_their_distance() -> None:
    outputs, labels = torch.tensor([[1.0], [2.5], [3.0]]), torch.tensor([1.0, 0.5, 3.5])
    found = of_numbers(outputs, labels, ["a", "b", "c"])
    assert [(m.text, m.weight) for m in found.mistakes] == [("b", 2.0), ("c", 0.5), ("a", 0.0)]
    assert found.per_class == {}


def test_entities_are_scored_by_type_as_seqeval_reports_them() -> None:
    truth = [["B-per", "I-per", "O", "B-loc"], ["O", "B-org"], ["O"]]
    guess = [["B-per", "I-per", "O", "B-org"], ["O", "B-org"], ["O"]]
    words = [["Ada", "Byron", "in", "Rome"], ["at", "Bell"], ["so"]]
    found = of_entities(truth, guess, words)
    expected = classification_report(truth, guess, output_dict=True, zero_division=0)
    for kind in ("per", "org"):
        one = found.per_class[kind]
        assert one["precision"] == expected[kind]["precision"]
        assert one["f1"] == pytest.approx(expected[kind]["f1-score"])
        assert one["support"] == expected[kind]["support"]
    assert found.per_class["loc"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    (mistake,) = found.mistakes
    assert mistake.truth == "Ada Byron (per); Rome (loc)"
    assert mistake.predicted == "Ada Byron (per); Rome (org)"
    assert mistake.weight == 2
    assert of_entities([["O"]], [["O"]], [["so"]]).per_class == {}
