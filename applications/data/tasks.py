"""The tasks known by name, and where the examples of a run come from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_dataset

from applications.carried import bbc_headlines
from applications.data.examples import TaskData, task_data, text_columns
from applications.data.local_files import TABLES, Readers, find_files, read_file, read_layout
from applications.errors import UsageError
from applications.options.arguments import DataOptions

GLUE = "nyu-mll/glue"
# Where the Hub keeps the tables that it made from data sets with a loading script, which datasets
# no longer runs.
CONVERTED = "refs/convert/parquet"
CARRIED_TASK = "bbc_headlines"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class TaskSpec:
    """Where a task lies on the Hub, its columns there, and the metric it is known by."""

    hub: str
    hub_name: str | None
    texts: tuple[str, ...]
    metric: str = "accuracy"
    label: str = "label"
    test_split: str = "test"
    command: str = "nlu"
    """Which command the task belongs to: applications.nlu."""
    revision: str | None = None
    label_names: tuple[str, ...] = ()
    """The names of labels that the data set only numbers."""


@dataclass(frozen=True)
class Source:
    """Rows as they were found, by split, and what is known of them: ``texts`` is () where the
    columns are not known.
    """

    name: str
    splits: Mapping[str, Dataset]
    texts: tuple[str, ...]
    label: str
    metric: str | None = None
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def glue(name: str, *texts: str, metric: str = "accuracy", test: str = "validation") -> TaskSpec:
    """A GLUE task, tested on its validation split: the labels of its test split are hidden."""
    return TaskSpec(GLUE, name, texts, metric, test_split=test)


def tagged(
    hub: str, *, label: str = "ner_tags", revision: str = CONVERTED, names: Iterable[str] = ()
) -> TaskSpec:
    """A task on named entities."""
    return TaskSpec(
        hub,
        None,
        ("tokens",),
        "f1",
        label,
        command="token_classification",
        revision=revision,
        label_names=tuple(names),
    )


PAIR = ("sentence1", "sentence2")
BC5CDR_TAGS = ("O", "B-Chemical", "B-Disease", "I-Disease", "I-Chemical")
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
    "subj": TaskSpec("SetFit/subj", None, ("text",)),
    "cr": TaskSpec("SetFit/CR", None, ("text",)),
    "banking77": TaskSpec("mteb/banking77", None, ("text",)),
    "conll2003": tagged("eriktks/conll2003"),
    "ncbi_disease": tagged("ncbi/ncbi_disease"),
    "bc5cdr": tagged("tner/bc5cdr", label="tags", names=BC5CDR_TAGS),
    "wnut17": tagged("leondz/wnut_17"),
}
# The command of every task; applications.data.meaning_representations knows the last ones.
COMMANDS: Mapping[str, str] = {
    **{name: spec.command for name, spec in TASKS.items()},
    CARRIED_TASK: "nlu",
    "e2e": "nlg",
    "webnlg": "nlg",
}


def load_task(options: DataOptions) -> TaskData:
    """The texts to classify that the options ask for, in the splits in which they are distributed.

    Raises:
        UsageError: an unknown task, missing files or columns, no way to the Hub.
    """
    source = load_source(options, "nlu", TABLES)
    texts, training = source.texts, source.splits["train"]
    return task_data(
        source.name,
        source.splits,
        texts=texts or options.text_columns or text_columns(training, source.label),
        label=source.label,
        metric=source.metric,
        notes=source.notes,
    )


def load_source(options: DataOptions, command: str, readers: Readers) -> Source:
    """The rows that the options ask for, with a split ``train``.

    Files named on the command line come first, then the folder ``data_dir``, then the Hub.

    Args:
        options: which data.
        command: whose tasks are known; those of another command are refused.
        readers: how files are read, by their ending.

    Raises:
        UsageError: an unknown task, missing files, no way to the Hub.
    """
    name, folder = options.task_name, options.data_dir and Path(options.data_dir)
    if options.train_file is not None:
        given = (options.train_file, options.validation_file, options.test_file)
        files = {
            split: Path(file) for split, file in zip(SPLITS, given, strict=True) if file is not None
        }
        return from_files(name or files["train"].stem, files, options, readers)
    check_command(name, command)
    if name is not None and name in TASKS:
        return from_layout(name, folder) if folder else from_spec(name, readers)
    if folder:
        files = find_files(folder, readers)
        return from_files(name or folder.resolve().name, files, options, readers)
    if name is None:
        raise UsageError("no data: give --task_name, --data_dir or --train_file")
    if name == CARRIED_TASK:
        return Source(name, {"train": bbc_headlines()}, ("text",), "label")
    if "/" in name:
        found = from_hub(name, None, None, advice(command, readers))
        return Source(name, usual(name, found), (), options.label_column)
    known = [task for task, owner in COMMANDS.items() if owner == command]
    raise UsageError(
        f"argument --task_name: unknown task {name!r}; known are {', '.join(known)}; "
        f"other data sets are named as 'owner/name' or given by --train_file"
    )


def check_command(name: str | None, command: str) -> None:
    """Raise a UsageError where the name is that of another command's task."""
    owner = command if name is None else COMMANDS.get(name, command)
    if owner != command:
        raise UsageError(
            f"argument --task_name: {name!r} is a task of python -m applications.{owner}"
        )


def from_files(
    name: str, files: Mapping[str, Path], options: DataOptions, readers: Readers
) -> Source:
    """Rows from one file a split."""
    found = {split: read_file(file, readers) for split, file in files.items()}
    return Source(name, found, (), options.label_column)


def usual(name: str, found: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The splits that are called train, validation and test, of which the first must be there."""
    if "train" not in found:
        raise UsageError(f"task {name!r} has no split 'train', only {sorted(found)}")
    return {split: found[split] for split in SPLITS if split in found}


def from_layout(name: str, folder: Path) -> Source:
    """A known task from its files; the readers name the columns of labels and tags."""
    spec = TASKS[name]
    hidden = name in ("cola", "rte")
    notes = ("the development set is the test split: the test labels are hidden",) if hidden else ()
    label = "label" if spec.command == "nlu" else "tags"
    return Source(
        name, read_layout(name, folder), spec.texts, label, metric=spec.metric, notes=notes
    )


def from_spec(name: str, readers: Readers) -> Source:
    """A known task from the Hub."""
    spec = TASKS[name]
    found = from_hub(spec.hub, spec.hub_name, spec.revision, advice(spec.command, readers))
    notes = []
    if spec.test_split != "test":
        found = {"train": found["train"], "test": found[spec.test_split]}
        notes.append(f"{spec.test_split} is the test split: the labels of 'test' are hidden")
    return Source(
        name,
        usual(name, found),
        spec.texts,
        spec.label,
        metric=spec.metric,
        label_names=spec.label_names,
        notes=tuple(notes),
    )


def advice(command: str, readers: Readers) -> str:
    """How to go on without a network."""
    kinds = ", ".join(kind.removeprefix(".") for kind in readers)
    demo = ", or run the demo with no option" if command == "nlu" else ""
    return f"give --data_dir with the task's files or --train_file and --test_file ({kinds}){demo}"


def from_hub(
    path: str, name: str | None, revision: str | None, otherwise: str
) -> dict[str, Dataset]:
    """All splits of a data set on the Hub.

    Raises:
        UsageError: the Hub or the data set cannot be reached; says how to go on without.
    """
    full = path if name is None else f"{path}, {name}"
    try:
        return dict(load_dataset(path, name, revision=revision))
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise UsageError(
            f"data set {full!r} is made by a script, which datasets no longer runs: {otherwise}"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"data set {full!r} cannot be read from the Hugging Face Hub "
            f"({type(error).__name__}): without a network {otherwise}"
        ) from error
