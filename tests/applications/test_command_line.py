import json
import signal
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from applications import reweight
from applications.errors import UsageError
from applications.nlu import main
from applications.options.arguments import GenerationOptions, Options
from applications.options.command_line import GROUPS, parse_options, parser, words
from applications.runs.interruption import Interrupted
from applications.weighting import speaking


def test_flags_have_the_names_of_the_example_scripts_and_short_aliases() -> None:
    long = parse_options(["--model_name_or_path", "x", "--task_name", "sst2"])
    short = parse_options(["--model", "x", "--task", "sst2"])
    hyphens = parse_options(["--model-name-or-path", "x", "--task-name", "sst2"])
    assert long == short == hyphens
    assert (long.model.model_name_or_path, long.data.task_name) == ("x", "sst2")


def test_target_modules_are_read_with_spaces_or_commas() -> None:
    spaced = parse_options(["--lora_target_modules", "query", "value"])
    assert spaced == parse_options(["--lora_target_modules", "query,value"])
    assert spaced.adapter.lora_target_modules == ["query", "value"]


@pytest.mark.parametrize(
    "flag, value, remedy",
    [
        ("seed", "three", "invalid int value"),
        ("method", "qlora", "choose from"),
        ("upper_fraction", "1.0", "between 0 and 1"),
        ("test_fraction", "0", "between 0 and 1"),
        ("validation_fraction", "-0.5", "at least 0"),
        ("lower_steps", "0", "at least 1"),
        ("lora_r", "0", "at least 1"),
        ("lora_dropout", "1", "less than 1"),
        ("learning_rate", "-1", "greater than 0"),
        ("learning_rate", "nan", "greater than 0"),
        ("weight_decay", "inf", "at least 0"),
        ("max_steps", "0", "at least 1"),
        ("max_train_samples", "1", "at least 2"),
        ("lr_scheduler_type", "wavy", "one of"),
        ("hypergradient_scale", "0", "greater than 0"),
        ("binarisation", "0.1", "singular_values binary"),
    ],
)
def test_a_bad_value_is_an_error_with_argument_value_and_remedy(
    flag: str, value: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options([f"--{flag}", value])
    message = str(caught.value)
    assert f"--{flag}" in message
    assert value.rstrip("0").rstrip(".") in message
    assert remedy in message


def test_cg_refuses_a_scale() -> None:
    with pytest.raises(UsageError, match=r"--hypergradient_scale.*cg has no scale.*2\.0"):
        parse_options(["--hypergradient", "cg", "--hypergradient_scale", "2"])


def test_a_misspelt_flag_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean --upper_fraction"):
        parse_options(["--uper_fraction", "0.3"])


def test_options_survive_the_way_through_words_and_a_configuration_file(tmp_path: Path) -> None:
    options = parse_options(
        ["--task", "cr", "--lora_target_modules", "q", "v", "--export_lora", "--max_steps", "-1"]
    )
    assert parse_options(words(options.as_dict())) == options
    file = tmp_path / "run.json"
    file.write_text(json.dumps(options.as_dict()))
    assert parse_options([str(file)]) == options


def test_flags_override_a_configuration_file_and_that_the_presets(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\nlora_r: 4\n")
    presets = {"seed": 1, "lora_r": 2, "max_steps": 7}
    options = parse_options([str(file), "--lora_r", "5"], presets=presets)
    assert (options.run.seed, options.adapter.lora_r, options.run.max_steps) == (3, 5, 7)


def test_an_unknown_key_in_a_configuration_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"sed": 3}')
    with pytest.raises(UsageError, match=r"run\.json.*'sed'"):
        parse_options([str(file)])


def test_every_option_is_explained_in_the_help() -> None:
    groups = {**GROUPS, "generation": GenerationOptions}
    names = [group.name for group in fields(Options)]
    assert names == [*groups, "sequence", "weighting", "dry_run"]
    text = parser(groups).format_help()
    for group in groups.values():
        for option in fields(group):
            assert f"--{option.name}" in text
            assert option.metadata["help"]


def test_the_command_prints_one_line_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--upper_fraction", "2"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: argument --upper_fraction")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("command", ["compare", "continual", "reweight"])
def test_commands_that_are_one_process_refuse_several(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--out", "grid"] if command == "compare" else []
    assert import_module(f"applications.{command}").main(words) == 2
    assert f"applications.{command} is one process" in capsys.readouterr().err


def test_an_interruption_says_its_own_sentence_and_returns_its_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(options: Options) -> None:
        raise Interrupted("nothing can be gone on with", signal.SIGTERM)

    monkeypatch.setattr(speaking, "run", ended)
    assert reweight.main([]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "nothing can be gone on with\n"


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.json", '{"seed": 1, "lora_r": 2, "seed": 2}'),
        ("a.yaml", "seed: 1\nlora_r: 2\nseed: 2\n"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UsageError, match=r"cannot be read: the key 'seed' is there twice$"):
        parse_options([str(file)])
    file.write_text(text.replace("seed", "split_seed", 1))
    options = parse_options([str(file)])
    assert (options.data.split_seed, options.run.seed) == (1, 2)


def test_a_broken_file_of_options_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for text in ("seed:\t1\n\tx: 2", "seed: !!python/object/apply:os.system ['true']", "{"):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"cannot be read: [^\n]*$"):
            parse_options([str(file)])
    file.write_text("base: &b {a: 1}\nother: {<<: *b, a: 2}\n")
    with pytest.raises(UsageError, match="unknown options"):
        parse_options([str(file)])


def test_a_tilde_is_the_home_folder_in_files_of_options_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = parse_options(["--output_dir=~/runs/a", "--train_file=~/a.csv", "--data_dir=a~b"])
    assert options.run.output_dir == str(tmp_path / "runs/a")
    assert (options.data.train_file, options.data.data_dir) == (str(tmp_path / "a.csv"), "a~b")
