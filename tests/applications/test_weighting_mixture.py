"""Mixing fields, read back by the tools that they are for."""

import json

import datasets
import pytest
import yaml
from trl import DatasetMixtureConfig, get_dataset

from applications.data.examples import TaskData
from applications.data.splits import Splits
from applications.errors import UsageError
from applications.options.arguments import Options
from applications.options.weighting import WeightingOptions
from applications.weighting.found import Found
from applications.weighting.gathering import Gathered, Group
from applications.weighting.mixture import Weighed, mixture, write_mixture
from applications.weighting.report import weight_rows
from applications.weighting.running import write


@pytest.fixture
def weighed(tmp_path):
    """Three sources of 60, 30 and 10 rows in files; the last has the weight zero."""
    found = []
    for name, size, weight in (("a", 60, 0.5), ("b", 30, 2.0), ("c", 10, 0.0)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": f"{name}{n}"}) + "\n" for n in range(size)))
        found.append(Weighed(name, str(file), size, weight, weight, weight))
    return found


def counts(rows):
    names = [text[0] for text in rows["text"]]
    return {name: names.count(name) for name in set(names)}


def test_probabilities_are_weights_times_sizes(weighed):
    found = mixture(weighed)
    assert found["sources"] == ["a", "b"]
    assert found["dropped"] == ["c"]
    assert found["probabilities"] == pytest.approx([1 / 3, 2 / 3])
    assert found["weights"]["c"]["probability"] == 0


def test_trl_reads_back_the_mixture(weighed, tmp_path):
    """TRL's own loader: a third of the rows from a; all 30 of b, so 15 of a; none of c."""
    write_mixture(tmp_path, weighed)
    config = yaml.safe_load((tmp_path / "mixture" / "trl.yaml").read_text())
    rows = get_dataset(DatasetMixtureConfig(**config))["train"]
    assert counts(rows) == {"a": 15, "b": 30}


def test_datasets_interleaves_by_the_probabilities(weighed):
    found = mixture(weighed)
    sets = [
        datasets.load_dataset("json", data_files=found["weights"][name]["path"], split="train")
        for name in found["sources"]
    ]
    rows = datasets.interleave_datasets(
        sets, found["probabilities"], seed=0, stopping_strategy="all_exhausted"
    )
    share = counts(rows)["b"] / len(rows)
    assert share == pytest.approx(2 / 3, abs=0.12)  # about 180 draws: three standard errors


def test_axolotl_keeps_a_share_of_each_source(weighed, tmp_path):
    """Kept rows, share times size, stand to each other as in the mixture."""
    write_mixture(tmp_path, weighed)
    config = yaml.safe_load((tmp_path / "mixture" / "axolotl.yaml").read_text())
    entries = config["datasets"]
    assert [entry["weight"] for entry in entries] == pytest.approx([0.25, 1.0])
    assert [entry["ds_type"] for entry in entries] == ["json", "json"]
    kept = [entry["weight"] * size for entry, size in zip(entries, (60, 30), strict=True)]
    assert kept[0] / sum(kept) == pytest.approx(1 / 3)


def test_llama_factory_gets_as_many_probabilities_as_names(weighed, tmp_path):
    write_mixture(tmp_path, weighed)
    config = yaml.safe_load((tmp_path / "mixture" / "llama_factory.yaml").read_text())
    assert config["dataset"].split(",") == ["a", "b"]
    values = [float(value) for value in config["interleave_probs"].split(",")]
    assert values == pytest.approx([1 / 3, 2 / 3])
    assert sum(values) == pytest.approx(1, abs=1e-12)


def test_names_are_what_llama_factory_finds_in_its_list(tmp_path):
    """It divides the names at commas and strips each, and looks them up in dataset_info.json."""
    names = ["web, news", "web_ news", " a/b", "owner/set"]
    paths = [str(tmp_path / f"{n}.jsonl") for n in range(3)] + ["owner/set"]
    weighed = [Weighed(n, p, 10, 1.0, None, None) for n, p in zip(names, paths, strict=True)]
    found = write_mixture(tmp_path, weighed)
    listed = [name.strip() for name in found["llama_factory"]["dataset"].split(",")]
    info = json.loads((tmp_path / "mixture" / "dataset_info.json").read_text())
    assert len(set(listed)) == len(names)
    assert [info[name] for name in listed] == [
        *({"file_name": path} for path in paths[:3]),
        {"hf_hub_url": "owner/set"},
    ]


def test_a_mixture_of_nothing_is_refused(weighed):
    with pytest.raises(UsageError, match="every source has the weight 0"):
        mixture([weighed[2]])


def test_an_example_of_two_sources_is_in_the_share_of_each_by_half(tmp_path):
    """Ten of a, ten of a and b, whose rows weigh 1 and (1 + 2) / 2: 25 in all, 15 of them a's."""
    rows = datasets.Dataset.from_dict({"text": ["x"] * 10, "label": [0] * 10})
    groups = (Group("a", "a", ("a",), rows), Group("a+b", "ab", ("a", "b"), rows))
    task = TaskData("pets", "classification", "accuracy", ("x", "y"), {"train": rows})
    found = Found({"a": 1.0, "b": 2.0}, {}, {}, {"route": "features"})
    sources = write(
        tmp_path,
        Options(),
        WeightingOptions(),
        Gathered(task, groups),
        Splits(rows, None, rows, ()),
        found,
    )
    table = [(row[0], row[1], row[4]) for row in weight_rows(sources)]
    assert table == [("a", "20", "60.0 %"), ("b", "10", "40.0 %")]
    mixed = json.loads((tmp_path / "mixture.json").read_text())
    assert mixed["probabilities"] == pytest.approx([10 / 25, 15 / 25])
