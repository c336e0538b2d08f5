"""Tags of words in sentences: which are understood, and by which scheme."""

from collections.abc import Iterable, Sequence

from applications.errors import UsageError

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
