"""Readers of task files on disk, in the layouts in which the data sets are distributed."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from applications.data.conll import read_conll
from applications.data.text_files import read_rows, read_table
from applications.data.webnlg import read_webnlg
from applications.errors import UsageError

SplitFiles = Mapping[str, Sequence[str]]
Readers = Mapping[str, Callable[[Path], Dataset]]
# A cell "null" or "NA" is text, not a missing value.
AS_TEXT = {"keep_default_na": False, "na_filter": False}


@dataclass(frozen=True)
class Layout:
    """The files (or folders) of each split, and how one is read.

    ``spare`` are the splits that may be missing; ``notes`` is what is to be said of the splits.
    """

    files: SplitFiles
    read: Callable[[Path], Dataset]
    spare: Sequence[str] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of all files that are needed."""
        needed = {split: files for split, files in self.files.items() if split not in self.spare}
        return [name for files in needed.values() for name in files]

    def splits(self, place: Path) -> dict[str, Dataset]:
        """The splits that are there."""
        return {
            split: concatenate_datasets([self.read(place / name) for name in files])
            for split, files in self.files.items()
            if all((place / name).exists() for name in files)
        }


@dataclass(frozen=True)
class Table:
    """Reads tab-separated values: unquoted, without a header unless ``columns`` is empty."""

    columns: Sequence[str] = ()
    encoding: str = "utf-8"

    def __call__(self, file: Path) -> Dataset:
        """The rows of one file."""
        options: dict[str, Any] = {"sep": "\t", "quoting": csv.QUOTE_NONE, **AS_TEXT}
        if self.columns:
            # Some rows of STS-B have two more cells than there are columns: usecols drops them.
            first = list(range(len(self.columns)))
            options |= {"names": list(self.columns), "header": None, "usecols": first}
        return load_dataset(
            "csv", data_files=str(file), split="train", encoding=self.encoding, **options
        )


def banking77(file: Path) -> Dataset:
    """Rows ``text, category`` of one comma-separated file."""
    rows = load_dataset("csv", data_files=str(file), split="train", **AS_TEXT)
    return rows.rename_column("category", "label")


def lines(file: Path) -> list[str]:
    """The lines of a latin-1 file; only line feeds end a line (some texts hold a NEL)."""
    whole = load_dataset(
        "text", data_files=str(file), split="train", encoding="latin-1", sample_by="document"
    )
    return [line for line in whole["text"][0].split("\n") if line]


def trec(file: Path) -> Dataset:
    """Questions and their coarse class from lines ``COARSE:fine question``."""
    parts = [line.split(" ", 1) for line in lines(file)]
    labels = [kind.split(":")[0] for kind, _ in parts]
    return Dataset.from_dict({"text": [question for _, question in parts], "label": labels})


def cr(file: Path) -> Dataset:
    """Reviews, one a line, labelled by the name of the file (custrev.pos, custrev.neg)."""
    texts = lines(file)
    label = {".neg": "negative", ".pos": "positive"}[file.suffix]
    return Dataset.from_dict({"text": texts, "label": [label] * len(texts)})


def subj(file: Path) -> Dataset:
    """Sentences, one a line, labelled by the name of the file: quotes from reviews (subjective) or
    plot summaries (objective).

    Reference: Pang and Lee (2004), arXiv:cs/0409058.
    """
    texts = lines(file)
    label = {"quote": "subjective", "plot": "objective"}[file.name.split(".")[0]]
    return Dataset.from_dict({"text": texts, "label": [label] * len(texts)})


def tagged(train: str, validation: str, test: str) -> Layout:
    """A file of tagged sentences a split."""
    files = {"train": [train], "validation": [validation], "test": [test]}
    return Layout(files, read_conll)


HIDDEN = ("the development set is the test split: the test labels are hidden",)
STSB_COLUMNS = ("genre", "file", "year", "id", "label", "sentence1", "sentence2")


E2E_TEST = "testset_w_refs.csv"
# A task may be distributed in more than one layout; the first whose files are there is read.
LAYOUTS: Mapping[str, Layout | Sequence[Layout]] = {
    "sst2": Layout(
        {"train": ["train.tsv"], "validation": ["dev.tsv"], "test": ["test.tsv"]},
        Table(("sentence", "label")),
    ),
    "cola": Layout(
        {"train": ["in_domain_train.tsv"], "test": ["in_domain_dev.tsv", "out_of_domain_dev.tsv"]},
        Table(("source", "label", "mark", "sentence")),
        notes=HIDDEN,
    ),
    "mrpc": Layout(
        {"train": ["msr_paraphrase_train.txt"], "test": ["msr_paraphrase_test.txt"]},
        Table(("label", "id1", "id2", "sentence1", "sentence2"), encoding="utf-8-sig"),
    ),
    "rte": Layout({"train": ["train.tsv"], "test": ["dev.tsv"]}, Table(), notes=HIDDEN),
    "stsb": Layout(
        {"train": ["sts-train.csv"], "validation": ["sts-dev.csv"], "test": ["sts-test.csv"]},
        Table(STSB_COLUMNS),
    ),
    "trec": Layout({"train": ["TREC.train"], "test": ["TREC.test"]}, trec),
    "subj": Layout({"train": ["quote.tok.gt9.5000", "plot.tok.gt9.5000"]}, subj),
    "cr": Layout({"train": ["custrev.neg", "custrev.pos"]}, cr),
    "banking77": Layout({"train": ["train.csv"], "test": ["test.csv"]}, banking77),
    "wnut17": tagged("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"),
    "ncbi_disease": tagged("train.tsv", "devel.tsv", "test.tsv"),
    "bc5cdr": tagged("train.tsv", "devel.tsv", "test.tsv"),
    "conll2003": (
        tagged("eng.train", "eng.testa", "eng.testb"),
        tagged("train.txt", "valid.txt", "test.txt"),
    ),
    "e2e": (
        Layout(
            {"train": ["trainset.csv"], "validation": ["devset.csv"], "test": [E2E_TEST]},
            read_table,
        ),
        Layout(
            {"train": ["devset.csv"], "test": [E2E_TEST]},
            read_table,
            notes=("no trainset.csv: the development set is the training split",),
        ),
    ),
    "webnlg": Layout(
        {"train": ["train"], "validation": ["dev"], "test": ["test"]},
        read_webnlg,
        spare=("validation", "test"),
    ),
}


def read_layout(task: str, folder: Path) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """The splits of a known task from ``folder`` or ``folder/task``, and what is said of them.

    Raises:
        UsageError: as `find_layout`.
    """
    layout, place = find_layout(task, folder)
    return layout.splits(place), layout.notes


def find_layout(task: str, folder: Path) -> tuple[Layout, Path]:
    """The layout in which a known task lies in ``folder`` or ``folder/task``, and which it is.

    Raises:
        UsageError: the task has no local layout, or its files are not there.
    """
    found = LAYOUTS.get(task)
    if found is None:
        raise UsageError(
            f"argument --data_dir: task {task!r} has no local layout (those with one: "
            f"{', '.join(LAYOUTS)}); give --train_file and --test_file instead"
        )
    layouts = [found] if isinstance(found, Layout) else list(found)
    for layout in layouts:
        for place in (folder, folder / task):
            if all((place / name).exists() for name in layout.names):
                return layout, place
    choices = " or ".join(", ".join(layout.names) for layout in layouts)
    raise UsageError(
        f"argument --data_dir: neither {folder} nor {folder / task} holds the files of task "
        f"{task!r} ({choices})"
    )


def read_parquet(file: Path) -> Dataset:
    """The rows of a parquet file.

    Raises:
        UsageError: it is missing, no parquet, or has no rows.
    """
    if not file.is_file():
        raise UsageError(f"{file} does not exist: check --train_file and its like")
    try:
        rows = Dataset.from_parquet(str(file))
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise UsageError(
            f"{file} cannot be read as parquet, or has no rows: write it anew"
        ) from error
    assert isinstance(rows, Dataset)
    return rows


TABLES: Readers = {
    ".csv": read_table,
    ".tsv": read_table,
    ".json": read_rows,
    ".jsonl": read_rows,
    ".parquet": read_parquet,
}


# The names of files, without their endings, and the splits that are in them.
STEMS: Mapping[str, str] = {
    "train": "train",
    **dict.fromkeys(("validation", "valid", "dev", "devel"), "validation"),
    "test": "test",
}


def find_files(folder: Path, readers: Readers = TABLES) -> dict[str, Path]:
    """The files train.*, validation.* (or valid.*, dev.*, devel.*) and test.* by split."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*")):
        if file.suffix in readers and file.stem in STEMS:
            found.setdefault(STEMS[file.stem], file)
    if "train" not in found:
        raise UsageError(
            f"argument --data_dir: {folder} holds no train file ({', '.join(readers)}); name "
            f"the files with --train_file and --test_file, or the task with --task_name"
        )
    return found


def read_file(file: Path, readers: Readers = TABLES) -> Dataset:
    """The rows of one file, by its ending.

    Raises:
        UsageError: the file is missing or of another kind.
    """
    read = readers.get(file.suffix)
    if read is None:
        raise UsageError(f"{file} must end in one of {', '.join(readers)}")
    return read(file)
