"""What a run leaves: adapters for PEFT alone, tokenizer, labels, card, last lines, trackers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from applications.runs.finished import finished_run
from tests.applications.left_runs import CLASSES, FOLDED, Left

IDS = torch.tensor([[2, 5, 9, 16, 3], [2, 20, 4, 7, 3]])

# Runs the three lines that the run said, in a process where this package cannot be imported.
READER = """
import json, sys, warnings
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("adapters", "applications", "blo"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
try:
    import adapters
except ImportError as error:
    assert "blocked" in str(error)
warnings.simplefilter("ignore")
import peft, torch
found = {}
for name, (lines, adapter, ids) in json.loads(sys.stdin.read()).items():
    names = {}
    exec(lines, names)
    batch = {"input_ids": torch.tensor(ids)}
    config = names["model"].config
    result = {"labels": config.id2label, "words": names["tokenizer"].decode(ids[0])}
    with torch.no_grad():
        result["logits"] = names["model"].eval()(**batch).logits.flatten().tolist()
        if adapter:
            settings = peft.PeftConfig.from_pretrained(adapter)
            result["type"] = settings.peft_type.value
            with names["model"].disable_adapter():
                result["base"] = names["model"](**batch).logits.flatten().tolist()
    found[name] = result
print("RESULT" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def read(left: dict[str, Left]) -> dict[str, Any]:
    """What a process with stock PEFT found in each folder."""
    asked = {}
    for name in (*FOLDED, "chance", "pairs"):
        adapter = left[name].folder / "adapter"
        kept = str(adapter) if adapter.is_dir() else None
        asked[name] = (left[name].lines, kept, IDS.tolist())
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", READER],
        input=json.dumps(asked),
        cwd=left["bilora"].folder,
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.split("RESULT")[1])
    return found


def logits(run: Left) -> torch.Tensor:
    """Those of the model in the form it was trained in, its masks off."""
    model, _ = finished_run(run.folder).load()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("name", [*FOLDED, "chance", "pairs"])
def test_the_lines_it_says_load_it_without_this_package(
    name: str, left: dict[str, Left], read: dict[str, Any]
) -> None:
    expected, found = logits(left[name]).flatten(), read[name]
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, rtol=1e-5, atol=1e-5)
    if name in FOLDED:
        assert found["type"] == "LORA"
        moved = torch.tensor(found["base"]) - expected
        assert moved.abs().max() > 1e-2  # the adapter does something
    if name in CLASSES:
        assert list(found["labels"].values()) == ["animals", "food", "tools"]
    if name == "tags":
        assert list(found["labels"].values()) == ["O", "B-animal"]
    assert "[UNK]" not in found["words"]


def test_the_form_that_was_trained_stands_beside_it(left: dict[str, Left]) -> None:
    for name in FOLDED:
        folder = left[name].folder
        own = load_file(folder / "adapter_training" / "adapter_model.safetensors")
        plain = load_file(folder / "adapter" / "adapter_model.safetensors")
        if name == "bidora":
            assert all(torch.equal(own[key], plain[key]) for key in plain)
        else:
            assert len(own) > len(plain) or name == "dropout"
            assert {key for key in plain if "lora_" in key} <= {*own}
    assert not (left["pairs"].folder / "adapter_training").exists()  # PEFT's own LoRA


def test_what_no_peft_checkpoint_can_hold_says_so(left: dict[str, Left]) -> None:
    run = left["columns"]
    assert not (run.folder / "adapter").exists()
    (note,) = [line for line in run.said.splitlines() if line.startswith("no adapter/")]
    assert "norm_axis='in'" in note
    assert "adapter_training/ loads where this package is installed" in note
    names: dict[str, Any] = {}
    exec(run.lines, names)
    with torch.no_grad():
        found = names["model"].eval()(input_ids=IDS).logits
    torch.testing.assert_close(found, logits(run))
    assert note.split(":")[0] in (run.folder / "report.html").read_text()


def test_the_last_lines_say_metric_folder_loading_and_predicting(left: dict[str, Left]) -> None:
    run = left["bilora"]
    said = run.said.splitlines()[-15:]
    assert said[0] == ""
    assert said[1].split()[:5] == ["split", "examples", "loss", "accuracy", "f1"]
    counts = {"training": "48", "validation": "12", "test": "30"}
    assert dict(line.split()[:2] for line in said[2:5]) == counts
    assert said[-8].startswith(f"folder: {run.folder} ")
    assert said[-7] == f"adapter: {run.folder / 'adapter'}, of the last step"
    assert (said[-6], said[-2]) == ("load it:", "predict with it:")
    assert said[-1].split()[:4] == ["python", "-m", "applications.predict", str(run.folder)]


def test_the_selected_step_is_told_with_its_place(left: dict[str, Left]) -> None:
    run = left["decay"]
    assert re.search(
        rf"^selected: {run.folder / 'selected'}, of search, after [24] of 4 updates$",
        run.said,
        re.MULTILINE,
    )


def test_a_run_that_was_tested_under_masks_says_what_the_folder_computes(
    left: dict[str, Left],
) -> None:
    assert "adapter/ is the adapter with its masks off" in left["dropout"].said
    assert "masks" not in left["bilora"].said


def test_the_card_has_the_numbers_of_the_run(left: dict[str, Left]) -> None:
    for name, place in {"bilora": "adapter", "columns": "adapter_training"}.items():
        folder = left[name].folder
        summary = json.loads((folder / "summary.json").read_text())
        card = ModelCard.load(folder / place / "README.md")
        (result,) = card.data.eval_results
        assert result.metric_value == summary["test_metric"]
        assert (result.metric_type, result.dataset_split) == ("accuracy", "test")
        numbers = summary["metrics"]
        for split in ("train", "validation", "test"):
            row = next(line for line in card.text.splitlines() if line.startswith(f"| {split} |"))
            cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
            assert cells[:2] == [f"{numbers[split][n]:.4g}" for n in ("loss", "accuracy")]
            assert cells[-1] == f"{numbers[split]['ece']:.4g}"
        gaps = [numbers["test"][n] - numbers["train"][n] for n in ("loss", "accuracy")]
        assert "| test - train | " + " | ".join(f"{gap:.4g}" for gap in gaps) in card.text
        for told in (
            *("38 examples lower, 10 upper (21%)", "darts, scale of the response"),
            *("seeds: 0, of the splits 0", "base model: "),
        ):
            assert told in card.text
        assert f"method: {summary['method']}, {summary['trainable_params']}" in card.text


def test_the_card_of_the_selected_step_has_its_numbers(left: dict[str, Left]) -> None:
    folder = left["decay"].folder
    chosen = json.loads((folder / "summary.json").read_text())["selected"]
    for name in ("selected", "selected_training"):
        card = ModelCard.load(folder / name / "README.md")
        assert card.data.eval_results[0].metric_value == chosen["test_metric"]
        row = (
            f"| validation | {chosen['validation_loss']:.4g} | {chosen['validation_metric']:.4g} |"
        )
        assert row in card.text


def test_tensorboard_is_sent_the_lines_of_the_log(left: dict[str, Left]) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = left["bilora"].folder
    found = events.EventAccumulator(str(folder / "logs" / "blo-torch"))
    found.Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "losses" in line]
    for level in ("upper", "lower"):
        sent = found.Scalars(f"search/losses/{level}")
        assert [event.step for event in sent] == [line["lower_steps"] for line in logged]
        values = [line["losses"][level] for line in logged]
        assert [event.value for event in sent] == pytest.approx(values, rel=1e-6)
    summary = json.loads((folder / "summary.json").read_text())
    (last,) = found.Scalars("final/test/accuracy")
    assert (last.step, last.value) == (4, pytest.approx(summary["test_metric"]))


def test_a_run_cleared_for_another_leaves_none_of_the_old_forms(
    left: dict[str, Left], tmp_path: Path
) -> None:
    from shutil import copytree

    from applications.runs.outputs import RunFolder

    copy = copytree(left["bilora"].folder, tmp_path / "run")
    RunFolder(copy).clear()
    assert {path.name for path in copy.iterdir()} == {"lock", "mark.json"}
