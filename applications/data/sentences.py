"""Tagged sentences in one form, whatever columns they came in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from applications.data.examples import TaskData
from applications.data.tags import OUTSIDE, entity_type, in_order, scheme
from applications.data.validation import check_entities, check_words
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
        place: from a split to its name in messages; then training must show an entity, too.

    Raises:
        UsageError: a column is missing or of another kind, a sentence has not as many tags as
            words, or a tag belongs to no known scheme.
    """
    named: dict[str, tuple[list[list[str]], list[list[str]]]] = {}
    numbering = list(tag_names)
    said = list(notes)
    for split, rows in raw.items():
        where = f"task {name!r}: the {split} split" if place is None else place(split)
        check_columns(rows, words, tags, where)
        feature = getattr(rows.features[tags], "feature", None)
        if isinstance(feature, ClassLabel):
            numbering = numbering or list(feature.names)
        names = list(feature.names) if isinstance(feature, ClassLabel) else list(tag_names)
        found = [
            (list(sentence or ()), as_names(values or (), names, where))
            for sentence, values in zip(rows[words], rows[tags], strict=True)
        ]
        for number, (sentence, values) in enumerate(found, start=1):
            if len(sentence) != len(values):
                raise UsageError(
                    f"{where} has {len(sentence)} words but {len(values)} tags in row {number}"
                )
        check_words((sentence for sentence, _ in found), words, where)
        check_tags((values for _, values in found), tags, where)
        kept = [pair for pair in found if pair[0]]
        if len(kept) < len(found):
            said.append(f"{len(found) - len(kept)} rows of the {split} split have no words")
        if not kept:
            raise UsageError(f"{where} has no sentence with words; give some")
        if split == "train" and place is not None:
            check_entities((values for _, values in kept), OUTSIDE, where)
        named[split] = ([s for s, _ in kept], [v for _, v in kept])
    seen = {split: {tag for values in tags for tag in values} for split, (_, tags) in named.items()}
    ordered = in_order(tag for values in seen.values() for tag in values)
    label_names = (*numbering, *(tag for tag in ordered if tag not in numbering))
    in_order(label_names)
    said += remarks(named["train"][1], seen)
    number_of = {tag: number for number, tag in enumerate(label_names)}
    splits = {
        split: Dataset.from_dict(
            {"tokens": sentences, "tags": [[number_of[tag] for tag in row] for row in values]}
        )
        for split, (sentences, values) in named.items()
    }
    return TaskData(name, "tagging", metric, label_names, splits, tuple(said))


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
