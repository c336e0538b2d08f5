"""applications.predict on what runs have left: the run's own numbers come back."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from applications.data.inputs import read_inputs, with_numbers
from applications.families.entities import entity_scores
from applications.predict import main
from applications.runs.finished import finished_run
from tests.applications.left_runs import Left


def summary_of(run: Left) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "summary.json").read_text())
    return found


@pytest.mark.parametrize("name", ["bilora", "dropout", "columns", "chance"])
def test_classes_have_the_loss_and_the_accuracy_of_the_run(
    name: str, left: dict[str, Left], tiny_data: Path, tmp_path: Path
) -> None:
    target = tmp_path / "found.csv"
    words = ["--input_file", str(tiny_data / "test.csv"), "--output_file", str(target)]
    assert main([str(left[name].folder), *words, "--device", "cpu"]) == 0
    with target.open() as stream:
        rows = list(csv.DictReader(stream))
    with (tiny_data / "test.csv").open() as stream:
        assert [row["text"] for row in rows] == [row["text"] for row in csv.DictReader(stream)]
    kinds = ["animals", "food", "tools"]
    columns = ["text", "label", "prediction", *(f"probability_{kind}" for kind in kinds)]
    assert list(rows[0]) == columns
    summary = summary_of(left[name])
    loss = sum(-math.log(float(row[f"probability_{row['label']}"])) for row in rows) / len(rows)
    assert loss == pytest.approx(summary["test_loss"], rel=1e-5)
    right = sum(row["prediction"] == row["label"] for row in rows)
    assert right / len(rows) == pytest.approx(summary["test_metric"])
    for row in rows:
        found = {kind: float(row[f"probability_{kind}"]) for kind in kinds}
        assert sum(found.values()) == pytest.approx(1)
        assert row["prediction"] == max(found, key=found.__getitem__)


def test_numbers_for_pairs_of_texts_have_the_correlation_of_the_run(
    left: dict[str, Left], tmp_path: Path
) -> None:
    target = tmp_path / "found.json"
    source = left["pairs"].folder.parent / "data" / "pairs" / "test.csv"
    words = ["--input_file", str(source), "--output_file", str(target), "--device", "cpu"]
    assert main([str(left["pairs"].folder), *words]) == 0
    rows = json.loads(target.read_text())
    both = torch.tensor([[row["prediction"], row["label"]] for row in rows]).double().T
    expected = summary_of(left["pairs"])["test_metric"]
    assert torch.corrcoef(both)[0, 1].item() == pytest.approx(expected, abs=1e-5)


def test_tags_have_the_f1_of_the_run(left: dict[str, Left], tmp_path: Path) -> None:
    target = tmp_path / "found.jsonl"
    source = left["tags"].folder.parent / "data" / "tags" / "test.conll"
    words = ["--input_file", str(source), "--output_file", str(target), "--device", "cpu"]
    assert main([str(left["tags"].folder), *words]) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert all(len(row["prediction"]) == len(row["tokens"]) for row in rows)
    found = entity_scores(
        [row["tags"] for row in rows], [row["prediction"] for row in rows], ["animal"]
    )
    expected = summary_of(left["tags"])["metrics"]["test"]
    assert expected["f1"] > 0
    assert found["f1"] == pytest.approx(expected["f1"])


def test_texts_are_those_that_the_run_generated(left: dict[str, Left], tmp_path: Path) -> None:
    target = tmp_path / "found.csv"
    source = left["writer"].folder.parent / "data" / "writer" / "test.csv"
    words = ["--input_file", str(source), "--output_file", str(target), "--device", "cpu"]
    assert main([str(left["writer"].folder), *words]) == 0
    lines = (left["writer"].folder / "generated.jsonl").read_text().splitlines()
    known = {row["references"][0]: row["hypothesis"] for row in map(json.loads, lines)}
    with target.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["ref"] in known]
    assert len(rows) == len(known)
    assert all(row["prediction"] == known[row["ref"]] for row in rows)


def test_lines_of_text_are_predicted_for_on_the_screen(
    left: dict[str, Left], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text('the old cat\n\na big hammer, and "glue"\n')
    words = ["--input_file", str(tmp_path / "a.txt"), "--device", "cpu"]
    assert main([str(left["bilora"].folder), *words]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["text"] for row in rows] == ["the old cat", 'a big hammer, and "glue"']


def test_the_rows_of_a_table_come_back_as_they_stand(
    left: dict[str, Left], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ["007", "12345678901234567890", "1.50", "1e3"]
    table = [["id", "key", "price", "size", "text"], [*cells, "the old cat"]]
    (tmp_path / "a.csv").write_text("".join(f"{','.join(row)}\n" for row in table))
    words = [str(left["bilora"].folder), "--input_file", str(tmp_path / "a.csv")]
    assert main([*words, "--device", "cpu"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert [row[name] for name in table[0]] == table[1]
    numbers = with_numbers(read_inputs(tmp_path / "a.csv", ["text"]))[0]
    assert list(numbers.values()) == ["007", "12345678901234567890", 1.5, 1000, "the old cat"]


def test_a_merged_model_is_a_plain_one_with_the_same_logits(
    left: dict[str, Left], tmp_path: Path
) -> None:
    target = tmp_path / "merged"
    assert main([str(left["columns"].folder), "--merge", str(target), "--device", "cpu"]) == 0
    assert not (target / "adapter_config.json").exists()
    plain = AutoModelForSequenceClassification.from_pretrained(target).eval()
    assert plain.config.id2label == {0: "animals", 1: "food", 2: "tools"}
    batch = AutoTokenizer.from_pretrained(target)(["the red fish"], return_tensors="pt")
    model, _ = finished_run(left["columns"].folder).load()
    with torch.no_grad():
        expected = model(**batch).logits
        with model.disable_adapter():
            assert (model(**batch).logits - expected).abs().max() > 1e-3
        found = plain(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_predicted_is_refused_in_one_line(
    left: dict[str, Left], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pairs = str(left["bilora"].folder), str(left["pairs"].folder)
    files = {
        "empty.csv": "text\n",
        "two.csv": "one,three\na,b\n",
        "taken.csv": "text,prediction\na,b\n",
        "numbers.csv": "x,y\n1,2\n",
        "a.csv": "text\na\n",
        "blank.csv": 'text\na\n""\n',
        "list.jsonl": '{"text": ["a"]}\n',
        "null.jsonl": '{"text": null}\n',
        "binary.txt": "a\0b",
    }
    (tmp_path / "folder.csv").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    place = {name: str(tmp_path / name) for name in files}
    cases = [
        ([folder], "nothing to do: give --input_file"),
        ([str(tmp_path), "--input_file", place["a.csv"]], "is no run of this version"),
        ([folder, "--input_file", str(tmp_path / "no.csv")], "there is no file"),
        ([folder, "--input_file", place["empty.csv"]], "has a header (text) and no rows"),
        ([folder, "--input_file", place["numbers.csv"]], r"cannot be told among ['x', 'y']"),
        ([folder, "--input_file", place["taken.csv"]], "has a column 'prediction' already"),
        ([folder, "--input_file", place["a.csv"], "--output_file", "a.xml"], "must end in"),
        ([folder, "--input_file", place["a.csv"], "--output_file", place["a.csv"]], "is the input"),
        ([folder, "--input_file", place["blank.csv"]], "row 2 of the input holds '' as 'text'"),
        ([folder, "--input_file", place["list.jsonl"]], "row 1 of the input holds ['a'] as 'text'"),
        ([folder, "--input_file", place["null.jsonl"]], "row 1 of the input has no 'text'"),
        ([folder, "--input_file", place["binary.txt"]], "is binary, not text in UTF-8"),
        (
            [folder, "--input_file", place["a.csv"], "--output_file", str(tmp_path / "folder.csv")],
            "is no file; name one",
        ),
        (
            [folder, "--input_file", place["a.csv"], "--output_file", f"{folder}/summary.json"],
            "belongs to the run; name another file",
        ),
        (
            [folder, "--input_file", place["a.csv"], "--output_file", f"{folder}/adapter/a.json"],
            "belongs to the run; name another file",
        ),
        ([folder, "--merge", str(tmp_path)], "exists; name a new folder"),
        ([str(left["chance"].folder), "--merge", str(tmp_path / "m")], "is a plain model already"),
        ([pairs, "--input_file", place["two.csv"]], "the model reads 2 column(s)"),
        ([folder, "--input_fil", "x"], "unrecognized arguments"),
    ]
    for words, message in cases:
        assert main([*words, "--device", "cpu"] if "--input_fil" not in words else words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert message in said, said
        assert said.count("\n") == 1


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def changed(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = load_file(file)
    change(values)
    save_file(values, file, {"format": "pt"})


WEIGHTS = "adapter_training/adapter_model.safetensors"
CONFIG = "adapter_training/adapter_config.json"
DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut off": (WEIGHTS, cut, "cannot be loaded"),
    "not finite": (
        WEIGHTS,
        lambda file: changed(file, lambda v: v.update({k: v[k] / 0 for k in sorted(v)[:1]})),
        "holds values that are not finite",
    ),
    "weights missing": (
        WEIGHTS,
        lambda file: changed(file, lambda v: v.pop(next(k for k in sorted(v) if "lora_A" in k))),
        "lacks weights",
    ),
    "another rank": (
        CONFIG,
        lambda file: file.write_text(file.read_text().replace('"r": 2', '"r": 3')),
        "cannot be loaded",
    ),
    "a list": (CONFIG, lambda file: file.write_text("[]"), "cannot be loaded"),
    "half a file": ("task.json", lambda file: file.write_text("{"), "cannot be read"),
    "nothing in it": ("task.json", lambda file: file.write_text("{}"), "it lacks columns, comm"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_run_that_is_not_whole_is_refused_in_one_line(
    what: str,
    left: dict[str, Left],
    tmp_path: Path,
    tiny_data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, damage, message = DAMAGES[what]
    folder = shutil.copytree(left["columns"].folder, tmp_path / "run")
    damage(folder / name)
    words = [str(folder), "--input_file", str(tiny_data / "test.csv"), "--device", "cpu"]
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert said[-1].startswith("error: ")
