"""Files of tagged sentences, a word a line."""

import re
from pathlib import Path

from datasets import Dataset

from applications.data.text_files import read_text
from applications.errors import UsageError

DOCUMENT_START = "-DOCSTART-"


def read_conll(file: Path) -> Dataset:
    """The sentences of a file, columns ``tokens`` and ``tags``, one list of strings a row.

    A line is a word: its first column is the text, its last the tag. Tabs divide columns, or
    spaces in a line without a tab. Empty lines, and those of nothing but white space, end a
    sentence; ``-DOCSTART-`` lines are left out.

    Raises:
        UsageError: a line has a single column, the file is not UTF-8, or holds no sentence.
    """
    text = read_text(file)
    tokens: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    # Only line feeds end a line: a word may be another of Unicode's line separators.
    for number, line in enumerate(text.split("\n"), start=1):
        cells = line.strip("\r").split("\t") if "\t" in line else re.split(" +", line.strip(" \r"))
        if not any(cell.strip() for cell in cells):
            if tokens[-1]:
                tokens.append([])
                tags.append([])
        elif cells[0] != DOCUMENT_START:
            if len(cells) == 1:
                raise UsageError(
                    f"{file}, line {number}: a word and its tag are expected, got {line!r}; "
                    f"columns are divided by tabs or spaces"
                )
            tokens[-1].append(cells[0])
            tags[-1].append(cells[-1].strip())
    if not tokens[0]:
        raise UsageError(f"{file} holds no sentence: give a file with a word and its tag a line")
    filled = slice(0, len(tokens) if tokens[-1] else -1)
    return Dataset.from_dict({"tokens": tokens[filled], "tags": tags[filled]})
