"""Files of WebNLG's releases: triples, and texts that say them."""

from pathlib import Path
from xml.etree import ElementTree

from datasets import Dataset, Features, List, Value

COLUMNS = Features({"source": List(Value("string")), "references": List(Value("string"))})


def read_webnlg(folder: Path) -> Dataset:
    """The entries of the XML files below a folder, columns ``source`` and ``references``.

    A row is the modified triples of an entry and its texts that were judged good; an entry without
    one is left out.
    """
    rows = [row for file in xml_files(folder) for row in entries(file)]
    sources, references = [source for source, _ in rows], [texts for _, texts in rows]
    return Dataset.from_dict({"source": sources, "references": references}, features=COLUMNS)


def xml_files(folder: Path) -> list[Path]:
    """The files of the task from data to text; release 3.0 has those of the way back beside it."""
    return sorted(f for f in folder.rglob("*.xml") if not f.name.startswith("semantic-parsing"))


def entries(file: Path) -> list[tuple[list[str], list[str]]]:
    """The modified triples of each entry with its texts that were judged good."""
    found = []
    for entry in ElementTree.parse(file).getroot().iter("entry"):
        triples = [triple.text or "" for triple in entry.iterfind("modifiedtripleset/mtriple")]
        texts = [
            text.text
            for text in entry.iterfind("lex")
            if text.get("comment", "good") in ("good", "") and text.text and text.text.strip()
        ]
        if texts:
            found.append((triples, texts))
    return found
