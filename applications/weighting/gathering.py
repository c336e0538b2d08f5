"""The sources and the target of a run, read and brought to one form."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from applications.data.examples import TaskData
from applications.data.splits import Splits, texts
from applications.data.tags import OUTSIDE
from applications.data.validation import check_entities, check_several, check_spelling
from applications.errors import UsageError
from applications.families.family import Family
from applications.options.arguments import DataOptions
from applications.options.weighting import WeightingOptions
from applications.weighting.labels import flat, held, in_words, problem_type, renumbered
from applications.weighting.places import Place, at, located, own_file, write_rows

SHOWN = 8
Load = Callable[[DataOptions], TaskData]


@dataclass(frozen=True)
class Group:
    """Examples that belong to the same sources: one, or several where a cell lists them.

    ``truth`` holds the same examples with their true answers, where those are known. ``path`` is
    what other tools can read.
    """

    name: str
    path: str
    members: tuple[str, ...]
    examples: Dataset
    truth: Dataset | None = None


@dataclass(frozen=True)
class Gathered:
    """The target as a task, and the groups of examples of the sources, in the same form."""

    task: TaskData
    groups: tuple[Group, ...]

    @property
    def names(self) -> list[str]:
        """The sources, in the order in which they first occur."""
        return list(dict.fromkeys(name for group in self.groups for name in group.members))

    @property
    def union(self) -> Dataset:
        """All examples of the sources, group after group."""
        return concatenate_datasets([group.examples for group in self.groups])


def gather(
    data: DataOptions, weighting: WeightingOptions, family: Family, folder: Path
) -> Gathered:
    """Read what the options ask for.

    Labels are one numbering over target and sources, by name. A source may hold one class alone,
    and labels that the target lacks; the test split may hold those of a source.

    Raises:
        UsageError: no sources or target, one source alone, columns that are missing, a source
            that shares no label with the target, a label of the test split that nothing teaches.
    """
    check_options(data, weighting)
    places = located(data, weighting, folder)
    if len({name for place in places for name in place.members}) < 2:
        raise UsageError(
            f"argument --{places[0].argument}: at least two sources are weighed, got "
            f"{[place.name for place in places]}"
        )
    unread = [name for name in (weighting.truth_column, data.label_column) if name is not None]
    bare = replace(data, task_name=None, train_file=None, validation_file=None, test_file=None)

    def part(options: DataOptions) -> TaskData:
        return family.load_task(options, part=True, unread=unread)

    target = read_target(data, bare, weighting, part)
    bare = replace(bare, problem_type=problem_type(target))
    loaded = [part(at(bare, place)) for place in places]
    check_labels(target, places, loaded)
    names = list(dict.fromkeys(name for task in (target, *loaded) for name in task.label_names))
    if target.kind == "classification":
        check_spelling(names, "labels", "target and sources")
    notes = (*target.notes, *untaught(target, loaded))
    truths: list[TaskData | None] = [None] * len(places)
    if weighting.truth_column is not None:
        truths = list(true_answers(bare, weighting.truth_column, places, loaded, part))
    known = [*names, *(name for task in truths if task for name in task.label_names)]
    groups = []
    for number, (place, task, true) in enumerate(zip(places, loaded, truths, strict=True)):
        path = place.path
        if not place.readable:
            path = str(own_file(folder, number, place.name))
            write_rows(in_words(task), Path(path))
        truth = None if true is None else renumbered(true, "train", known)
        examples = renumbered(task, "train", names)
        groups.append(Group(place.name, path, place.members, examples, truth))
    splits = {split: renumbered(target, split, names) for split in target.splits}
    task = replace(target, label_names=tuple(names), splits=splits, notes=notes)
    return Gathered(task, tuple(groups))


def check_options(data: DataOptions, weighting: WeightingOptions) -> None:
    """Raise a UsageError without a target, with data that have no part in it, or where one file is
    two of target, test set, validation set and sources.
    """
    if weighting.target_file is None:
        raise UsageError(
            "argument --target_file: give the small trusted set that says what is good, got None"
        )
    if data.task_name is not None:
        raise UsageError(
            f"argument --task_name: the data are those of --sources and --target_file, where a "
            f"task can be named, got {data.task_name!r}; leave it out"
        )
    given = [
        ("--target_file", weighting.target_file),
        ("--test_file", data.test_file),
        ("--validation_file", data.validation_file),
    ]
    pairs = [each.partition("=") for each in weighting.sources or ()]
    given += [(f"source {name!r}", path) for name, _, path in pairs]
    given += [("--train_file", data.train_file)]
    seen: dict[Path, str] = {}
    for name, path in given:
        if path is None or not Path(path).exists():
            continue
        other = seen.setdefault(Path(path).resolve(), name)
        if other != name:
            what = name if name.startswith("--") else "--sources"
            raise UsageError(
                f"argument {what}: {path!r} is {name} and {other}, and one file cannot be both; "
                f"give another"
            )


def read_target(
    data: DataOptions, bare: DataOptions, weighting: WeightingOptions, part: Load
) -> TaskData:
    """The target with the splits that are named beside it.

    Raises:
        UsageError: nothing can be learned from it.
    """
    place = Place("target", str(weighting.target_file), ("target",), "target_file")
    options = at(bare, place)
    named = {"validation": data.validation_file, "test": data.test_file}
    if options.train_file is not None:
        options = replace(options, validation_file=named["validation"], test_file=named["test"])
        target = part(options)
    else:
        target = part(options)
        for split, file in named.items():
            if file is not None:
                kind = problem_type(target)
                other = part(replace(bare, train_file=file, data_dir=None, problem_type=kind))
                names = tuple(dict.fromkeys((*target.label_names, *other.label_names)))
                rows = renumbered(other, "train", names)
                target = replace(target, label_names=names, splits={**target.splits, split: rows})
    rows = target.splits["train"]
    if len(rows) < 2:
        raise UsageError(
            f"argument --target_file: {place.path!r} has one example; give 20 or more, two at least"
        )
    answers = [target.label_names[a] if target.label_names else a for a in flat(rows)]
    if target.kind == "tagging":
        check_entities([answers], OUTSIDE, place.path)
    elif target.kind != "generation":
        check_several(answers, target.kind, place.path)
    return target


def check_labels(target: TaskData, places: Sequence[Place], loaded: Sequence[TaskData]) -> None:
    """Refuse sources of another kind than the target, or with no label in common with it."""
    wanted = held(target)
    for place, task in zip(places, loaded, strict=True):
        if task.kind != target.kind:
            raise UsageError(
                f"argument --{place.argument}: source {place.name!r} is for {task.kind}, the "
                f"target for {target.kind}; give both the same kind of labels"
            )
        found = held(task)
        if wanted and not set(found) & set(wanted):
            raise UsageError(
                f"argument --{place.argument}: source {place.name!r} has the labels "
                f"{found[:20]}, the target {wanted[:20]}: none in common; spell them alike"
            )


def untaught(target: TaskData, loaded: Sequence[TaskData]) -> tuple[str, ...]:
    """What is to be said of classes that the target's other splits hold and nothing teaches.

    Raises:
        UsageError: such a split has no label that anything teaches.
    """
    if target.kind != "classification":
        return ()
    taught = {name for task in (target, *loaded) for name in held(task)}
    said = []
    for split in target.splits:
        found = held(target, split)
        lost = [name for name in found if name not in taught]
        if lost and len(lost) == len(found):
            raise UsageError(
                f"the {split} split has the labels {found[:20]}, target and sources "
                f"{sorted(taught)[:20]}: none in common; spell them alike"
            )
        if lost:
            names = listed(lost)
            said.append(f"neither target nor sources teach labels of the {split} split: {names}")
    return tuple(said)


def true_answers(
    bare: DataOptions,
    column: str,
    places: Sequence[Place],
    loaded: Sequence[TaskData],
    part: Load,
) -> Iterable[TaskData]:
    """The sources with their true labels, for the oracle alone."""
    for place, task in zip(places, loaded, strict=True):
        try:
            true = part(at(replace(bare, label_column=column), place))
        except UsageError as error:
            raise UsageError(f"argument --truth_column: {error}") from error
        count, known = len(task.splits["train"]), len(true.splits["train"])
        if count != known:
            raise UsageError(
                f"argument --truth_column: source {place.name!r} has {count} examples but {known} "
                f"with a true label, got {column!r}"
            )
        yield true


def listed(names: Sequence[str]) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def repeated(gathered: Gathered, splits: Splits) -> tuple[str, ...]:
    """What is to be said of texts that sources share with the target, or with the test split."""
    said = []
    for what, rows, then in (
        ("the test split", splits.test, "what is measured there has been trained on"),
        ("the target", splits.train, "their weight is judged by what they repeat"),
    ):
        known, found = {*texts(rows)}, []
        for group in gathered.groups:
            whole = texts(group.examples)
            shared = sum(row in known for row in whole)
            if shared:
                found.append(f"{group.name} ({shared} of {len(whole)})")
        if found:
            said.append(
                f"sources hold texts of {what}: {listed(found)}; {then}, so take them out of the "
                f"sources"
            )
    return tuple(said)
