"""Tagged sentences in one form, whatever columns they came in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset

from applications.data.examples import TaskData
from applications.data.tags import OUTSIDE, entity_type, in_order, scheme
from applications.data.validation import (
    check_entities,
    check_spelling,
    check_words,
)
from applications.errors import UsageError

WORD_COLUMNS = ("tokens", "words")
TAG_COLUMNS = ("ner_tags", "tags")

MEANINGS = {
    "BIO": None,
    "BIOES": None,
    "IOB1": "the tags follow IOB1: B- only behind an entity of the same type",
    "mixed": "some entities start with I-, others with B-; both count, as in conlleval",
}


def tagging_data(
    name: str,
    raw: Mapping[str, Dataset],
    *,
    words: str,
    tags: str,
    tag_names: Sequence[str] = (),
    metric: str = "f1",
    notes: Sequence[str] = (),
    place: Callable[[str], str] | None = None,
    part: bool = False,
) -> TaskData:
    """The splits in ``raw`` with columns ``tokens`` and ``tags``, the numbers of ``label_names``.

    Tags are numbered in the order of ``tag_names``, else of a ``ClassLabel`` feature, else with O
    first and then by type; a tag of any split has a number, so that an entity which training never
    shows counts as missed where it occurs. A sentence without words is left out.

    Args:
        name: the name of the task.
        raw: rows by split, ``train`` among them.
        words: the column of lists of words.
        tags: the column of lists of tags, as many: strings, or numbers with names.
        tag_names: the names of tags that are numbers without a ``ClassLabel``.
        metric: the task's metric.
        notes: what was decided about the data before.
        place: from a split to its name in messages; then training must show an entity, too, unless
            it is a ``part`` of what is trained on.
        part: whether it is.

    Raises:
        UsageError: a column is missing or of another kind, a sentence has not as many tags as
            words, or a tag belongs to no known scheme.
    """
    said, numbering = list(notes), list(tag_names)
    named: dict[str, Tagged] = {}
    for split, rows in raw.items():
        where = f"task {name!r}: the {split} split" if place is None else place(split)
        check_columns(rows, words, tags, where)
        names = names_of(rows, tags)
        numbering = numbering or names
        found = tagged(rows, words, tags, names or tag_names, where)
        named[split] = kept = with_words(found, where)
        if len(kept.words) < len(found.words):
            said.append(
                f"{len(found.words) - len(kept.words)} rows of the {split} split have no words"
            )
        if split == "train" and place is not None:
            if not part:
                check_entities(kept.tags, OUTSIDE, where)
            kinds = {str(entity_type(tag)) for row in kept.tags for tag in row if tag != OUTSIDE}
            check_spelling(sorted(kinds), "types", where)
    seen = {split: {tag for row in found.tags for tag in row} for split, found in named.items()}
    ordered = in_order(tag for values in seen.values() for tag in values)
    label_names = (*numbering, *(tag for tag in ordered if tag not in numbering))
    in_order(label_names)
    said += remarks(named["train"].tags, seen)
    splits = {split: numbered(found, label_names) for split, found in named.items()}
    return TaskData(name, "tagging", metric, label_names, splits, tuple(said))


class Tagged(NamedTuple):
    """Sentences of words, and their tags."""

    words: list[list[str]]
    tags: list[list[str]]


def names_of(rows: Dataset, tags: str) -> list[str]:
    """The names of the tags where the column itself knows them."""
    feature = getattr(rows.features[tags], "feature", None)
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def tagged(rows: Dataset, words: str, tags: str, names: Sequence[str], where: str) -> Tagged:
    """The sentences of one split, their tags as strings.

    Raises:
        UsageError: a sentence has not as many tags as words, or a tag belongs to no known scheme.
    """
    found = Tagged(
        [list(sentence or ()) for sentence in rows[words]],
        [as_names(values or (), names, where) for values in rows[tags]],
    )
    for number, (sentence, values) in enumerate(zip(*found, strict=True), start=1):
        if len(sentence) != len(values):
            raise UsageError(
                f"{where} has {len(sentence)} words but {len(values)} tags in row {number}"
            )
    check_words(found.words, words, where)
    check_tags(found.tags, tags, where)
    return found


def with_words(found: Tagged, where: str) -> Tagged:
    """The sentences that have words; a UsageError if none has."""
    kept = [i for i, sentence in enumerate(found.words) if sentence]
    if not kept:
        raise UsageError(f"{where} has no sentence with words; give some")
    return Tagged([found.words[i] for i in kept], [found.tags[i] for i in kept])


def numbered(found: Tagged, label_names: Sequence[str]) -> Dataset:
    """The sentences as a data set, each tag the number of its name."""
    number_of = {tag: number for number, tag in enumerate(label_names)}
    tags = [[number_of[tag] for tag in row] for row in found.tags]
    return Dataset.from_dict({"tokens": found.words, "tags": tags})


def remarks(training: Sequence[Sequence[str]], seen: Mapping[str, set[str]]) -> list[str]:
    """What is said about the tags: an unusual scheme, and types that training lacks."""
    meaning = MEANINGS[scheme(training)]
    said = [] if meaning is None else [meaning]
    known = {entity_type(tag) for tag in seen["train"]}
    for split, tags in seen.items():
        missing = sorted({str(entity_type(tag)) for tag in tags - {OUTSIDE}} - {*map(str, known)})
        if missing:
            said.append(f"the {split} split has entities that training lacks: {missing}")
    return said


def check_columns(rows: Dataset, words: str, tags: str, where: str) -> None:
    """Raise a UsageError unless both columns are there and hold lists."""
    if words == tags:
        raise UsageError(
            f"argument --text_columns: {words!r} is the column of the tags, too; name one of words"
        )
    for column, flag in ((words, "text_columns"), (tags, "label_column")):
        if column not in rows.column_names:
            raise UsageError(
                f"{where} has no column {column!r}, only {rows.column_names}; name it with --{flag}"
            )
        if getattr(rows.features[column], "feature", None) is None:
            raise UsageError(
                f"{where}: column {column!r} must hold a list a row (of words, of their tags); "
                f"name another one with --{flag}"
            )


def as_names(values: Sequence[Any], names: Sequence[str], where: str) -> list[str]:
    """The tags of one sentence as strings."""
    if all(isinstance(value, str) for value in values):
        return list(values)
    name_of = dict(enumerate(names))
    if any(not isinstance(value, int) or value not in name_of for value in values):
        raise UsageError(
            f"{where} has the tags {list(values)[:20]}, which have no names; give tags as strings, "
            f"such as O and B-person"
        )
    return [name_of[value] for value in values]


def check_tags(tags: Iterable[Sequence[str]], column: str, where: str) -> None:
    """Raise a UsageError for the first tag of no known scheme."""
    known: set[str] = set()
    for row, values in enumerate(tags, start=1):
        for tag in set(values) - known:
            try:
                entity_type(tag)
            except ValueError as error:
                raise UsageError(f"{where}, row {row}, column {column!r}: {error}") from error
            known.add(tag)


def column(rows: Dataset, asked: str | None, usual: Sequence[str]) -> str:
    """The column asked for, or the first of the usual ones that is there."""
    if asked is not None:
        return asked
    return next((name for name in usual if name in rows.column_names), usual[0])
