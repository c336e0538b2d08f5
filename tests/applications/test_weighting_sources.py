"""Sources and target as a stranger's files hold them: what is read, said and refused."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
from trl import DatasetMixtureConfig, get_dataset

from applications.data.splits import split_task
from applications.errors import UsageError
from applications.families.classification import TextClassification
from applications.families.tagging import TokenClassification
from applications.options.arguments import DataOptions
from applications.options.weighting import WeightingOptions
from applications.weighting.embedding import right
from applications.weighting.gathering import Gathered, gather, repeated
from applications.weighting.mixture import Weighed, mixture

Rows = Iterable[Mapping[str, Any]]


@pytest.fixture
def write(tmp_path: Path):
    """A function that writes rows as a jsonl file, and returns its name."""

    def written(name: str, rows: Rows) -> str:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(file)

    return written


def rows(labels: str, begin: int = 0) -> list[dict[str, Any]]:
    """A text of its own for each letter, which is its label."""
    return [{"text": f"text {begin + n}", "label": label} for n, label in enumerate(labels)]


@pytest.fixture
def gathered(write, tmp_path: Path):
    """A function from sources, target and options to what is gathered."""

    def found(sources, target, *, test=None, family=None, **options) -> Gathered:
        weighting = {n: options.pop(n) for n in ("truth_column", "source_column") if n in options}
        if isinstance(sources, dict):
            pairs = {n: s if isinstance(s, str) else write(n, s) for n, s in sources.items()}
            weighting["sources"] = [f"{name}={file}" for name, file in pairs.items()]
        else:
            options["train_file"] = write("sources", sources)
        target = target if isinstance(target, str) else write("target", target)
        data = DataOptions(test_file=test and write("test", test), **options)
        asked = WeightingOptions(target_file=target, **weighting)
        return gather(data, asked, family or TextClassification(), tmp_path / "run")

    return found


def labels(found: Gathered, number: int) -> list[str]:
    names = found.task.label_names
    return [names[label] for label in found.groups[number].examples["label"]]


def test_a_source_may_have_one_class_or_one_example(gathered):
    found = gathered({"a": rows("xxx"), "b": rows("y", 9)}, rows("xyxy", 20))
    assert labels(found, 0) == ["x", "x", "x"]
    assert labels(found, 1) == ["y"]


def test_labels_that_the_target_lacks_are_learned_from_sources(gathered):
    found = gathered({"a": rows("xyz"), "b": rows("xy", 9)}, rows("xyxy", 20), test=rows("zx", 40))
    assert found.task.label_names == ("x", "y", "z")
    assert found.task.splits["test"]["label"] == [2, 0]
    assert found.task.notes == ()


def test_labels_of_the_test_that_nothing_teaches_are_said(gathered):
    found = gathered({"a": rows("xy"), "b": rows("xy", 9)}, rows("xyxy", 20), test=rows("qx", 40))
    assert "teach labels of the test split: q" in found.task.notes[0]
    with pytest.raises(UsageError, match=r"test split has the labels .*none in common"):
        gathered({"a": rows("xy"), "b": rows("xy", 9)}, rows("xyxy", 20), test=rows("qq", 40))


def test_labels_are_the_same_in_whichever_type_a_file_holds_them(gathered):
    numbers = [dict(row, label=int(row["label"])) for row in rows("0101", 20)]
    found = gathered({"a": rows("0110"), "b": rows("01", 9)}, numbers, test=rows("10", 40))
    assert found.task.label_names == ("0", "1")
    assert labels(found, 0) == ["0", "1", "1", "0"]
    assert found.task.splits["test"]["label"] == [1, 0]


def test_labels_of_two_files_that_differ_in_capitals_are_refused(gathered):
    with pytest.raises(UsageError, match="'x' and 'X' differ in spelling alone"):
        gathered({"a": rows("xy"), "b": rows("Xy", 9)}, rows("xyxy", 20))


def test_a_target_of_one_class_or_one_example_is_refused(gathered):
    for target, message in ((rows("xx", 20), "all labels are of one class"), (rows("x"), "one ex")):
        with pytest.raises(UsageError, match=message):
            gathered({"a": rows("xy"), "b": rows("xy", 9)}, target)


def test_tagged_sources_may_lack_entities_and_the_target_may_not(gathered):
    def sentences(tag: str) -> Rows:
        return [{"tokens": ["one", word], "tags": ["O", tag]} for word in ("two", "three")]

    sources = {"a": sentences("B-x"), "none": sentences("O")}
    found = gathered(sources, sentences("B-x"), family=TokenClassification())
    assert [len(group.examples) for group in found.groups] == [2, 2]
    with pytest.raises(UsageError, match="no word is tagged"):
        gathered(sources, sentences("O"), family=TokenClassification())


def test_cells_that_spell_one_name_are_different_sources(gathered):
    """A row of a and b is not one of a+b, nor are the cells a/b, c those of a, b/c."""
    listed = [
        dict(row, s=s) for row, s in zip(rows("xyx"), (["a", "b"], ["a+b"], ["c"]), strict=True)
    ]
    found = gathered(listed, rows("xy", 20), source_column=["s"])
    assert [group.examples["text"] for group in found.groups] == [
        ["text 0"],
        ["text 1"],
        ["text 2"],
    ]
    assert [group.name for group in found.groups] == ['"a"+"b"', "a+b", "c"]
    cells = [
        dict(row, p=p, q=q)
        for row, p, q in zip(rows("xy"), ("a/b", "a"), ("c", "b/c"), strict=True)
    ]
    found = gathered(cells, rows("xy", 20), source_column=["p", "q"])
    assert found.names == ['"a/b"/c', 'a/"b/c"']


def test_texts_of_the_target_and_the_test_in_a_source_are_said(gathered):
    sources = {"a": rows("xy"), "b": [*rows("xyxy", 19), *rows("xy", 40)]}
    found = gathered(sources, rows("xyxy", 20), test=rows("xyx", 40))
    said = repeated(found, split_task(found.task, DataOptions()))
    assert "texts of the test split: b (2 of 6)" in said[0]
    assert "texts of the target: b (3 of 6)" in said[1]
    apart = gathered({"a": rows("xy"), "b": rows("xy", 9)}, rows("xyxy", 20), test=rows("xy", 40))
    assert repeated(apart, split_task(apart.task, DataOptions())) == ()


def test_true_labels_are_read_by_the_oracle_alone(gathered):
    """They are no second text, and make no class."""
    sources = {
        "a": [dict(row, truth="x") for row in rows("xxy")],
        "b": [dict(row, truth="lost") for row in rows("xy", 9)],
    }
    found = gathered(sources, rows("xyxy", 20), truth_column="truth")
    assert found.groups[0].examples.column_names == ["text", "label"]
    assert found.task.label_names == ("x", "y")
    assert right(found).tolist() == pytest.approx([2 / 3, 0])


def test_of_numbers_the_oracle_sees_the_correlation_with_the_true_ones(gathered):
    def numbers(sign: float, begin: int) -> Rows:
        return [
            {"text": f"text {begin + n}", "label": sign * n + 0.5, "truth": n + 0.5}
            for n in range(4)
        ]

    sources = {"a": numbers(1, 0), "b": numbers(-1, 9)}
    found = gathered(sources, numbers(1, 20), truth_column="truth", text_columns=["text"])
    assert right(found).tolist() == [1, 0]


def test_a_truth_column_that_is_not_there_is_named(gathered):
    with pytest.raises(UsageError, match=r"--truth_column: .* no column 'verity'"):
        gathered({"a": rows("xy"), "b": rows("xy", 9)}, rows("xyxy", 20), truth_column="verity")


@pytest.mark.parametrize("path", ["none.csv", "none/x.jsonl", "/none/x", "none"])
def test_a_source_that_is_not_there_is_no_name_on_the_hub(gathered, path):
    with pytest.raises(UsageError, match=f"--sources: there is no file '{path}'"):
        gathered({"a": rows("xy"), "b": path}, rows("xyxy", 20))


def test_data_that_have_no_part_in_it_are_refused(gathered, write, tmp_path):
    sources, target = {"a": rows("xy"), "b": rows("xy", 9)}, rows("xyxy", 20)
    with pytest.raises(UsageError, match=r"--task_name: .* got 'cr'; leave it out"):
        gathered(sources, target, task_name="cr")
    with pytest.raises(UsageError, match=r"--sources: .* source 'a' and --validation_file"):
        gathered(sources, target, validation_file=str(tmp_path / "a.jsonl"))
    with pytest.raises(UsageError, match="--source_column: 'label' is the column of labels"):
        gathered(rows("xyxy"), target, source_column=["label"])


def test_the_validation_file_is_read(gathered, write):
    held_out = write("held_out", rows("yx", 60))
    found = gathered(
        {"a": rows("xy"), "b": rows("xy", 9)}, rows("xyxy", 20), validation_file=held_out
    )
    assert found.task.splits["validation"]["label"] == [1, 0]


def test_the_test_file_is_read_beside_a_target_in_a_folder(gathered, tmp_path):
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\none,x\ntwo,y\n")
    sources = {"a": rows("xy"), "b": rows("xy", 9)}
    found = gathered(sources, str(folder), test=rows("yxx", 40))
    assert found.task.splits["test"]["label"] == [1, 0, 0]


def test_what_other_tools_cannot_read_is_written_for_them(gathered, tmp_path):
    """Tab-separated values go to a jsonl file, which TRL reads; its share is what was asked."""
    table = tmp_path / "b.tsv"
    table.write_text("text\tlabel\n" + "".join(f"row {n}\tx\n" for n in range(4)))
    found = gathered({"a": rows("xy" * 4), "b": str(table)}, rows("xyxy", 20))
    weighed = [
        Weighed(g.name, g.path, len(g.examples), w, None, None)
        for g, w in zip(found.groups, (0.5, 1.0), strict=True)
    ]
    read = get_dataset(DatasetMixtureConfig(**mixture(weighed)["trl"]))["train"]
    assert sum(text.startswith("row") for text in read["text"]) == len(read) / 2 == 4


def test_parquet_is_read(gathered, tmp_path):
    file = tmp_path / "b.parquet"
    datasets.Dataset.from_list(rows("xyy", 9)).to_parquet(str(file))
    found = gathered({"a": rows("xy"), "b": str(file)}, rows("xyxy", 20))
    assert labels(found, 1) == ["x", "y", "y"]
    datasets.Dataset.from_list(rows("xy", 2)).select([]).to_parquet(str(file))
    with pytest.raises(UsageError, match="has no rows"):
        gathered({"a": rows("xy"), "b": str(file)}, rows("xyxy", 20))
    file.write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        gathered({"a": rows("xy"), "b": str(file)}, rows("xyxy", 20))


def test_a_path_may_hold_commas():
    asked = WeightingOptions(sources=["a=x", "1.csv", "b=y=z.csv"])
    assert asked.sources == ["a=x,1.csv", "b=y=z.csv"]


def test_options_that_the_online_route_cannot_heed_are_refused():
    with pytest.raises(UsageError, match="--fine_tune: --route online learns the weights along"):
        WeightingOptions(route="online", fine_tune=False)
    with pytest.raises(UsageError, match=r"--controls: .*text that is written has no head"):
        WeightingOptions(route="online", family="nlg", controls=["union"])
