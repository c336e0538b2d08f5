"""Commands and trainers in two processes, against one with batches of twice the size."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.models import adapted
from tests.applications.conftest import (
    datasets_cache,  # noqa: F401
    tiny_data,  # noqa: F401
    tiny_model,  # noqa: F401
)
from tests.applications.test_token_classification import sentences  # noqa: F401
from tests.applications.tiny_writers import write_data, write_model
from tests.two_processes import spoken, trained

# transformers' own: its progress callback and its saved random state.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ROOT = Path(__file__).resolve().parents[1]


def words(folder: Path, given: dict[str, Any], size: int) -> dict[str, list[str]]:
    """The command lines; those of one process are for batches of twice the size."""

    def line(name: str, command: str, method: str, *flags: str) -> list[str]:
        model, data = given["dropout" if name == "whole" else command]
        return [
            *(command, "--model", str(model), "--data_dir", str(data), "--method", method),
            *("--device", "cpu", "--disable_tqdm", "--lora_r", "2", "--logging_steps", "1"),
            *("--per_device_train_batch_size", str(size), *flags),
            *("--output_dir", str(folder / name)),
        ]

    still = ("--learning_rate", "1e-30", "--max_steps", "1", "--max_eval_samples", "7")
    trains = ("--learning_rate", "1e-2", "--max_steps", "3", "--eval_steps", "2")
    exact = ("--hypergradient", "t1t2", "--upper_fraction", "0.3333")  # of 48: whole batches
    return {
        "nlu": line("nlu", "nlu", "bilora", *trains, *exact, "--max_eval_samples", "29"),
        "token_classification": line("tags", "token_classification", "lora", *still),
        "nlg": line("nlg", "nlg", "lora", *still, "--max_new_tokens", "4", "--num_beams", "1"),
        "whole": line(
            "whole", "nlu", "bidora", *trains, "--save_steps", "2", "--save_total_limit", "9"
        ),
        "killed": line("killed", "nlu", "lora", *trains, "--save_steps", "1"),
    }


@pytest.fixture(scope="module")
def given(
    tiny_model: str,  # noqa: F811
    tiny_data: Path,  # noqa: F811
    sentences: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Models and data by command: the BERT without dropout, with it, and a GPT-2."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "restaurants").mkdir()
    write_data(folder / "restaurants")
    write_model(folder / "gpt2", "gpt2")
    still = folder / "still"
    still.mkdir()
    for path in Path(tiny_model).iterdir():
        (still / path.name).write_bytes(path.read_bytes())
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    return {
        "nlu": (still, tiny_data),
        "dropout": (tiny_model, tiny_data),
        "token_classification": (still, sentences),
        "nlg": (folder / "gpt2", folder / "restaurants"),
    }


@pytest.fixture(scope="module")
def two(
    given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the two processes, and what each has answered."""
    folder = tmp_path_factory.mktemp("two")
    lines = words(folder, given, 4)
    lines["whole"][0] = "nlu"
    torch.save(lines, folder / "words.pt")
    command = [sys.executable, "-m", "tests.two_processes", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )
    answers = [torch.load(folder / f"answers-{rank}.pt", weights_only=False) for rank in range(2)]
    for rank, answer in enumerate(answers):
        assert "error" not in answer, f"process {rank}:\n{answer['error']}\n{done.stderr[-2000:]}"
    return folder, answers


@pytest.fixture(scope="module")
def alone(given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process, with the same runs."""
    folder = tmp_path_factory.mktemp("alone")
    for name, line in words(folder, given, 8).items():
        if name in ("nlu", "nlg", "token_classification"):
            assert spoken(line)[0] == 0
    return folder


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_command_in_two_processes_is_the_run_of_one_with_twice_the_batch(
    two: tuple[Path, list[dict[str, Any]]], alone: Path
) -> None:
    folder, _ = two
    found, expected = summary(folder / "nlu"), summary(alone / "nlu")
    for split, metrics in expected["metrics"].items():
        assert found["metrics"][split] == pytest.approx(metrics, abs=1e-5), split
    assert found["device"].endswith("2 processes")
    for key in ("num_lower_steps", "num_upper_steps", "num_gradients", "train_size"):
        assert found[key] == expected[key]
    # AdamW divides small gradients, rounding and all, by their size: updates of 1e-2.
    for key, value in adapter(alone / "nlu").items():
        torch.testing.assert_close(adapter(folder / "nlu")[key], value, rtol=0, atol=5e-5)
    logs = [(at / "nlu" / "metrics.jsonl").read_text().splitlines() for at in (folder, alone)]
    assert len(logs[0]) == len(logs[1])
    for ours, theirs in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert ours.get("losses") == pytest.approx(theirs.get("losses"), abs=1e-5)


@pytest.mark.parametrize("name", ["tags", "nlg"])
def test_evaluations_are_gathered_without_a_repeated_example(
    name: str, two: tuple[Path, list[dict[str, Any]]], alone: Path
) -> None:
    """Seven examples on two processes; the model is that at the start."""
    folder, _ = two
    found, expected = (summary(at / name)["metrics"] for at in (folder, alone))
    for split, metrics in expected.items():
        assert found[split] == pytest.approx(metrics, abs=1e-6), split
    if name == "nlg":
        texts = [(at / name / "generated.jsonl").read_text() for at in (folder, alone)]
        assert texts[0] == texts[1]
        assert len(texts[0].splitlines()) == 7


def test_the_first_process_alone_speaks_and_writes(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, answers = two
    for name in ("nlu", "nlg", "token_classification", "whole", "resumed"):
        assert [answer["commands"][name][0] for answer in answers] == [0, 0]
    assert "results in" in answers[0]["commands"]["nlu"][1]
    assert [text for answer in answers[1:] for text in answer["commands"]["nlu"][1:]] == ["", ""]
    rounds = [
        json.loads(line) for line in (folder / "nlu" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["round"] for line in rounds if "losses" in line] == [1, 2, 3]


def test_a_resumed_command_is_the_whole_one_bit_for_bit(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    """Dropout of each process's own, and a second phase with new parameters."""
    folder, _ = two
    assert summary(folder / "resumed")["metrics"] == summary(folder / "whole")["metrics"]
    whole = adapter(folder / "whole")
    for name, value in adapter(folder / "resumed").items():
        assert torch.equal(value, whole[name]), name


def test_a_run_is_resumed_by_as_many_processes(
    two: tuple[Path, list[dict[str, Any]]], given: dict[str, Any]
) -> None:
    folder, _ = two
    line = words(folder, given, 4)["nlu"]
    status, _, said = spoken([*line, "--resume"])
    assert status == 2
    assert re.search("argument --resume: .* written by 2 processes, and there are 1", said)


def test_a_process_that_dies_ends_the_other_with_a_message(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    status, _, said = torch.load(two[0] / "killed.pt")
    assert status == 1
    assert "process 0 of 2 ends, because another one is gone" in said
    assert "--resume goes on" in said


@pytest.mark.parametrize("kind", ["equal", "uneven"])
def test_a_trainer_in_two_processes_is_that_of_one_with_twice_the_batch(
    kind: str, two: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Uneven: other numbers of tokens on each, normalised as Trainer does; clipped, accumulated."""
    expected = trained(kind, tmp_path, 4)["values"]
    first, second = (answer["trainers"][kind]["values"] for answer in two[1])
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)


def test_masks_are_each_process_s_own_and_the_gradient_is_the_same_on_all(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    runs = [answer["trainers"]["masks"] for answer in two[1]]
    assert any("multiplies it by 2" in text for text in runs[0]["said"])
    states = [run["seen"][0] for run in runs]
    assert not torch.equal(*states)
    for ours, theirs in zip(*(run["seen"][1] for run in runs), strict=True):
        assert torch.equal(ours, theirs)


def test_a_resumed_trainer_is_the_whole_one_bit_for_bit(
    two: tuple[Path, list[dict[str, Any]]],
) -> None:
    for answer in two[1]:
        found = answer["trainers"]
        assert found["files"] == ["two_level.pt", "two_level_1.pt"]
        start = adapted("bert", "real", moved=0.3).state_dict()
        for name, value in found["masks"]["values"].items():
            assert torch.equal(value, found["resumed"]["values"][name]), name
        assert any(not torch.equal(v, start[n]) for n, v in found["masks"]["values"].items())
