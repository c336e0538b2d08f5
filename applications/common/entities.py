"""Entities in tagged sentences: which tags are understood, and how predictions are scored."""

from collections import Counter
from collections.abc import Iterable, Sequence

from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

from applications.common.errors import UsageError

OUTSIDE = "O"
PREFIXES = ("B", "I", "E", "S")
UNNAMED = "_"

Sentences = Sequence[Sequence[str]]


def entity_type(tag: str) -> str | None:
    """The type in a tag, ``person`` in ``B-person`` and ``_`` in a bare ``B``; None for ``O``.

    Raises:
        ValueError: it is no tag of IOB1, BIO or BIOES.
    """
    prefix, mark, kind = tag.partition("-")
    if tag == OUTSIDE:
        return None
    if prefix not in PREFIXES or (mark and not kind):
        raise ValueError(
            f"tag {tag!r} is not understood: tags are O, and B-, I-, E- or S- before the type of "
            f"an entity (the schemes IOB1, BIO and BIOES)"
        )
    return kind or UNNAMED


def in_order(tags: Iterable[str]) -> tuple[str, ...]:
    """``O`` and the tags, each once, by type and then in the order B, I, E, S.

    Raises:
        UsageError: there is a tag of no known scheme.
    """
    try:
        kinds = {tag: entity_type(tag) for tag in set(tags) - {OUTSIDE}}
    except ValueError as error:
        raise UsageError(str(error)) from error
    return (OUTSIDE, *sorted(kinds, key=lambda tag: (kinds[tag], PREFIXES.index(tag[0]))))


def scheme(sentences: Sentences) -> str:
    """Which scheme the sentences follow: BIO, IOB1, BIOES or ``mixed``.

    In BIO every entity starts with B-; in IOB1 (Ramshaw and Marcus, 1995, arXiv:cmp-lg/9505040)
    with I-, and with B- only behind an entity of the same type; ``mixed`` is neither of the two.
    BIOES is what has E- or S-.
    """
    lone = spare = 0
    for tags in sentences:
        before: str | None = None
        for tag in tags:
            kind = entity_type(tag)
            if tag[0] in "ES":
                return "BIOES"
            lone += tag[0] == "I" and kind != before
            spare += tag[0] == "B" and kind != before
            before = kind
    if lone == 0:
        return "BIO"
    return "IOB1" if spare == 0 else "mixed"


def entity_scores(
    truth: Sentences, predictions: Sentences, types: Iterable[str]
) -> dict[str, float | None]:
    """Precision, recall and F1 of whole entities, over all types and F1 of each (``f1_person``).

    An entity is right when first word, last word and type are. F1 = 2 TP / (2 TP + FP + FN), with
    the counts of all types added (micro average). Entities are read as `seqeval` does by default,
    and conlleval before it: an I- that continues nothing starts an entity, so every sequence of
    tags has a meaning. A ratio 0/0 is None: precision without predictions, recall without
    entities, F1 without either.

    Args:
        truth: the tags of each sentence.
        predictions: as many tags.
        types: whose F1 is wanted.
    """
    truth, predictions = [list(tags) for tags in truth], [list(tags) for tags in predictions]
    expected, found = (Counter(kind for kind, *_ in get_entities(s)) for s in (truth, predictions))
    # zero_division=0 keeps seqeval from warning; the ratios that it decides are replaced below.
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predictions, average="micro", zero_division=0
    )
    each = precision_recall_fscore_support(truth, predictions, average=None, zero_division=0)[2]
    by_type = dict(zip(sorted(expected | found), each, strict=True))
    scores: dict[str, float | None] = {
        "precision": float(precision) if found else None,
        "recall": float(recall) if expected else None,
        "f1": float(f1) if expected or found else None,
    }
    for kind in types:
        scores[f"f1_{kind}"] = float(by_type[kind]) if kind in by_type else None
    return scores
