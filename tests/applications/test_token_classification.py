"""Whole runs of token classification: seconds each, on a random model."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from applications import nlu, token_classification
from applications.data.splits import split_task
from applications.errors import UsageError
from applications.families.family import Setting
from applications.families.tagging import IGNORED, TokenClassification
from applications.options.arguments import Options
from applications.options.command_line import parse_options
from applications.runs.experiment import finetune
from tests.applications.conftest import FILLERS, TOPICS
from tests.applications.tiny_runs import (
    METHODS,
    cut_and_resumed,
    reloaded,
    run,
    same_tensors,
    untimed,
)

FAMILY = TokenClassification()
Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.conll (24 sentences), dev.conll (8) and test.conll (12), two types.

    A food is an entity of its own; animals are, joined by a hyphen that makes them three pieces.
    """
    folder = tmp_path_factory.mktemp("sentences")
    draw = random.Random(0)
    for split, count in {"train": 24, "dev": 8, "test": 12}.items():
        rows = []
        for _ in range(count):
            sentence = [(word, "O") for word in draw.sample(FILLERS, draw.randint(1, 4))]
            sentence += [(draw.choice(TOPICS["food"]), "B-food")] * draw.randint(0, 1)
            sentence += [("-".join(draw.sample(TOPICS["animals"], 2)), "B-animal")]
            sentence += [(draw.choice(TOPICS["animals"]), "I-animal")] * draw.randint(0, 1)
            rows.append("".join(f"{word}\t{tag}\n" for word, tag in sentence))
        (folder / f"{split}.conll").write_text("\n".join(rows))
    return folder


@pytest.fixture
def words(tiny_model: str, sentences: Path, tmp_path: Path) -> Words:
    """A function from flags to the words of a command line."""

    def line(method: str, *flags: str, folder: str = "run") -> list[str]:
        return [
            *("--model", tiny_model, "--data_dir", str(sentences), "--method", method),
            *("--output_dir", str(tmp_path / folder), "--device", "cpu", "--disable_tqdm"),
            *("--lora_r", "2", "--learning_rate", "1e-2", "--max_steps", "6"),
            *("--per_device_train_batch_size", "8", "--logging_steps", "2", *flags),
        ]

    return line


@pytest.mark.parametrize("method", ["lora", "bilora", "bidora"])
def test_a_resumed_run_is_the_straight_run_bit_for_bit(method: str, words: Words) -> None:
    def make(*flags: str, folder: str) -> Options:
        return parse_options(
            words(method, "--save_steps", "2", "--eval_steps", "3", *flags, folder=folder)
        )

    cut, straight = cut_and_resumed(make, (None, 3), FAMILY)
    name = "adapter/adapter_model.safetensors"
    same_tensors(cut / name, straight / name)


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_adapter_reloads_with_its_head_to_the_same_test_numbers(
    method: str, words: Words
) -> None:
    options = parse_options(words(method))
    summary, folder = run(options, FAMILY)
    metric, loss = reloaded(options, folder / "adapter", FAMILY)
    # What is folded into B, and PEFT's own DoRA, sum in another order (float32).
    assert loss == pytest.approx(summary["test_loss"], rel=1e-5)
    assert metric == summary["test_metric"]


def test_the_summary_reports_entities_and_words(words: Words) -> None:
    summary, _ = run(parse_options(words("full", "--max_steps", "60")), FAMILY)
    assert summary["metric_name"] == "f1"
    for split in ("train", "validation", "test"):
        found = summary["metrics"][split]
        assert {"f1_animal", "f1_food", "precision", "recall", "accuracy", "brier"} <= set(found)
        assert found["coverage"] == 1.0
        precision, recall = found["precision"], found["recall"]
        harmonic = 2 * precision * recall / (precision + recall)
        assert found["f1"] == pytest.approx(harmonic, rel=1e-12)
    # Every word tells its tag, so training learns them.
    assert summary["train_metric"] == summary["metrics"]["train"]["f1"] == 1.0


def test_evaluation_is_that_of_a_forward_pass_sentence_by_sentence(words: Words) -> None:
    options = parse_options(words("lora", "--max_steps", "1"))
    task = FAMILY.load_task(options.data)
    test = split_task(task, options.data).test
    torch.manual_seed(0)
    model, tokenizer = FAMILY.load_base(options.model, task)
    found = FAMILY.evaluate(
        model,
        test,
        Setting(options, task, tokenizer),
        split="test",
        stage="final",
    )
    nll, right = [], []
    with torch.no_grad():
        for row, example in zip(FAMILY.encode(test, tokenizer, options), test, strict=True):
            inputs = {k: torch.tensor([v]) for k, v in row.items() if k != "labels"}
            logits = model.eval()(**inputs).logits[0].double()
            first = [k for k, label in enumerate(row["labels"]) if label != IGNORED]
            for position, tag in zip(first, example["tags"], strict=True):
                nll.append(-float(logits[position].log_softmax(-1)[tag]))
                right.append(int(logits[position].argmax()) == tag)
    # Padding changes the order of float32 sums.
    assert found.loss == pytest.approx(math.fsum(nll) / len(nll), rel=1e-5)
    assert found.metrics["accuracy"] == sum(right) / len(right)


def test_the_training_loss_is_the_mean_over_first_pieces(words: Words) -> None:
    options = parse_options(words("lora"))
    task = FAMILY.load_task(options.data)
    torch.manual_seed(0)
    model, tokenizer = FAMILY.load_base(options.model, task)
    batch = FAMILY.collator(tokenizer)(FAMILY.encode(task.splits["train"], tokenizer, options))
    with torch.no_grad():
        found = model.eval()(**batch)
    marked = batch["labels"] != IGNORED
    assert int(marked.sum()) == sum(map(len, task.splits["train"]["tags"]))
    chosen = found.logits.log_softmax(-1)[marked].gather(1, batch["labels"][marked][:, None])
    assert float(found.loss) == pytest.approx(-float(chosen.mean()), rel=1e-6)


def test_an_evaluation_changes_neither_mode_nor_random_state(words: Words) -> None:
    options = parse_options(words("lora"))
    task = FAMILY.load_task(options.data)
    model, tokenizer = FAMILY.load_base(options.model, task)
    model.train()
    before = torch.get_rng_state()
    FAMILY.evaluate(
        model,
        task.splits["test"],
        Setting(options, task, tokenizer),
        split="test",
        stage="training",
    )
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_command_runs_and_repeats_from_its_configuration(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert token_classification.main(words("lora", "--max_steps", "2")) == 0
    assert " test examples f1 is " in capsys.readouterr().out
    again = [str(tmp_path / "run" / "config.json"), "--output_dir", str(tmp_path / "again")]
    assert token_classification.main(again) == 0
    first, second = (
        json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("run", "again")
    )
    assert untimed(first) == untimed(second)


def test_results_go_to_a_folder_named_after_the_command(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = words("lora", "--max_steps", "1", "--task_name", "my-words")
    place = line.index("--output_dir")
    del line[place : place + 2]
    finetune(parse_options(line), FAMILY, say=lambda text: None)
    folder = tmp_path / "runs" / "token_classification" / "my-words-lora-seed0"
    assert (folder / "summary.json").is_file()


@pytest.mark.parametrize(
    "command,task,other",
    [(nlu, "wnut17", "token_classification"), (token_classification, "sst2", "nlu")],
)
def test_a_task_of_another_command_is_refused_with_that_command(
    command: Any, task: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--task_name", task]) == 2
    expected = f"{task!r} is a task of python -m applications.{other}"
    assert expected in capsys.readouterr().err


def test_no_data_are_asked_for_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert token_classification.main([]) == 2
    assert "give --task_name, --data_dir or --train_file" in capsys.readouterr().err


def test_a_tokenizer_that_cannot_tell_words_is_refused(
    words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Options = parse_options(words("lora"))
    task = FAMILY.load_task(options.data)
    _, tokenizer = FAMILY.load_base(options.model, task)
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    with pytest.raises(UsageError, match=r"--model_name_or_path.*tokenizer\.json"):
        FAMILY.load_base(options.model, task)
