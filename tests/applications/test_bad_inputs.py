"""Every bad input is one clear sentence before the first step; what lies beside it trains."""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from applications import compare
from applications.data.splits import split_task
from applications.data.tasks import CARRIED_TASK
from applications.errors import UsageError
from applications.families.classification import TextClassification
from applications.families.generation import TextGeneration
from applications.families.tagging import TokenClassification
from applications.models.loading import device, load_pretrained
from applications.options.command_line import parse_options
from applications.options.commands import COMMANDS
from applications.options.completion import completed
from applications.runs.phases import phases, prepare
from blo import Engine
from tests.applications import tiny_writers
from tests.applications.bad_inputs import FILES, GOOD, GRIDS, OPTIONS, File

Train = Callable[[Sequence[str], str], None]
HEADS = {"nlu": BertForSequenceClassification, "token_classification": BertForTokenClassification}
FAMILIES: dict[str, Any] = {
    "nlu": TextClassification,
    "token_classification": TokenClassification,
    "nlg": TextGeneration,
}
FLAGS = ["--lora_r=2", "--max_steps=1", "--per_device_train_batch_size=4", "--device=cpu"]
ONE_SENTENCE = re.compile(r"[^\n]{20,900}")


@pytest.fixture(scope="module")
def train(tiny_model: str) -> Train:
    """A function from flags and a command that checks everything and trains one round.

    It is the run of the command but for its model, which is made instead of read.
    """

    @cache
    def tokenizer() -> Any:
        return AutoTokenizer.from_pretrained(tiny_model)

    def load_bert(command: str) -> Callable[..., Any]:
        def load(self: Any, options: Any, task: Any) -> Any:
            config = BertConfig.from_pretrained(tiny_model, num_hidden_layers=1)
            config.num_labels = task.num_labels
            config.problem_type = "regression" if task.kind == "regression" else None
            return HEADS[command](config), tokenizer()

        return load

    def load_gpt2(self: Any, options: Any, task: Any) -> Any:
        words = tiny_writers.tokenizer("gpt2")
        words.pad_token, words.model_max_length = words.eos_token, tiny_writers.POSITIONS
        config = GPT2Config(
            vocab_size=len(words), n_embd=8, n_layer=1, n_head=1, n_positions=tiny_writers.POSITIONS
        )
        return GPT2LMHeadModel(config), words

    def run(flags: Sequence[str], command: str) -> None:
        load = load_gpt2 if command == "nlg" else load_bert(command)
        family = type("Quick", (FAMILIES[command],), {"load_base": load})()
        short = ["--max_new_tokens=8"] if command == "nlg" else []
        groups = COMMANDS[command].groups
        options = completed(parse_options([*FLAGS, *short, *flags], groups=groups), family)
        device(options.model)
        task = family.load_task(options.data)
        work = prepare(options, family, task, split_task(task, options.data))
        engine = Engine(next(phases(work)).graph)
        assert engine.run(1).round == 1

    return run


def written(file: File, folder: Path) -> list[str]:
    """The flags of a file."""
    content = file.content if isinstance(file.content, bytes) else file.content.encode()
    (folder / file.name).write_bytes(content)
    return ["--train_file", str(folder / file.name), *file.flags]


def refused(work: Callable[[], Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        work()
    said = str(caught.value)
    assert ONE_SENTENCE.fullmatch(said), said
    assert re.search(says, said), said


@pytest.mark.parametrize("what", FILES)
def test_a_bad_file_is_one_sentence_and_the_file_beside_it_trains(
    what: str, train: Train, tmp_path: Path
) -> None:
    bad, says, beside = FILES[what]
    refused(lambda: train(written(bad, tmp_path), bad.command), says)
    train(written(beside, tmp_path), beside.command)


@pytest.mark.parametrize("what", OPTIONS)
def test_bad_options_are_one_sentence_and_those_beside_them_train(
    what: str, train: Train, tmp_path: Path
) -> None:
    bad, says, beside = OPTIONS[what]
    data = written(File(GOOD), tmp_path)
    refused(lambda: train([*data, "--method=lora", *bad], "nlu"), says)
    train([*data, "--method=lora", *beside], "nlu")


@pytest.mark.parametrize("what", GRIDS)
def test_a_bad_grid_is_refused_at_planning_and_the_one_beside_it_is_planned(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, flags, says, beside = GRIDS[what]
    place = tmp_path / "grid.json"
    place.write_text(bad if isinstance(bad, str) else json.dumps(bad))
    words = [str(place), "--out", str(tmp_path / "out"), "--dry_run"]
    assert compare.main([*words, *flags]) == 2
    said = capsys.readouterr().err.strip()
    assert ONE_SENTENCE.fullmatch(said), said
    assert re.search(says, said), said
    place.write_text(json.dumps(beside))
    assert compare.main(words) == 0
    assert CARRIED_TASK in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


# Folders of models: what is changed in a copy of a whole one, and what is said.


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def not_finite(folder: Path) -> None:
    values = load_file(folder / "model.safetensors")
    values["encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(values, folder / "model.safetensors", {"format": "pt"})


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names]  # type: ignore[return-value]


def one_token_more(folder: Path) -> None:
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["more"])
    words.save_pretrained(str(folder))


def an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an empty folder": (emptied, "holds no config.json; give a folder with"),
    "truncated weights": (cut, r"cannot be loaded \(.*take a whole copy"),
    "empty weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "cannot be loaded",
    ),
    "no weights": (without("model.safetensors"), "can be read neither as a folder nor"),
    "a broken config": (lambda f: (f / "config.json").write_text("{"), "can be read neither"),
    "an unknown architecture": (configured(model_type="nosuch"), "cannot be loaded .*`nosuch`"),
    "code of its own": (
        configured(model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "cannot be loaded .*custom code",
    ),
    "another width": (configured(hidden_size=32), "of them are of other shapes"),
    "more layers than weights": (configured(num_hidden_layers=4), "of them are missing"),
    "weights that are not finite": (not_finite, r"are not finite \(bert.encoder.layer.1.output"),
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        "holds a model and no tokenizer",
    ),
    "a broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "cannot be loaded|can be read neither",
    ),
    "a token too many": (one_token_more, "the tokenizer .* has 32 tokens, the model knows 31"),
    "an adapter": (an_adapter, "holds an adapter, not a base model"),
}


@pytest.mark.parametrize("what", MODELS)
def test_a_bad_model_is_one_sentence(what: str, tiny_model: str, tmp_path: Path) -> None:
    change, says = MODELS[what]
    folder = copytree(tiny_model, tmp_path / "model")
    flags = ["--model", str(folder)]
    settings = {"num_labels": 3, "ignore_mismatched_sizes": True}

    def load() -> Any:
        options = parse_options(flags).model
        return load_pretrained(AutoModelForSequenceClassification, options, **settings)

    if what == "an empty folder":
        model, tokenizer = load()  # the whole one beside them all
        assert (model.num_labels, len(tokenizer)) == (3, 31)
    change(folder)
    refused(load, says)


def test_the_table_has_at_least_150_rows() -> None:
    assert sum(map(len, (FILES, OPTIONS, GRIDS, MODELS))) >= 150
