"""Inputs with texts to be written about them in one form, whatever columns they came in."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset

from applications.data.examples import TaskData
from applications.data.local_files import TABLES
from applications.data.sources import load_source
from applications.data.tasks import SPLITS
from applications.data.validation import check_sources
from applications.errors import UsageError
from applications.options.arguments import DataOptions

SOURCE_COLUMNS = ("source", "mr", "meaning_representation", "input")
REFERENCE_COLUMNS = ("references", "ref", "human_reference", "target")
ATTRIBUTE = re.compile(r"(\w[\w ]*)\[([^\]]*)\]")
ONLY_ATTRIBUTES = re.compile(rf"{ATTRIBUTE.pattern}(, {ATTRIBUTE.pattern})*")
Pairs = list[tuple[str, str]]


def load_generation_task(options: DataOptions) -> TaskData:
    """The inputs that the options ask for with all their references, in the splits they come in.

    Rows with the same input are one input with several references.

    Raises:
        UsageError: an unknown task, missing files or columns, no way to the Hub.
    """
    source = load_source(options, "nlg", TABLES)
    found = from_tables(source.name, source.splits, options, source.where if source.files else None)
    return replace(found, notes=source.notes)


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


def from_tables(
    name: str,
    raw: Mapping[str, Dataset],
    options: DataOptions,
    strictly: Callable[[str], str] | None = None,
) -> TaskData:
    """A task whose columns are named by --text_columns and --label_column, or known.

    With ``strictly``, from a split to its name in messages, rows without an input or without a text
    are refused; else, and for texts among others, they are left out.
    """
    raw = {split: raw[split] for split in SPLITS if split in raw}
    pairs: dict[str, Pairs] = {}
    for split, rows in raw.items():
        where = f"task {name!r}: the {split} split"
        asked = options.text_columns[0] if options.text_columns else None
        source = column(rows, asked, SOURCE_COLUMNS, where, "text_columns")
        # The option's default is the column of labels, which no text to be written has.
        label = None if options.label_column == "label" else options.label_column
        wanted = column(rows, label, REFERENCE_COLUMNS, where, "label_column")
        if strictly is not None:
            check_sources(rows, source, found_in(rows, wanted), wanted, strictly(split))
        texts = zip(rows[source], references(rows, wanted), strict=True)
        pairs[split] = [
            (linearised(meaning), text) for meaning, found in texts for text in found if text
        ]
    return generation_data(name, pairs)


def references(rows: Dataset, name: str) -> list[list[str]]:
    """The references of each row: a list, or one text; an empty list stands for ``target``."""
    return [[" ".join(text.split()) for text in texts] for texts in found_in(rows, name)]


def found_in(rows: Dataset, name: str) -> list[list[Any]]:
    """The references as they stand in the rows."""
    found = [list(value) if isinstance(value, list) else [value] for value in rows[name]]
    if "target" in rows.column_names and name != "target":
        return [texts or [one] for texts, one in zip(found, rows["target"], strict=True)]
    return found


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
