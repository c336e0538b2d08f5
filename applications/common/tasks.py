"""The tasks known by name, and where the examples of a run come from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, load_dataset

from applications.common.arguments import DataOptions
from applications.common.carried import bbc_headlines
from applications.common.errors import UsageError
from applications.common.examples import TaskData, task_data, text_columns
from applications.common.local_files import find_files, read_file, read_layout

GLUE = "nyu-mll/glue"
CARRIED_TASK = "bbc_headlines"


@dataclass(frozen=True)
class TaskSpec:
    """Where a task lies on the Hub, its columns there, and the metric it is known by."""

    hub: str
    hub_name: str | None
    texts: tuple[str, ...]
    metric: str = "accuracy"
    label: str = "label"
    test_split: str = "test"


def glue(name: str, *texts: str, metric: str = "accuracy", test: str = "validation") -> TaskSpec:
    """A GLUE task, tested on its validation split: the labels of its test split are hidden."""
    return TaskSpec(GLUE, name, texts, metric, test_split=test)


PAIR = ("sentence1", "sentence2")
TASKS: Mapping[str, TaskSpec] = {
    "cola": glue("cola", "sentence", metric="matthews"),
    "sst2": glue("sst2", "sentence"),
    "mrpc": glue("mrpc", *PAIR),
    "stsb": glue("stsb", *PAIR, metric="pearson"),
    "qqp": glue("qqp", "question1", "question2"),
    "mnli": glue("mnli", "premise", "hypothesis", test="validation_matched"),
    "qnli": glue("qnli", "question", "sentence"),
    "rte": glue("rte", *PAIR),
    "wnli": glue("wnli", *PAIR),
    "trec": TaskSpec("SetFit/TREC-QC", None, ("text",), label="label_coarse"),
    "cr": TaskSpec("SetFit/CR", None, ("text",)),
    "banking77": TaskSpec("mteb/banking77", None, ("text",)),
}


def load_task(options: DataOptions) -> TaskData:
    """The examples that the options ask for, in the splits in which they are distributed.

    Files named on the command line come first, then the folder ``data_dir``, then the Hub.

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
        return from_files(name or files["train"].stem, files, options)
    if folder:
        if name is not None and name in TASKS:
            return from_layout(name, folder)
        return from_files(name or folder.resolve().name, find_files(folder), options)
    if name is None:
        raise UsageError("no data: give --task_name, --data_dir or --train_file")
    if name == CARRIED_TASK:
        return task_data(name, {"train": bbc_headlines()}, texts=["text"], label="label")
    if name in TASKS:
        return from_spec(name)
    if "/" in name:
        return inferred(name, from_hub(name, None), options)
    raise UsageError(
        f"argument --task_name: unknown task {name!r}; known are {', '.join(TASKS)} and "
        f"{CARRIED_TASK}, other data sets are named as 'owner/name' or given by --train_file"
    )


def from_files(name: str, files: Mapping[str, Path], options: DataOptions) -> TaskData:
    """A task from one file a split."""
    return inferred(name, {split: read_file(file) for split, file in files.items()}, options)


def inferred(name: str, raw: Mapping[str, Dataset], options: DataOptions) -> TaskData:
    """A task whose columns are named by the options, or found."""
    if "train" not in raw:
        raise UsageError(f"task {name!r} has no split 'train', only {sorted(raw)}")
    raw = {split: raw[split] for split in ("train", "validation", "test") if split in raw}
    texts = options.text_columns or text_columns(raw["train"], options.label_column)
    return task_data(name, raw, texts=texts, label=options.label_column)


def from_layout(name: str, folder: Path) -> TaskData:
    """A known task from its files; the readers name the label column ``label``."""
    spec = replace(TASKS[name], label="label")
    hidden = name in ("cola", "rte")
    notes = ["the development set is the test split: the test labels are hidden"] if hidden else []
    raw = read_layout(name, folder)
    return task_data(name, raw, texts=spec.texts, label=spec.label, metric=spec.metric, notes=notes)


def from_spec(name: str) -> TaskData:
    """A known task from the Hub."""
    spec = TASKS[name]
    everything = from_hub(spec.hub, spec.hub_name)
    raw = {"train": everything["train"], "test": everything[spec.test_split]}
    notes = []
    if spec.test_split != "test":
        notes.append(f"{spec.test_split} is the test split: the labels of 'test' are hidden")
    return task_data(name, raw, texts=spec.texts, label=spec.label, metric=spec.metric, notes=notes)


def from_hub(path: str, name: str | None) -> dict[str, Dataset]:
    """All splits of a data set on the Hub.

    Raises:
        UsageError: the Hub or the data set cannot be reached; says how to go on without.
    """
    try:
        return dict(load_dataset(path, name))
    except (OSError, ValueError) as error:
        full = path if name is None else f"{path}, {name}"
        raise UsageError(
            f"data set {full!r} cannot be read from the Hugging Face Hub "
            f"({type(error).__name__}): without a network give --data_dir with the task's files "
            f"or --train_file and --test_file (csv, tsv, json), or run the demo with no option"
        ) from error
