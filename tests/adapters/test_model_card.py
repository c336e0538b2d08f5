"""The bi-level section of a model card."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel

from adapters import levels, two_level
from adapters.results.model_card import write_model_card
from blo import Engine, darts
from tests.adapters.models import METHODS, adapted, base_model, bert, inputs, output

SCORES: dict[str, dict[str, float | None]] = {
    "train": {"loss": 0.25, "accuracy": 0.9375, "ece": 0.02},
    "validation": {"loss": 0.5, "accuracy": 0.875, "ece": 0.04},
    "test": {"loss": 0.75, "accuracy": 0.75, "ece": 0.1},
}


def options(**changes: Any) -> dict[str, Any]:
    return {
        "lower_examples": 80,
        "upper_examples": 20,
        "scores": SCORES,
        "response": "darts()",
        "seeds": {"split": 0, "model": 7},
        **changes,
    }


def written(model: PeftModel, path: Path, **changes: Any) -> str:
    model.save_pretrained(path)
    return write_model_card(path, model, **options(**changes)).read_text()


def section(text: str) -> str:
    return text.split("<!-- bi-level -->")[1].split("<!-- /bi-level -->")[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_section_tells_split_and_levels(method: str, tmp_path: Path) -> None:
    model = adapted("bert", method)
    text = section(written(model, tmp_path))
    split = levels(model)
    upper, lower = (sum(p.numel() for p in level) for level in (split.upper, split.lower))
    kind = "lora_magnitude_vector" if method == "bidora" else "lora_diagonal"
    assert f"| upper | 20 | 20% | {upper:,} | `{kind}` |" in text
    factors = "`lora_A`, `lora_B`, `modules_to_save`"
    assert f"| lower | 80 | 80% | {lower:,} | {factors} |" in text
    assert "seeds: split 0, model 7" in text


def test_the_section_tells_scores_and_gaps(tmp_path: Path) -> None:
    text = section(written(adapted("mlp", "real"), tmp_path))
    for row in (
        "| | loss | accuracy | ECE |",
        "| train | 0.25 | 0.9375 | 0.02 |",
        "| validation | 0.5 | 0.875 | 0.04 |",
        "| test | 0.75 | 0.75 | 0.1 |",
        "| test - train | 0.5 | -0.1875 | 0.08 |",
        "| test - validation | 0.25 | -0.125 | 0.06 |",
    ):
        assert row in text.splitlines()


def test_what_is_not_defined_is_not_a_number(tmp_path: Path) -> None:
    scores = {
        "train": {"loss": math.inf, "pearson": 0.5},
        "test": {"loss": 1.0, "pearson": None},
    }
    text = section(written(adapted("mlp", "real"), tmp_path, scores=scores, metrics=["pearson"]))
    assert "| train | n/a | 0.5 |" in text
    assert "| test - train | n/a | n/a |" in text
    assert "ECE" not in text


def test_the_response_of_a_run_is_told_with_its_scale(tmp_path: Path) -> None:
    model = adapted("bert", "softmax")
    split = levels(model)
    groups = [{"params": split.lower[:2], "lr": 0.25}, {"params": split.lower[2:], "lr": 0.125}]
    graph = two_level(
        model,
        loss=lambda batch: model(**batch).loss,
        upper_batches=[inputs("bert", 21)],
        lower_batches=[inputs("bert", 20)],
        upper_optimizer=torch.optim.SGD(split.upper, 0.1),
        lower_optimizer=torch.optim.SGD(groups),
        method=darts(),
        steps=2,
    )
    (record,) = Engine(graph).rounds(1)
    text = section(written(model, tmp_path, response=record.responses["upper <- lower"], steps=2))
    assert f"- hypergradient: `{darts()!r}`" in text
    assert "- scale of the response: 0.25, 0.125" in text
    assert "- radius of the difference: " in text
    assert "- lower updates for each upper one: 2" in text


def test_the_section_follows_what_peft_wrote(tmp_path: Path) -> None:
    model = adapted("bert", "softmax")
    model.save_pretrained(tmp_path)
    before = (tmp_path / "README.md").read_text()
    text = write_model_card(tmp_path, model, **options()).read_text()
    assert text.startswith(before.rstrip())
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data == ModelCard(before).data.to_dict()
    assert data["library_name"] == "peft"


def test_writing_again_replaces_the_section(tmp_path: Path) -> None:
    model = adapted("bert", "softmax")
    first = written(model, tmp_path, notes="The first run.")
    second = write_model_card(tmp_path, model, **options(notes="The second run.")).read_text()
    assert "The first run." in first
    assert second == first.replace("The first run.", "The second run.")
    again = written(model, tmp_path, notes="The second run.")  # PEFT rewrites the card on save
    assert section(again) == section(second)
    assert again.count("## Bi-level training") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_folder_with_a_card_still_loads(tmp_path: Path) -> None:
    model = adapted("bert", "softmax", moved=0.3)
    written(model, tmp_path)
    loaded = PeftModel.from_pretrained(bert(), tmp_path)
    batch = inputs("bert")
    torch.testing.assert_close(output(loaded, batch), output(model, batch), rtol=1e-6, atol=1e-6)


def test_a_name_with_a_bar_stays_in_its_cell(tmp_path: Path) -> None:
    scores = {split: {"loss": 1.0, "a|b": 0.5} for split in ("train", "test")}
    text = written(adapted("mlp", "real"), tmp_path, scores=scores, metrics=["a|b"])
    assert "| | loss | a\\|b |" in text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lower_examples": 0}, "lower_examples must be at least 1, got 0"),
        ({"upper_examples": -1}, "upper_examples must be at least 1, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seeds": {}}, "seeds must name at least one"),
        ({"scores": {"train": {"loss": 1.0, "accuracy": 1.0}}}, "scores must hold 'test'"),
        ({"scores": {**SCORES, "dev": {}}}, "scores must have the keys .* got 'dev'"),
        ({"metrics": ["f1"]}, r"scores\['train'\] must hold 'f1'"),
    ],
)
def test_misuse_names_the_argument_and_leaves_the_card(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = adapted("mlp", "real")
    model.save_pretrained(tmp_path)
    before = (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match=message):
        write_model_card(tmp_path, model, **options(**changes))
    assert (tmp_path / "README.md").read_text() == before


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"call model\.save_pretrained\(path\) first"):
        write_model_card(tmp_path, adapted("mlp", "real"), **options())


def test_a_model_without_levels_is_refused(tmp_path: Path) -> None:
    adapted("mlp", "real").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no active bi-level adapter"):
        write_model_card(tmp_path, base_model("mlp"), **options())
