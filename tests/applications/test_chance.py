"""A run that ends at chance says so, and one that does not says nothing."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset

from applications.families.metrics import Evaluation
from applications.options.command_line import parse_options
from applications.runs.chance import at_chance, remedies
from tests.applications.left_runs import Left

CLASSES = Dataset.from_dict({"text": ["a"] * 4, "label": [0, 0, 0, 1]})
NUMBERS = Dataset.from_dict({"text": ["a"] * 4, "label": [0.0, 0.0, 2.0, 2.0]})
TAGS = Dataset.from_dict({"tokens": [["a"]], "tags": [[0]]})


@pytest.mark.parametrize(
    "kind, examples, found, reason",
    [
        ("classification", CLASSES, Evaluation(1.0, {"accuracy": 0.75}), "frequent class .* 0.750"),
        ("classification", CLASSES, Evaluation(1.0, {"accuracy": 0.25}), "frequent class"),
        ("classification", CLASSES, Evaluation(1.0, {"accuracy": 0.8}), None),
        ("regression", NUMBERS, Evaluation(0.9, {"pearson": None}), "every prediction is the same"),
        ("regression", NUMBERS, Evaluation(1.0, {"pearson": 0.1}), "mean of the labels .* 1"),
        ("regression", NUMBERS, Evaluation(0.9, {"pearson": 0.1}), None),
        ("tagging", TAGS, Evaluation(1.0, {"f1": 0.0, "precision": None}), "no entity is found"),
        ("tagging", TAGS, Evaluation(1.0, {"f1": 0.0, "precision": 0.0}), "none .* finds is right"),
        ("tagging", TAGS, Evaluation(1.0, {"f1": None, "precision": None}), None),
        ("tagging", TAGS, Evaluation(1.0, {"f1": 0.1}), None),
    ],
)
def test_chance_is_what_the_answers_alone_would_give(
    kind: str, examples: Dataset, found: Evaluation, reason: str | None, tmp_path: Path
) -> None:
    said = at_chance(kind, found, examples, tmp_path, "train")
    if reason is None:
        assert said is None
    else:
        assert re.search(reason, str(said))


def test_one_text_for_all_inputs_is_chance(tmp_path: Path) -> None:
    found = Evaluation(1.0, {"bleu": 3.0})
    for texts, constant in ((["a", "a"], True), (["a", "b"], False), (["a"], False)):
        rows = [json.dumps({"source": str(n), "hypothesis": t}) for n, t in enumerate(texts)]
        (tmp_path / "generated.jsonl").write_text("\n".join(rows) + "\n")
        said = at_chance("generation", found, TAGS, tmp_path, "test")
        assert (said is not None) is constant


def test_a_run_at_chance_says_what_to_try(left: dict[str, Left]) -> None:
    said = left["chance"].said
    assert "The run ends at chance and has learned nothing: on the train split accuracy is" in said
    assert "a larger --learning_rate, such as 5e-09" in said
    assert "ends at chance" in (left["chance"].folder / "report.html").read_text()


def test_the_shrunken_softmax_of_bilora_is_the_first_to_suspect() -> None:
    first = remedies(parse_options(["--method", "bilora"]), "train")[0]
    assert first.startswith("--scale_by_rank")
    assert not remedies(parse_options(["--method", "lora"]), "train")[0].startswith("--scale")
