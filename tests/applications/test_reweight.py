"""The command applications.reweight, on a random model of two layers and files of a few rows."""

import json
import os
import random
import re
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from applications.families.classification import TextClassification
from applications.options.command_line import parse_options
from applications.reweight import ALL_GROUPS, main
from applications.runs.outputs import SUMMARY_KEYS, RunFolder
from tests.applications.conftest import TOPICS, sentence


def write_rows(
    file: Path, count: int, *, wrong: bool = False, seed: int = 0, source: str = ""
) -> Path:
    draw = random.Random(seed)
    topics = list(TOPICS)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for number in range(count):
        topic = topics[number % 3]
        said = topics[(number + 1) % 3] if wrong else topic
        row = {"text": sentence(topic, draw), "label": said, "truth": topic}
        rows.append(row | ({"source": source} if source else {}))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources that are right and one that is not, a target, a test set."""
    folder = tmp_path_factory.mktemp("files")
    write_rows(folder / "good.jsonl", 30, seed=1)
    write_rows(folder / "also.jsonl", 24, seed=2)
    write_rows(folder / "bad.jsonl", 36, seed=3, wrong=True)
    write_rows(folder / "target.jsonl", 24, seed=4)
    write_rows(folder / "test.jsonl", 18, seed=5)
    for name, wrong, seed in (("ann", False, 1), ("bob", True, 3)):
        write_rows(folder / "one.jsonl", 24, wrong=wrong, seed=seed, source=name)
    return folder


SEARCHED = {"softmax", "non_negative", "floor", "--controls"}


@pytest.fixture
def words(files, tiny_model, tmp_path):
    """A function from flags to the words of a run of seconds."""

    def made(*flags: str, sources: bool = True) -> list[str]:
        named = [f"{name}={files / name}.jsonl" for name in ("good", "also", "bad")]
        search = ["--weight_folds", "2"]
        if SEARCHED.intersection(flags):
            search += ["--max_weight_steps", "4"]
        return [
            *(("--sources", ",".join(named)) if sources else ()),
            *("--target_file", str(files / "target.jsonl")),
            *("--test_file", str(files / "test.jsonl"), "--text_columns", "text"),
            *("--model", tiny_model, "--output_dir", str(tmp_path / "run"), "--device", "cpu"),
            *("--disable_tqdm", "--lora_r", "2", "--max_steps", "2"),
            *(() if "online" in flags else search),
            *(() if "--fine_tune" in flags else ("--target_steps", "2")),
            *flags,
        ]

    return made


def read(tmp_path, name):
    return json.loads((tmp_path / "run" / name).read_text())


def test_a_run_leaves_weights_mixture_adapter_summary_and_page(words, tmp_path, capsys):
    controls = "two_stage,agreement,oracle"
    flags = ("--controls", controls, "--truth_column", "truth", "--explain", "--method", "lora")
    assert main(words(*flags)) == 0
    weights, mixed = read(tmp_path, "weights.json"), read(tmp_path, "mixture.json")
    assert list(weights["sources"]) == ["good", "also", "bad"]
    assert weights["sources"]["bad"]["weight"] < weights["sources"]["good"]["weight"]
    assert [weights["sources"][name]["size"] for name in ("good", "also", "bad")] == [30, 24, 36]
    assert weights["right"] == {"good": 1.0, "also": 1.0, "bad": 0.0}
    assert [row["method"] for row in weights["controls"]] == ["weights", *controls.split(",")]
    oracle = weights["controls"][-1]["weights"]
    assert oracle == pytest.approx([90 / 54, 90 / 54, 0])
    for row in weights["controls"][1:]:
        assert row["difference"] == pytest.approx(
            weights["controls"][0]["test_metric"] - row["test_metric"]
        )
    assert set(weights["explained"]) == set(weights["signs"]) == {"good", "also", "bad"}
    signs = weights["signs"]
    assert min(signs, key=lambda name: signs[name]["pull"]) == "bad"
    assert signs["bad"]["pull"] < 0 < signs["good"]["pull"]
    assert not signs["bad"]["harms"]  # two folds of 12 leave a wide interval
    assert signs["bad"]["agreement"] < signs["good"]["agreement"]
    assert sum(mixed["probabilities"]) == pytest.approx(1)
    summary = read(tmp_path, "summary.json")
    assert tuple(summary) == SUMMARY_KEYS
    assert [phase["name"] for phase in summary["phases"]] == ["training", "target"]
    assert summary["train_size"] == 90
    page = (tmp_path / "run" / "weights.html").read_text()
    assert "<svg" in page
    assert "agreement" in page
    assert (tmp_path / "run" / "weights.svg").read_text().startswith("<svg")
    options = parse_options(words(*flags), groups=ALL_GROUPS)
    base, _ = TextClassification().load_base(options.model, TextClassificationTask(3))
    assert isinstance(PeftModel.from_pretrained(base, str(tmp_path / "run/adapter")), PeftModel)
    said = capsys.readouterr().out
    assert "bad" in said
    assert all(control in said for control in controls.split(","))


class TextClassificationTask:
    """As much of a task as a head needs."""

    kind = "classification"
    label_names = ("animals", "food", "tools")

    def __init__(self, num_labels):
        self.num_labels = num_labels


@pytest.mark.parametrize("form", ["helpful", "softmax"])
def test_a_column_of_a_file_names_the_sources(words, files, tmp_path, form):
    column = ("--train_file", str(files / "one.jsonl"), "--source_column", "source")
    flags = ("--fine_tune", "false", "--form", form)
    assert main(words(*column, *flags, sources=False)) == 0
    found = read(tmp_path, "weights.json")
    weights = found["sources"]
    assert weights["bob"]["weight"] < weights["ann"]["weight"]
    assert (found["form"], len(found["curve"])) == (form, 5 if form == "softmax" else 0)
    assert ("Upper steps" in (tmp_path / "run/weights.html").read_text()) == (form == "softmax")
    if form == "helpful":  # 48 rows of two annotators, of which one is kept
        assert (weights["bob"]["weight"], weights["ann"]["weight"]) == (0, 2)
    for entry in read(tmp_path, "mixture.json")["trl"]["datasets"]:
        rows = Path(entry["data_files"]).read_text().splitlines()
        assert len(rows) == 24
        assert set(json.loads(rows[0])) == {"text", "label", "truth"}
    summary = read(tmp_path, "summary.json")
    assert tuple(summary) == SUMMARY_KEYS
    assert summary["test_metric"] is not None


def test_bi_level_adapters_see_the_sources_below_and_the_target_above(words, tmp_path):
    flags = ("--method", "bilora", "--singular_values", "real", "--retraining", "values")
    assert main(words(*flags)) == 0
    phases = read(tmp_path, "summary.json")["phases"]
    assert [phase["name"] for phase in phases] == ["search", "retraining", "target"]


@pytest.mark.parametrize("form", ["softmax", "non_negative"])
def test_the_online_route_moves_the_weights_along_the_training(words, tmp_path, capsys, form):
    flags = ("--route", "online", "--form", form, "--max_steps", "6", "--learning_rate", "1e-2")
    flags += ("--hypergradient", "t1t2")
    assert main(words(*flags, "--method", "lora", "--weight_learning_rate", "0.1")) == 0
    assert "not used" not in capsys.readouterr().out
    weights = read(tmp_path, "weights.json")
    values = [source["weight"] for source in weights["sources"].values()]
    assert len(set(values)) == 3
    assert min(values) >= 0
    assert weights["sources"]["good"]["low"] is None
    summary = read(tmp_path, "summary.json")
    assert [phase["name"] for phase in summary["phases"]] == ["sources", "target"]
    assert summary["num_upper_steps"] == 6


@pytest.mark.parametrize("logged", [2, 5], ids=["along the sources", "on the target"])
def test_the_online_route_goes_on_where_it_was_interrupted(
    words, tmp_path, monkeypatch, capsys, logged
):
    flags = ("--route", "online", "--max_steps", "4", "--logging_steps", "1", "--save_steps", "1")
    straight = words(*flags, "--output_dir", str(tmp_path / "straight"))
    assert main(straight) == 0
    log, calls = RunFolder.log, []

    def struck(*args):
        log(*args)
        calls.append(args)
        if len(calls) == logged:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", struck)
        assert main(words(*flags)) == 128 + signal.SIGTERM
    assert "--resume goes on from the last checkpoint" in capsys.readouterr().err
    assert main(words(*flags, "--resume")) == 0
    found = [
        json.loads((tmp_path / name / "weights.json").read_text())["sources"]
        for name in ("straight", "run")
    ]
    assert found[0] == found[1]
    assert len(log_of(tmp_path / "run")) == len(log_of(tmp_path / "straight")) == 6
    weights = [
        tmp_path / folder / "adapter" / "adapter_model.safetensors"
        for folder in ("straight", "run")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def log_of(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_dry_run_writes_nothing(words, files, tmp_path, capsys):
    column = ("--train_file", str(files / "one.jsonl"), "--source_column", "source", "--dry_run")
    assert main(words(*column, sources=False)) == 0
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().out
    for part in ("ann", "training", "target", "gradient units a round"):
        assert part in said


def test_a_dry_run_of_the_online_route_says_what_its_rounds_take(words, capsys):
    flags = ("--route", "online", "--method", "lora", "--lower_steps", "2", "--max_steps", "6")
    assert main(words(*flags, "--hypergradient", "t1t2", "--dry_run")) == 0
    said = capsys.readouterr().out
    (units,) = re.findall(r"gradient units a round\W+(\d+)", said)
    assert units == "3"  # two below, one above; the response is a product
    assert "trained by weights" in said


@pytest.mark.parametrize(
    "flags,message",
    [
        (("--target_file", "none.jsonl"), "there is no file 'none.jsonl'"),
        (("--sources", "good"), "--sources: must be NAME=PATH"),
        (("--sources", "a=x,a=y"), "none twice, got ['a']"),
        (("--train_file", "x.csv"), "goes with --source_column"),
        (("--controls", "greedly"), "must be among union"),
        (("--weight_learning_rate", "0.1"), "with --form helpful there is none"),
        (("--max_weight_steps", "3"), "with --form helpful there is none"),
        (("--floor", "0.2"), "--floor: goes with --form floor, not with helpful"),
        (("--num_explained", "5"), "--num_explained: goes with --explain"),
        (("--fine_tune", "false", "--target_steps", "3"), "which --fine_tune false leaves out"),
        (("--route", "online", "--ridge", "0.1"), "--ridge: is of frozen features"),
        (("--route", "online", "--fine_tune", "false"), "--fine_tune: --route online learns"),
        (("--route", "online", "--form", "helpful"), "is found on frozen features"),
        (("--controls", "oracle"), "needs --truth_column"),
        (("--controls", "union", "--route", "online"), "needs --route features"),
        (("--route", "online", "--method", "bilora"), "which has one of its own"),
        (("--family", "nlg"), "--route: text that is written has no head"),
        (("--weight_folds", "1"), "--weight_folds: must be at least 2"),
        (
            ("--cross_fitting", "3", "--method", "bilora"),
            "--cross_fitting: the target is the upper",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(words, capsys, flags, message):
    assert main(words(*flags)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_one_file_is_not_two_things(words, files, capsys):
    good, target = files / "good.jsonl", files / "target.jsonl"
    for flags, message in (
        (("--sources", f"a={good},b={good}"), "--sources: .* is source 'b' and source 'a'"),
        (("--sources", f"a={good},b={target}"), "--sources: .* is source 'b' and --target_file"),
        (("--test_file", str(target)), "--test_file: .* is --test_file and --target_file"),
    ):
        assert main(words(*flags)) == 2
        assert re.search(message, capsys.readouterr().err)


def test_a_source_with_other_labels_than_the_target_is_refused(words, files, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "the cat", "label": "x"}\n{"text": "a dog", "label": "y"}\n')
    named = f"good={files / 'good.jsonl'},other={other}"
    assert main(words("--sources", named)) == 2
    assert "source 'other' has the labels ['x', 'y']" in capsys.readouterr().err


def test_rows_of_several_sources_have_the_mean_of_their_weights():
    from applications.weighting.weights import membership

    members = membership([[0], [0, 1], [2]], 3)
    weights = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(members @ weights, torch.tensor([1.0, 2.0, 0.5]).double())
