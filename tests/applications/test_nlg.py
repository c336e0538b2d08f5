"""Whole runs of text generation, on a tiny GPT-2 (whose layers are Conv1D) and a tiny Llama."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from applications import nlg
from applications.data.splits import split_task
from applications.families.family import Setting
from applications.families.generation import TextGeneration
from applications.families.text_metrics import text_scores
from applications.options.arguments import GenerationOptions, ModelOptions, Options
from applications.options.command_line import GROUPS, parse_options
from applications.options.completion import completed
from applications.runs import phases
from applications.runs.phases import prepare
from tests.applications.tiny_runs import (
    ALL_METHODS,
    METHODS,
    Run,
    cut_and_resumed,
    logged,
    reloaded,
    run,
    untimed,
)
from tests.applications.tiny_writers import ARCHITECTURES, write_data, write_model

FAMILY = TextGeneration()
ONE = pytest.mark.parametrize("writer", ["gpt2"], indirect=True)
NLG_GROUPS = {**GROUPS, "generation": GenerationOptions}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restaurants")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def written_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ARCHITECTURES}
    for name, folder in folders.items():
        write_model(folder, name)
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(params=ARCHITECTURES)
def writer(
    request: pytest.FixtureRequest, written_models: dict[str, str], data: Path, tmp_path: Path
) -> Run:
    """A function from flags to the options of a tiny run."""

    def options(method: str, *flags: str, folder: str = "run") -> Options:
        return parse_options(words(method, *flags, folder=folder), groups=NLG_GROUPS)

    def words(method: str, *flags: str, folder: str = "run") -> list[str]:
        return [
            *("--model", written_models[request.param], "--data_dir", str(data)),
            *("--method", method, "--output_dir", str(tmp_path / folder), "--device", "cpu"),
            *("--lora_r", "2", "--learning_rate", "1e-2", "--max_steps", "6", "--disable_tqdm"),
            *("--per_device_train_batch_size", "8", "--logging_steps", "2", "--num_beams", "2"),
            *("--max_new_tokens", "8", "--max_seq_length", "48", *flags),
        ]

    options.words = words  # type: ignore[attr-defined]
    return options


@pytest.mark.parametrize("method", ALL_METHODS)
def test_every_method_starts_as_the_base_model(method: str, writer: Run) -> None:
    options = completed(writer(method), FAMILY)
    task = FAMILY.load_task(options.data)
    work = prepare(options, FAMILY, task, split_task(task, options.data))

    def loss(model: torch.nn.Module) -> float:
        setting = replace(work, options=options)
        return FAMILY.evaluate(
            model, work.splits.test, setting, split="test", stage="training"
        ).loss

    # The base model has no masks to take the mean over.
    options = replace(options, adapter=replace(options.adapter, ensemble=False))
    before = loss(work.base)
    # Adapters sum in another order (float32).
    assert loss(next(phases.phases(work)).model) == pytest.approx(before, rel=1e-5)


# One phase, and two with a retrained model between; all methods are resumed in test_repetition.
@pytest.mark.parametrize("method", ["lora", "bidora"])
def test_a_resumed_run_is_the_straight_run_bit_for_bit(method: str, writer: Run) -> None:
    flags = ("--max_steps", "8", "--save_steps", "3", "--eval_steps", "4")
    flags += ("--predict_with_generate",)
    cut, straight = cut_and_resumed(partial(writer, method, *flags), (None, 4), FAMILY)
    for name in ("generated.jsonl", "adapter/adapter_model.safetensors"):
        assert (cut / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_saved_adapter_reloads_to_the_same_numbers(method: str, writer: Run) -> None:
    options = writer(method)
    summary, folder = run(options, FAMILY)
    bleu, loss = reloaded(options, folder / "adapter", FAMILY)
    # What is folded into B, and PEFT's own DoRA, sum in another order (float32).
    assert loss == pytest.approx(summary["test_loss"], rel=1e-5)
    assert bleu == summary["test_metric"]


def test_the_exported_lora_gives_the_same_test_loss(writer: Run) -> None:
    options = writer("bilora", "--export_lora")
    summary, folder = run(options, FAMILY)
    # Folding the values into B changes the order of float32 products.
    _, loss = reloaded(options, folder / "lora", FAMILY)
    assert loss == pytest.approx(summary["test_loss"], rel=1e-5)


@ONE
def test_training_moves_both_factors_of_every_adapted_layer(writer: Run) -> None:
    _, folder = run(writer("bilora", "--lora_r", "4"), FAMILY)
    values = load_file(folder / "adapter" / "adapter_model.safetensors")
    learned = [value for name, value in values.items() if "lora_B" in name or "_b" in name.lower()]
    assert learned
    assert all(value.abs().max() > 0 for value in learned)


@ONE
def test_the_summary_scores_the_texts_in_the_folder_against_all_references(
    writer: Run, data: Path
) -> None:
    summary, folder = run(writer("lora"), FAMILY)
    rows = [json.loads(line) for line in (folder / "generated.jsonl").read_text().splitlines()]
    pairs = [line.rsplit(",", 1) for line in (data / "test.csv").read_text().splitlines()[1:]]
    references: dict[str, list[str]] = {}
    for meaning, text in pairs:
        references.setdefault(meaning, []).append(text)
    assert [row["references"] for row in rows] == list(references.values())
    expected = text_scores([row["hypothesis"] for row in rows], [row["references"] for row in rows])
    assert summary["metric_name"] == "bleu"
    assert summary["test_metric"] == expected["bleu"]
    found = summary["metrics"]["test"]
    assert found == {**expected, "loss": found["loss"], "perplexity": found["perplexity"]}
    assert summary["metrics"]["train"]["bleu"] is None
    assert summary["generalisation_gap"] is None
    assert summary["train_size"] == 24


def test_a_model_trained_on_few_texts_writes_them_word_by_word(
    writer: Run, data: Path, tmp_path: Path
) -> None:
    rows = (data / "train.csv").read_text().splitlines()
    texts = {row.split("]")[0]: row for row in reversed(rows[1:])}  # one for each name
    few, again = tmp_path / "few.csv", tmp_path / "again.csv"  # one file for both is refused
    for file in (few, again):
        file.write_text("\n".join([rows[0], *list(texts.values())[:5]]) + "\n")
    flags = ("--train_file", str(few), "--test_file", str(again), "--max_steps", "200")
    summary, folder = run(writer("full", *flags), FAMILY)
    assert summary["train_loss"] < 0.1
    for line in (folder / "generated.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert [row["hypothesis"]] == row["references"]
    assert summary["test_metric"] == pytest.approx(100)


@ONE
def test_evaluations_during_training_generate_only_where_asked(writer: Run) -> None:
    scores = {}
    for flags in ((), ("--predict_with_generate",)):
        _, folder = run(writer("lora", "--eval_steps", "3", *flags, folder=f"{len(flags)}"), FAMILY)
        lines = [line["validation"] for line in logged(folder) if "validation" in line]
        assert len(lines) == 2
        scores[flags] = lines
    assert all(line["bleu"] is None for line in scores[()])
    assert all(line["bleu"] is not None for line in scores[("--predict_with_generate",)])
    for plain, generated in zip(*scores.values(), strict=True):
        assert plain["loss"] == generated["loss"]


@ONE
def test_no_input_of_d2_is_trained_on_below(writer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[Dataset] = []
    encode = TextGeneration.encode

    def remember(self: TextGeneration, examples: Dataset, *rest: Any) -> Any:
        parts.append(examples)
        return encode(self, examples, *rest)

    monkeypatch.setattr(TextGeneration, "encode", remember)
    options = completed(writer("bilora"), FAMILY)
    task = FAMILY.load_task(options.data)
    next(phases.phases(prepare(options, FAMILY, task, split_task(task, options.data))))
    read = {frozenset(part["source"]) for part in parts}
    lower, upper = sorted(read, key=len, reverse=True)
    assert (len(lower), len(upper)) == (19, 5)
    assert not lower & upper


@ONE
def test_max_eval_samples_limits_the_texts_generated(writer: Run) -> None:
    _, folder = run(writer("lora", "--max_eval_samples", "3"), FAMILY)
    assert len((folder / "generated.jsonl").read_text().splitlines()) == 3


@ONE
def test_a_new_run_leaves_no_text_of_an_earlier_one(writer: Run) -> None:
    _, folder = run(writer("lora", "--generate_on", "train,test"), FAMILY)
    run(writer("lora", "--generate_on", "validation"), FAMILY)
    names = {file.name for file in folder.glob("*.jsonl")}
    assert names == {"metrics.jsonl", "generated-validation.jsonl"}


@ONE
def test_the_written_configuration_repeats_the_run(writer: Run, tmp_path: Path) -> None:
    template = "a {source}\nand"
    first, folder = run(writer("lora", "--prompt_template", template), FAMILY)
    assert json.loads((folder / "config.json").read_text())["prompt_template"] == template
    flags = [str(folder / "config.json"), "--output_dir", str(tmp_path / "again")]
    again, _ = run(parse_options(flags, groups=NLG_GROUPS), FAMILY)
    assert untimed(again) == untimed(first)


@ONE
def test_the_command_says_the_score_and_leaves_the_folder(
    writer: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[str] = writer.words("lora")  # type: ignore[attr-defined]
    assert nlg.main(words) == 0
    said = capsys.readouterr().out
    assert re.search(r"^On \d+ test examples bleu is \d", said, re.MULTILINE)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"config.json", "summary.json", "metrics.jsonl", "adapter", "generated.jsonl"}


@ONE
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_beams", "0"], "argument --num_beams: must be at least 1, got 0"),
        (["--max_seq_length", "10"], "argument --max_seq_length"),
        (["--task_name", "e2e"], "devset.csv"),
        (["--max_new_tokens", "60"], "argument --max_new_tokens"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_status_2(
    flags: list[str],
    message: str,
    writer: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words: list[str] = writer.words("lora", *flags)  # type: ignore[attr-defined]
    assert nlg.main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@ONE
def test_full_training_saves_a_model_that_loads_by_its_folder(writer: Run) -> None:
    options = writer("full")
    summary, folder = run(options, FAMILY)
    task = FAMILY.load_task(options.data)
    model, tokenizer = FAMILY.load_base(
        ModelOptions(model_name_or_path=options.model.model_name_or_path), task
    )
    kept = load_file(folder / "model" / "model.safetensors")
    model.load_state_dict(kept)
    found = FAMILY.evaluate(
        model,
        task.splits["test"],
        Setting(options, task, tokenizer),
        split="test",
        stage="final",
    )
    assert found.loss == pytest.approx(summary["test_loss"], rel=1e-6)
