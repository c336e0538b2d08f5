"""Readers of data-to-text tasks: E2E, WebNLG, and any file of sources and references."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from datasets import Dataset, load_dataset

from applications.data.examples import TaskData
from applications.data.local_files import find_files, read_file
from applications.data.tasks import check_command
from applications.errors import UsageError
from applications.options.arguments import DataOptions

SOURCE_COLUMNS = ("source", "mr", "meaning_representation", "input")
REFERENCE_COLUMNS = ("references", "ref", "human_reference", "target")
SPLITS = ("train", "validation", "test")
# The tables that the Hub makes of data sets whose own form is a program, which `datasets` no
# longer runs.
TABLES_REVISION = "refs/convert/parquet"
ATTRIBUTE = re.compile(r"(\w[\w ]*)\[([^\]]*)\]")
ONLY_ATTRIBUTES = re.compile(rf"{ATTRIBUTE.pattern}(, {ATTRIBUTE.pattern})*")
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Tables:
    """Where a task lies on the Hub: its data set, and the folder of its tables."""

    hub: str
    folder: str

    def files(self) -> dict[str, list[str]]:
        """The tables by split, under their present names and their earlier ones."""
        return {
            split: [f"{self.folder}/{split}/*.parquet", f"{self.folder}/*-{split}.parquet"]
            for split in SPLITS
        }


TASKS: Mapping[str, Tables] = {
    "e2e": Tables("tuetschek/e2e_nlg", "default"),
    "webnlg": Tables("GEM/web_nlg", "en"),
}


def load_generation_task(options: DataOptions) -> TaskData:
    """The inputs that the options ask for with all their references, in the splits they come in.

    Files named on the command line come first, then the folder ``data_dir``, then the Hub. Rows
    with the same input are one input with several references.

    Raises:
        UsageError: an unknown task, missing files or columns, no way to the Hub.
    """
    name, folder = options.task_name, options.data_dir and Path(options.data_dir)
    if options.train_file is not None:
        given = {
            "train": options.train_file,
            "validation": options.validation_file,
            "test": options.test_file,
        }
        files = {split: Path(file) for split, file in given.items() if file is not None}
        return from_tables(name or files["train"].stem, read_all(files), options)
    check_command(name, "nlg")
    if folder:
        if name == "e2e":
            return read_e2e(folder, options)
        if name == "webnlg":
            return read_webnlg(folder)
        return from_tables(name or folder.resolve().name, read_all(find_files(folder)), options)
    if name is None:
        raise UsageError("no data: give --task_name, --data_dir or --train_file")
    if name in TASKS:
        return from_tables(name, from_hub(TASKS[name]), options)
    if "/" in name:
        return from_tables(name, from_hub(name), options)
    raise UsageError(
        f"argument --task_name: unknown task {name!r}; known are {', '.join(TASKS)}, other data "
        f"sets are named as 'owner/name' or given by --train_file"
    )


def linearised(meaning: str | Sequence[str]) -> str:
    """A meaning representation as text.

    Attributes ``name[Aromi], area[riverside]`` become ``name : Aromi | area : riverside``; triples
    ``["Aarhus | leader | Jacob_Bundsgaard", ...]`` become ``Aarhus : leader : Jacob_Bundsgaard |
    ...``; other text stays as it is. These are the forms of LoRA's experiments on E2E and WebNLG
    (arXiv:2106.09685).
    """
    if not isinstance(meaning, str):
        parts = [[part.strip() for part in triple.split("|")] for triple in meaning]
        return " | ".join(" : ".join(triple) for triple in parts)
    text = meaning.strip()
    if not ONLY_ATTRIBUTES.fullmatch(text):
        return text
    return " | ".join(f"{name} : {value}" for name, value in ATTRIBUTE.findall(text))


def grouped(pairs: Iterable[tuple[str, str]]) -> Dataset:
    """One row an input, with all its references, in the order in which the inputs first occur."""
    rows: dict[str, list[str]] = {}
    for source, reference in pairs:
        rows.setdefault(source, []).append(reference)
    return Dataset.from_dict({"source": list(rows), "references": list(rows.values())})


def generation_data(name: str, pairs: Mapping[str, Pairs]) -> TaskData:
    """The task of inputs and references by split; BLEU is its metric."""
    empty = [split for split, found in pairs.items() if not found]
    if "train" not in pairs or empty:
        missing = empty[0] if empty else "train"
        raise UsageError(f"task {name!r}: there is no text with references in split {missing!r}")
    splits = {split: grouped(found) for split, found in pairs.items()}
    return TaskData(name, "generation", "bleu", (), splits)


def from_tables(name: str, raw: Mapping[str, Dataset], options: DataOptions) -> TaskData:
    """A task whose columns are named by --text_columns and --label_column, or known."""
    raw = {split: raw[split] for split in SPLITS if split in raw}
    pairs: dict[str, Pairs] = {}
    for split, rows in raw.items():
        where = f"task {name!r}: the {split} split"
        asked = options.text_columns[0] if options.text_columns else None
        source = column(rows, asked, SOURCE_COLUMNS, where, "text_columns")
        # The option's default is the column of labels, which no text to be written has.
        label = None if options.label_column == "label" else options.label_column
        wanted = column(rows, label, REFERENCE_COLUMNS, where, "label_column")
        texts = zip(rows[source], references(rows, wanted), strict=True)
        pairs[split] = [
            (linearised(meaning), text) for meaning, found in texts for text in found if text
        ]
    return generation_data(name, pairs)


def references(rows: Dataset, name: str) -> list[list[str]]:
    """The references of each row: a list, or one text; an empty list stands for ``target``."""
    found = [[value] if isinstance(value, str) else list(value) for value in rows[name]]
    if "target" in rows.column_names and name != "target":
        found = [texts or [one] for texts, one in zip(found, rows["target"], strict=True)]
    return [[" ".join(text.split()) for text in texts] for texts in found]


def column(rows: Dataset, asked: str | None, usual: Sequence[str], where: str, flag: str) -> str:
    """The column asked for, or the first of the usual ones."""
    names = [asked] if asked else usual
    found = next((name for name in names if name in rows.column_names), None)
    if found is None:
        raise UsageError(
            f"{where} has none of the columns {list(names)}, only {rows.column_names}; name one "
            f"with --{flag}"
        )
    return found


def read_all(files: Mapping[str, Path]) -> dict[str, Dataset]:
    """The rows of each file."""
    return {split: read_file(file) for split, file in files.items()}


def place_of(name: str, folder: Path, needed: str) -> Path:
    """The folder itself, or the task's folder in it, whichever holds what is needed."""
    for place in (folder, folder / name):
        if (place / needed).exists():
            return place
    raise UsageError(
        f"argument --data_dir: neither {folder} nor {folder / name} holds {needed!r} of task "
        f"{name!r}"
    )


def read_e2e(folder: Path, options: DataOptions) -> TaskData:
    """E2E from trainset.csv, devset.csv and testset_w_refs.csv, columns ``mr`` and ``ref``.

    Without trainset.csv, the development set is the training split, and --validation_fraction
    divides it by meaning representation.
    """
    place = place_of("e2e", folder, "devset.csv")
    files = {
        "train": place / "trainset.csv",
        "validation": place / "devset.csv",
        "test": place / "testset_w_refs.csv",
    }
    notes = []
    if not files["train"].exists():
        files["train"] = files.pop("validation")
        notes.append("no trainset.csv: the development set is the training split")
    return replace(from_tables("e2e", read_all(files), options), notes=tuple(notes))


def read_webnlg(folder: Path) -> TaskData:
    """WebNLG in the XML of its releases: the files below train/, dev/ and test/."""
    place = place_of("webnlg", folder, "train")
    folders = {"train": "train", "validation": "dev", "test": "test"}
    return generation_data(
        "webnlg",
        {
            split: [pair for file in xml_files(place / name) for pair in webnlg_pairs(file)]
            for split, name in folders.items()
            if (place / name).is_dir()
        },
    )


def xml_files(folder: Path) -> list[Path]:
    """The files of the task from data to text; release 3.0 has those of the way back beside it."""
    return sorted(f for f in folder.rglob("*.xml") if not f.name.startswith("semantic-parsing"))


def webnlg_pairs(file: Path) -> Pairs:
    """The modified triples of each entry with each of its texts that was judged good."""
    pairs: Pairs = []
    for entry in ElementTree.parse(file).getroot().iter("entry"):
        triples = [triple.text or "" for triple in entry.iterfind("modifiedtripleset/mtriple")]
        for text in entry.iterfind("lex"):
            if text.get("comment", "good") in ("good", "") and (text.text or "").strip():
                pairs.append((linearised(triples), " ".join((text.text or "").split())))
    return pairs


def from_hub(source: Tables | str) -> dict[str, Dataset]:
    """All splits of a data set on the Hub.

    Raises:
        UsageError: the Hub or the data set cannot be reached; says how to go on without.
    """
    name = source if isinstance(source, str) else source.hub
    extra: dict[str, Any] = {}
    if isinstance(source, Tables):
        extra = {"data_files": source.files(), "revision": TABLES_REVISION}
    try:
        return dict(load_dataset(name, **extra))
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"data set {name!r} cannot be read from the Hugging Face Hub "
            f"({type(error).__name__}): without a network give --data_dir with the task's files, "
            f"or --train_file and --test_file (csv, tsv, json)"
        ) from error
