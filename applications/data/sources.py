"""Where the examples of a run come from: files, a folder, or the Hub."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, load_dataset

from applications.carried import bbc_headlines
from applications.data.local_files import (
    STEMS,
    Readers,
    find_files,
    find_layout,
    read_file,
    read_layout,
)
from applications.data.tasks import CARRIED_TASK, COMMANDS, SPLITS, TASKS, TaskSpec, check_command
from applications.errors import UsageError
from applications.options.arguments import DataOptions


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
    files: Mapping[str, Path] = field(default_factory=dict)
    """The user's own files by split, where the rows are from such."""

    def where(self, split: str) -> str:
        """The origin of a split's rows, for messages."""
        if split in self.files:
            return str(self.files[split])
        return f"task {self.name!r}: the {split} split"


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
    refuse_missing(options, command)
    name, folder = options.task_name, options.data_dir and Path(options.data_dir)
    if options.train_file is not None:
        given = (options.train_file, options.validation_file, options.test_file)
        files = {
            split: Path(file) for split, file in zip(SPLITS, given, strict=True) if file is not None
        }
        return from_files(name or files["train"].stem, files, options, readers)
    check_command(name, command)
    if name is not None and name in TASKS:
        return from_layout(name, folder) if folder else from_spec(TASKS[name], name, readers)
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
    raise unknown_task(name, command)


def refuse_missing(options: DataOptions, command: str) -> None:
    """Raise a UsageError for data that cannot be there: unknown tasks, missing files and folders.

    Nothing is read, and the Hub is not asked.
    """
    if options.train_file is None:
        check_command(options.task_name, command)
    named = ("train_file", "validation_file", "test_file")
    for argument in named:
        file = getattr(options, argument)
        if file is not None and not Path(file).is_file():
            raise UsageError(f"argument --{argument}: {file!r} is no file; check its name")
        if file is not None and options.train_file is None:
            raise UsageError(
                f"argument --{argument}: goes with --train_file, got {file!r} without one, so that "
                f"it would not be read; name the file to train on, or leave it out"
            )
    if options.data_dir is not None and not Path(options.data_dir).is_dir():
        raise UsageError(f"argument --data_dir: {options.data_dir!r} is no folder; check its name")
    files = {
        argument: Path(getattr(options, argument)).resolve()
        for argument in named
        if getattr(options, argument) is not None
    }
    for argument, file in files.items():
        other = next(name for name in named if files.get(name) == file)
        if other != argument:
            raise UsageError(
                f"argument --{argument}: {str(file)!r} is --{other}, too, and what is learned "
                f"cannot be measured on the same examples; give another file, or leave it out"
            )
    if options.train_file is not None:
        return
    name = options.task_name
    if name in TASKS or name == CARRIED_TASK or options.data_dir is not None:
        if name in TASKS and options.data_dir is not None:
            find_layout(str(name), Path(options.data_dir))
        return
    if name is not None and "/" not in name:
        raise unknown_task(name, command)


def files_of(options: DataOptions) -> list[Path]:
    """The files that are read; none where the rows come from the Hub or with this package."""
    if options.train_file is not None:
        given = (options.train_file, options.validation_file, options.test_file)
        return [Path(file) for file in given if file is not None]
    if options.data_dir is None:
        return []
    folder = Path(options.data_dir)
    if options.task_name not in TASKS:
        return sorted(file for file in folder.iterdir() if file.stem in STEMS and file.is_file())
    layout, place = find_layout(str(options.task_name), folder)
    named = [place / name for names in layout.files.values() for name in names]
    inside = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in named]
    return [file for files in inside for file in files if file.is_file()]


def data_digest(options: DataOptions) -> str | None:
    """A digest of the files that are read, whatever they are called; None for no files."""
    whole, files = hashlib.sha256(), files_of(options)
    for file in files:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()[:16] if files else None


def unknown_task(name: str, command: str) -> UsageError:
    """The error of a task that no command knows."""
    known = [task for task, owner in COMMANDS.items() if owner == command]
    return UsageError(
        f"argument --task_name: unknown task {name!r}; known are {', '.join(known)}; "
        f"other data sets are named as 'owner/name' or given by --train_file"
    )


def from_files(
    name: str, files: Mapping[str, Path], options: DataOptions, readers: Readers
) -> Source:
    """Rows from one file a split."""
    found = {split: read_file(file, readers) for split, file in files.items()}
    return Source(name, found, (), options.label_column, files=files)


def usual(name: str, found: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The splits that are called train, validation and test, of which the first must be there."""
    if "train" not in found:
        raise UsageError(f"task {name!r} has no split 'train', only {sorted(found)}")
    return {split: found[split] for split in SPLITS if split in found}


def from_layout(name: str, folder: Path) -> Source:
    """A known task from its files; the readers name the columns of labels and tags."""
    spec = TASKS[name]
    splits, notes = read_layout(name, folder)
    label = "label" if spec.command == "nlu" else "tags"
    return Source(name, splits, spec.texts, label, metric=spec.metric, notes=notes)


def from_spec(spec: TaskSpec, name: str, readers: Readers) -> Source:
    """A known task from the Hub."""
    found = from_hub(
        spec.hub,
        spec.hub_name,
        spec.revision,
        advice(spec.command, readers),
        tables=spec.tables(),
    )
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
    path: str,
    name: str | None,
    revision: str | None,
    otherwise: str,
    *,
    tables: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Dataset]:
    """All splits of a data set on the Hub, or those of some of its tables.

    Raises:
        UsageError: the Hub or the data set cannot be reached; says how to go on without.
    """
    full = path if name is None else f"{path}, {name}"
    try:
        chosen = {} if tables is None else {"data_files": tables}
        return dict(load_dataset(path, name, revision=revision, **chosen))
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
