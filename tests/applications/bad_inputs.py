"""Bad inputs of the commands as data: what they are, what is said, and what lies beside them.

A row of `FILES` is a training file and flags that are refused, the sentence (a regular expression)
and the nearest file and flags that train. A row of `OPTIONS` is flags, the sentence and the nearest
flags that train. A row of `GRIDS` is a grid of ``applications.compare``, refused and accepted.
"""

import json
from dataclasses import dataclass
from typing import Any

TEXTS = (
    "the old cat",
    "a red dog",
    "new bread",
    "very big cheese",
    "the cat",
    "soup",
    "dog",
    "rice",
)
LABELS = ("animals", "animals", "food", "food", "animals", "food", "animals", "food")


@dataclass(frozen=True)
class File:
    """A training file with flags, for a command."""

    content: str | bytes
    name: str = "train.csv"
    flags: tuple[str, ...] = ()
    command: str = "nlu"


def table(labels: Any = LABELS, texts: Any = TEXTS, header: str = "text,label") -> str:
    rows = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
    return "\n".join([header, *rows]) + "\n"


def with_label(label: str, row: int = 3) -> str:
    """The table with another label in a row (from 1)."""
    return table([*LABELS[: row - 1], label, *LABELS[row:]])


def with_text(text: str, row: int = 2) -> str:
    return table(texts=[*TEXTS[: row - 1], text, *TEXTS[row:]])


def objects(*changes: dict[str, Any], labels: Any = LABELS) -> list[dict[str, Any]]:
    """Rows of a json file, the first ones changed."""
    rows = [{"text": t, "label": x} for t, x in zip(TEXTS, labels, strict=True)]
    return [row | change for row, change in zip(rows, [*changes, *[{}] * 8], strict=False)]


def listed(*changes: dict[str, Any], labels: Any = LABELS, flags: tuple[str, ...] = ()) -> File:
    return File(json.dumps(objects(*changes, labels=labels)), "train.json", flags)


def lines(*changes: dict[str, Any], labels: Any = LABELS) -> str:
    return "".join(json.dumps(row) + "\n" for row in objects(*changes, labels=labels))


GOOD = table()
DECIMALS = [0.5, 1.5, 2.5, 3.5, 0.5, 1.5, 2.5, 3.25]
WHOLE = [0, 1, 0, 1, 0, 1, 0, 1]
QUOTED = '"the ""old"" cat"'
CLASSES, NUMBERS = ("--problem_type", "classification"), ("--problem_type", "regression")
KINDS = ("cat", "dog")
MANY = "text,label\n" + "".join(f"the {KINDS[n % 2]},{n}\n" for n in range(30))
REPEATED = "text,label\n" + "".join(f"the {KINDS[n % 2]},{n % 5}\n" for n in range(30))
PAIRS = table(texts=[f"{t},{t}" for t in TEXTS], header="text,other,label")

# What it is: (refused, what is said, beside it).
FILES: dict[str, tuple[File, str, File]] = {
    # Files that are no tables.
    "empty": (File(""), r"train.csv is empty: give a file", File(GOOD)),
    "white space only": (File(" \n\n"), "is empty", File("\n" + GOOD)),
    "header only": (File("text,label\n"), r"a header \(text, label\) and no rows", File(GOOD)),
    "latin-1": (
        File(with_text("a dog café").encode("latin-1")),
        r"line 3: is not UTF-8 .*byte 0xe9.*iconv",
        File(with_text("a dog café").encode()),
    ),
    "utf-16": (File(GOOD.encode("utf-16")), "is UTF-16, not text", File(GOOD.encode("utf-8-sig"))),
    "binary": (File(b"text,label\n\0\0\0"), "is binary, not text in UTF-8", File(GOOD)),
    "gzip": (File(b"\x1f\x8b\x08\0\0"), "is compressed by gzip", File(GOOD)),
    "xlsx": (File(b"PK\x03\x04\0\0"), "is a zip archive", File(GOOD)),
    "parquet": (File(b"PAR1\0\0"), "is a parquet table", File(GOOD)),
    "another ending": (File(GOOD, "train.xls"), r"must end in one of \.csv", File(GOOD)),
    "missing": (
        File(GOOD, flags=("--train_file", "none.csv")),
        "--train_file: 'none.csv' is no file",
        File(GOOD),
    ),
    "a folder as file": (
        File(GOOD, flags=("--test_file", "/")),
        "--test_file: '/' is no file",
        File(GOOD),
    ),
    # Tables.
    "unclosed quote": (
        File(with_text('"the cat')),
        r"row beginning in line 3: .*a quote is not closed",
        File(with_text(QUOTED)),
    ),
    "text behind a quote": (File(with_text('"cat" dog')), "beginning in line 3", File(GOOD)),
    "duplicate columns": (
        File("text,text,label\n" + "the cat,a,x\na dog,b,y\n" * 3),
        r"two columns are called 'text' \(columns 1 and 2",
        File("text,note,label\n" + "the cat,1,x\na dog,2,y\n" * 3),
    ),
    "a column without a name": (
        File(GOOD.replace("text,label", "text,", 1)),
        "column 2 has no name",
        File(GOOD.replace("text,label", "text, label", 1)),
    ),
    "a comma in a text": (
        File(with_text("the cat, a dog")),
        r"row 2 \(line 3\): has 3 cells, the header has 2.*quotes",
        File(with_text('"the cat, a dog"')),
    ),
    "a row too short": (File(GOOD + "the cat\n"), "row 9 .* has 1 cells", File(GOOD + "\n")),
    "tabs in a csv": (
        File(GOOD.replace(",", "\t")),
        "no column 'label', only",
        File(GOOD.replace(",", "\t"), "train.tsv"),
    ),
    "semicolons": (
        File(GOOD.replace(",", ";")),
        r"no column 'label', only \['text;label'\]",
        File(GOOD),
    ),
    "no header": (File(GOOD.partition("\n")[2]), "no column 'label'", File(GOOD)),
    "another label column": (
        File(GOOD, flags=("--label_column", "y")),
        "no column 'y'.*--label_column",
        File(GOOD.replace("label", "y", 1), flags=("--label_column", "y")),
    ),
    "another text column": (
        File(GOOD, flags=("--text_columns", "s")),
        "no column 's'.*--text_columns",
        File(GOOD.replace("text", "s", 1), flags=("--text_columns", "s")),
    ),
    "three texts": (
        File(table(texts=[f"{t},{t},{t}" for t in TEXTS], header="a,b,c,label")),
        "cannot choose among the text columns",
        File(PAIRS),
    ),
    # Labels.
    "empty label": (
        File(with_label("")),
        r"row 3, column 'label': has no label; remove the row",
        File(GOOD),
    ),
    "blank label": (
        File(with_label("  ")),
        "row 3, column 'label': has no label",
        File(with_label(" food ")),
    ),
    "empty among numbers": (
        File(table([0, 1, "", 1, 0, 1, 0, 1])),
        "row 3, column 'label': has no label",
        File(table(WHOLE)),
    ),
    "a word among numbers": (
        File(table([0, 1, 0, "yes", 0, 1, 0, 1])),
        r"row 4, column 'label': the label 'yes' is no number, most others are.*classification",
        File(table([0, 1, 0, "yes", 0, 1, 0, "yes"]), flags=CLASSES),
    ),
    "a number among words": (
        File(with_label("7")),
        "row 3.* the label '7' is a number, most others are not",
        File(with_label("x7")),
    ),
    "nan among decimals": (
        File(table([*DECIMALS[:2], "nan", *DECIMALS[3:]])),
        "row 3, column 'label': the label 'nan' is no number",
        File(table(DECIMALS)),
    ),
    "inf among decimals": (
        File(table([*DECIMALS[:2], "-inf", *DECIMALS[3:]])),
        "row 3, column 'label': the label '-inf' is no number",
        File(table([*DECIMALS[:2], "-1e3", *DECIMALS[3:]])),
    ),
    "words for a regression": (
        File(GOOD, flags=NUMBERS),
        "row 1, column 'label': the label 'animals' is no number.*--problem_type classification",
        File(table([1, 2, 3, 4, 1, 2, 3, 4]), flags=NUMBERS),
    ),
    "a label a row": (
        File(MANY),
        r"has 30 different labels in 30 rows; .*--problem_type",
        File(MANY, flags=NUMBERS),
    ),
    "a label a row, named": (File(MANY), "30 different labels", File(REPEATED)),
    "one class": (
        File(table(["food"] * 8)),
        "all labels are of one class, 'food', .*nothing to learn",
        File(GOOD),
    ),
    "one value": (
        File(table([0.5] * 8)),
        r"all labels are of one value, 0\.5",
        File(table(DECIMALS)),
    ),
    "one class spelt twice": (
        File(with_label("Food")),
        "differ in spelling alone .*spell them alike",
        File(with_label("fooD".lower())),
    ),
    "one class in two normal forms": (
        File(table([*LABELS[:6], "caf\u00e9", "cafe\u0301"])),
        "'caf.+' and 'caf.+' differ in spelling alone",
        File(table([*LABELS[:6], "caf\u00e9", "cafe"])),
    ),
    "one class with an invisible character": (
        File(with_label("food\u200b")),
        r"'food.*' and 'food.*' differ in spelling alone",
        File(with_label("food b")),
    ),
    "one class with another space": (
        File(table([*LABELS[:6], "hot\u00a0food", "hot food"])),
        "differ in spelling alone",
        File(table([*LABELS[:6], "hot_food", "hot food"])),
    ),
    "one number spelt twice": (
        File(table(["1", "1.0", "x", "x", "1", "x", "1", "x"]), flags=CLASSES),
        "'1' and '1.0' differ in spelling alone",
        File(table(["1", "1_0", "x", "x", "1", "x", "1", "x"]), flags=CLASSES),
    ),
    "one class, a number": (
        File(table([7] * 8)),
        "all labels are of one class, '7'",
        File(table(WHOLE)),
    ),
    "one row": (File("text,label\nthe cat,x\n"), "all labels are of one class", File(GOOD)),
    # Texts.
    "empty text": (
        File(with_text("")),
        r"row 2, column 'text': the text is empty; remove the row",
        File(with_text("cat")),
    ),
    "blank text": (
        File(with_text("   ")),
        "row 2, column 'text': the text is empty",
        File(with_text(" cat")),
    ),
    "empty second text": (
        File(PAIRS.replace("a red dog,a red dog", "a red dog,", 1)),
        "row 2, column 'other': the text is empty",
        File(PAIRS),
    ),
    "one text": (
        File(table(texts=["the cat"] * 8)),
        r"all texts are alike \('the cat'\), so that there is nothing to tell labels apart by",
        File(table(texts=["the cat"] * 7 + ["dog"])),
    ),
    "one pair of texts": (
        File(table(texts=["cat,dog"] * 8, header="text,other,label")),
        "all texts are alike",
        File(table(texts=["cat,dog"] * 7 + ["cat,cat"], header="text,other,label")),
    ),
    "the answer as text": (
        File(GOOD, flags=("--text_columns", "label")),
        "--text_columns: 'label' is the column of the labels, which a model .* only to repeat",
        File(GOOD, flags=("--text_columns", "text")),
    ),
    "the answer beside the text": (
        File(GOOD, flags=("--text_columns", "text,label")),
        "'label' is the column of the labels",
        File(PAIRS, flags=("--text_columns", "text,other")),
    ),
    "a text named twice": (
        File(PAIRS, flags=("--text_columns", "text", "text")),
        "--text_columns: must name each column once, got",
        File(PAIRS, flags=("--text_columns", "text", "other")),
    ),
    "unknown words": (
        File(table(texts=["zig zag", "zag zig"] * 4)),
        r"the tokenizer of .* does not know 100% of the words.*\[UNK\]",
        File(table(texts=["zig cat dog", "zag dog cat"] * 4)),
    ),
    "emoji only": (
        File(table(texts=["😀😀", "😀"] * 4)),
        "does not know 100%",
        File(table(texts=["😀 cat dog", "😀 dog"] * 4)),
    ),
    "texts too long": (
        File(table(texts=["cat " * 40, "dog " * 40] * 4)),
        r"--max_seq_length: must be at most 32 for this model: row 1 of the train split has 42 t",
        File(table(texts=["cat " * 40, "dog " * 40] * 4), flags=("--max_seq_length", "32")),
    ),
    # Json.
    "json, cut off": (
        File(json.dumps(objects())[:-9], "train.json"),
        "is not JSON: .*line 1 column",
        listed(),
    ),
    "json, lines": (
        File(lines(), "train.json"),
        r"is not JSON: Extra data.*ends in \.jsonl",
        File(lines(), "train.jsonl"),
    ),
    "json, an object": (
        File('{"text": "a"}', "train.json"),
        "must hold a list of objects",
        listed(),
    ),
    "json, no rows": (File("[]", "train.json"), "has no rows: add examples", listed()),
    "json, lists": (
        File('[["a", "b"]]', "train.json"),
        r'row 1: must be an object .*got \["a", "b"\]',
        listed(),
    ),
    "jsonl, a broken line": (
        File(lines() + '{"text": \n', "train.jsonl"),
        "line 9: is not JSON",
        File(lines() + "\n", "train.jsonl"),
    ),
    "jsonl, a number": (
        File("3\n", "train.jsonl"),
        "row 1: must be an object",
        File(lines(), "train.jsonl"),
    ),
    "json, a key twice": (
        File('[{"text": "a", "text": "b", "label": 1}]', "train.json"),
        "the key 'text' is there twice",
        listed(),
    ),
    "json, null label": (listed({"label": None}), "row 1, column 'label': has no label", listed()),
    "json, null text": (listed({}, {"text": None}), "row 2, column 'text': has no text", listed()),
    "json, a missing key": (
        File(json.dumps([{"text": "the cat"}, *objects()]), "train.json"),
        "row 1, column 'label': has no label",
        File(json.dumps([{"text": "the cat", "label": "food"}, *objects()]), "train.json"),
    ),
    "json, a number as text": (
        listed({}, {}, {"text": 3}),
        "row 3, column 'text': is a whole number, text in row 1",
        listed(),
    ),
    "json, all texts numbers": (
        File(
            json.dumps([{"text": n, "label": n % 2} for n in range(8)]),
            "train.json",
            ("--text_columns", "text"),
        ),
        r"row 1, column 'text': holds 0, which is no text",
        listed(labels=WHOLE),
    ),
    "json, labels of two kinds": (
        listed({"label": 1}),
        "row 2, column 'label': is text, a whole number in row 1",
        listed({"label": "food"}),
    ),
    "json, NaN": (
        listed({"label": float("nan")}, labels=DECIMALS),
        "row 1, column 'label': the label is nan",
        listed(labels=DECIMALS),
    ),
    "json, Infinity": (
        listed({}, {"label": float("inf")}, labels=DECIMALS),
        "row 2.*the label is inf",
        listed(labels=[1, *DECIMALS[1:]]),
    ),
    "json, label a list": (
        listed(*[{"label": [1]}] * 8),
        "row 1, column 'label': .*neither text nor a number",
        listed(),
    ),
    "json, label an object": (
        listed(*[{"label": {"a": 1}}] * 8),
        "neither text nor a number",
        listed(),
    ),
    "json, a huge number": (
        listed({"label": 10**30}, labels=WHOLE),
        "column 'label': cannot be read",
        listed({"label": 10**9}, labels=[10**9, *WHOLE[1:]]),
    ),
    "json, too deep": (File("[" * 100_000, "train.json"), "is not JSON", listed()),
    "json, true among words": (
        listed({"label": True}),
        "row 2.*is text, true or false in row 1",
        listed(),
    ),
}

# Sentences.
CONLL = "the\tO\ncat\tB-animal\n\na\tO\ndog\tB-animal\n\n" * 3


def conll(content: str | bytes, name: str = "train.conll", *flags: str) -> File:
    return File(content, name, flags, "token_classification")


def tagged(*rows: tuple[Any, Any]) -> File:
    found = [{"tokens": words, "tags": tags} for words, tags in rows]
    return conll(json.dumps(found), "train.json")


SENTENCE = (["the", "cat"], ["O", "B-animal"])
FILES |= {
    "conll, empty": (conll(""), "is empty", conll(CONLL)),
    "conll, blank lines": (
        conll("-DOCSTART- O\n\n"),
        "holds no sentence",
        conll("-DOCSTART- O\n\n" + CONLL),
    ),
    "conll, a word alone": (
        conll("the\n" + CONLL),
        "line 1: a word and its tag",
        conll("the O\n" + CONLL),
    ),
    "conll, latin-1": (
        conll("é\tO\n".encode("latin-1")),
        "line 1: is not UTF-8",
        conll("é\tO\n".encode() + CONLL.encode()),
    ),
    "conll, binary": (conll(b"a\0O\n"), "is binary", conll(CONLL)),
    "conll, one type spelt twice": (
        conll(CONLL + "cat\tB-Animal\n"),
        "the types 'Animal' and 'animal' differ in spelling alone",
        conll(CONLL + "cat\tB-animals\n"),
    ),
    "conll, an unknown scheme": (
        conll(CONLL + "cat\tU-animal\n"),
        "row 7, column 'tags': tag 'U-animal' is not understood",
        conll(CONLL + "cat\tS-animal\n"),
    ),
    "conll, a tag without type": (
        conll(CONLL + "cat\tB-\n"),
        "row 7.*tag 'B-' is not understood",
        conll(CONLL + "cat\tB\n"),
    ),
    "conll, a small o": (
        conll(CONLL + "cat\to\n"),
        "tag 'o' is not understood",
        conll(CONLL + "cat\tO\n"),
    ),
    "conll, no entity": (
        conll("the\tO\ncat\tO\n\n" * 6),
        "no word is tagged as an entity",
        conll(CONLL),
    ),
    "conll, a table": (conll(GOOD), "line 1: a word and its tag", conll(CONLL)),
    "conll, one sentence": (
        conll("the\tO\ncat\tB-animal\n"),
        "1 examples cannot be divided",
        conll(CONLL),
    ),
    "conll, unknown words": (
        conll("zig\tO\nzag\tB-x\n\n" * 6),
        "does not know 100%",
        conll(CONLL + "zig\tO\n"),
    ),
    "conll, too long": (
        conll(("cat\tB-animal\n" * 40 + "\n") * 6),
        "--max_seq_length: must be at most 32",
        conll(("cat\tB-animal\n" * 40 + "\n") * 6, "train.conll", "--max_seq_length", "32"),
    ),
    "tags, too few": (
        tagged(*[SENTENCE] * 5, (["the", "cat"], ["O"])),
        "has 2 words but 1 tags in row 6",
        tagged(*[SENTENCE] * 6),
    ),
    "tags, numbers": (
        tagged(*[(["the", "cat"], [0, 1])] * 6),
        r"tags \[0, 1\], which have no names",
        tagged(*[SENTENCE] * 6),
    ),
    "tags, lists": (  # found by fuzzing
        tagged(*[(["the", "cat"], [["O"], ["O"]])] * 6),
        r"tags \[\['O'\], \['O'\]\], which have no names",
        tagged(*[SENTENCE] * 6),
    ),
    "tags, null": (
        tagged(*[SENTENCE] * 5, (["the"], None)),
        "has 1 words but 0 tags in row 6",
        tagged(*[SENTENCE] * 6),
    ),
    "words, null": (
        tagged(*[SENTENCE] * 5, (["the", None], ["O", "O"])),
        "row 6, column 'tokens': holds None where a word is expected",
        tagged(*[SENTENCE] * 6, ([], [])),
    ),
    "words, empty": (
        tagged(*[SENTENCE] * 5, (["the", ""], ["O", "O"])),
        "row 6.*holds '' where a word",
        tagged(*[SENTENCE] * 6),
    ),
    "words, a text": (
        conll(json.dumps([{"tokens": "the cat", "tags": "O O"}]), "train.json"),
        "column 'tokens' must hold a list a row",
        tagged(*[SENTENCE] * 6),
    ),
    "words, no column": (
        conll(json.dumps([{"w": ["a"], "tags": ["O"]}]), "train.json"),
        "no column 'tokens'.*--text_columns",
        conll(
            json.dumps([{"w": s, "tags": t} for s, t in [SENTENCE] * 6]),
            "train.json",
            "--text_columns",
            "w",
        ),
    ),
    "words, all rows empty": (
        tagged(*[([], [])] * 3, (["a"], ["O"])),
        "no word is tagged as an entity",
        tagged(*[SENTENCE] * 6, ([], [])),
    ),
    "tags as words": (
        conll(
            json.dumps([{"w": s, "tags": t} for s, t in [SENTENCE] * 6]),
            "train.json",
            *("--text_columns", "tags", "--label_column", "tags"),
        ),
        "'tags' is the column of the tags, too",
        tagged(*[SENTENCE] * 6),
    ),
    "two columns of words": (
        conll(CONLL, "train.conll", "--text_columns", "a", "b"),
        "name one column of words",
        conll(CONLL),
    ),
}

# Texts to be written.
MEANINGS = "".join(
    f"name[{name}],{name} is in the centre\n" for name in ("Aromi", "Zizzi", "Cocum", "Strada")
)


def pairs(content: str, name: str = "train.csv", *flags: str) -> File:
    return File(content, name, flags, "nlg")


PAIR = pairs("mr,ref\n" + MEANINGS)
LONG = "Aromi " * 70
FILES |= {
    "an empty input": (
        pairs("mr,ref\n" + MEANINGS + ",Aromi is\n"),
        "row 5, column 'mr': the text is empty",
        PAIR,
    ),
    "an empty reference": (
        pairs("mr,ref\n" + MEANINGS + "name[Vaults],\n"),
        "row 5, column 'ref': the text is empty",
        PAIR,
    ),
    "a null input": (
        pairs(json.dumps([{"mr": None, "ref": "Aromi"}]), "train.json"),
        "row 1, column 'mr': has no text",
        PAIR,
    ),
    "a null reference": (
        pairs('{"mr": "a", "references": [null]}', "train.jsonl"),
        "row 1, column 'references': has no text",
        PAIR,
    ),
    "no reference": (
        pairs('{"mr": "a", "references": []}', "train.jsonl"),
        "row 1.* there is no text to learn",
        PAIR,
    ),
    "a number as reference": (
        pairs('{"mr": "a", "ref": 3}', "train.jsonl"),
        "row 1, column 'ref': holds 3, which is no text",
        PAIR,
    ),
    "no column of inputs": (
        pairs("q,ref\n" + MEANINGS),
        "none of the columns .*'source'.*--text_columns",
        pairs("q,ref\n" + MEANINGS, "train.csv", "--text_columns", "q"),
    ),
    "an empty list of triples": (
        pairs('{"source": [], "references": ["a"]}', "train.jsonl"),
        "row 1.*the input is empty",
        PAIR,
    ),
    "a prompt too long": (
        pairs("mr,ref\n" + MEANINGS + f"{LONG},Aromi\n"),
        "prompt and reference must fit in the model, which reads 64 tokens; .*row",
        PAIR,
    ),
    "a reference too long": (
        pairs("mr,ref\n" + MEANINGS + f"name[Vaults],{LONG}\n"),
        "prompt and reference must fit in the model, which reads 64 tokens; .*row",
        pairs("mr,ref\n" + MEANINGS + f"name[Vaults],{LONG[:240]}\n"),
    ),
    "no room to write in": (
        pairs("mr,ref\n" + MEANINGS, "train.csv", "--max_new_tokens", "62"),
        "--max_new_tokens: a prompt of .* do not fit in the 64 positions",
        PAIR,
    ),
    "unknown inputs": (
        pairs("mr,ref\n" + "zig zag,Aromi is\nzag zig,Zizzi is\nzug zag,Aromi\nzug,Strada\n"),
        "does not know",
        PAIR,
    ),
}

OUT_OF_RANGE = {
    "learning_rate": (("nan", "inf", "0", "-1e-3"), "1e-3"),
    "upper_learning_rate": (("inf", "0"), "1e-2"),
    "num_train_epochs": (("inf", "nan", "0"), "0.5"),
    "lora_alpha": (("inf", "nan", "0"), "0.5"),
    "lora_r": (("0", "-1"), "1"),
    "lora_dropout": (("1", "nan", "-0.1"), "0.5"),
    "seed": (("-1", "4294967296"), "4294967295"),
    "split_seed": (("-1", "4294967296"), "4294967295"),
    "weight_decay": (("-1", "inf"), "0.1"),
    "warmup_ratio": (("1.5", "nan"), "1.0"),
    "adam_epsilon": (("inf", "0"), "1e-6"),
    "adam_beta1": (("1", "nan"), "0.5"),
    "adam_beta2": (("1", "-0.1"), "0"),
    "per_device_train_batch_size": (("0", "-4"), "1"),
    "gradient_accumulation_steps": (("0",), "2"),
    "max_steps": (("0", "-2"), "1"),
    "max_seq_length": (("3",), "4"),
    "max_train_samples": (("1", "0"), "20"),
    "test_fraction": (("0", "1", "nan"), "0.5"),
    "validation_fraction": (("1", "-0.1"), "0.2"),
    "save_steps": (("0",), "1"),
    "logging_steps": (("0",), "1"),
}
# What it is: (flags, what is said, the nearest flags that train); all with --method bilora or lora.
OPTIONS: dict[str, tuple[list[str], str, list[str]]] = {
    f"{name} {value}": ([f"--{name}={value}"], rf"--{name}: .*got ", [f"--{name}={good}"])
    for name, (values, good) in OUT_OF_RANGE.items()
    for value in values
}
OPTIONS |= {
    "a word for a number": (["--lora_r", "two"], "invalid int value: 'two'", ["--lora_r", "2"]),
    "a misspelt flag": (
        ["--learning_rat", "1"],
        "did you mean --learning_rate",
        ["--lr_scheduler_type", "cosine"],
    ),
    "an unknown method": (["--method", "lorra"], "invalid choice: 'lorra'", ["--method", "lora"]),
    "an unknown schedule": (
        ["--lr_scheduler_type", "step"],
        "must be one of",
        ["--lr_scheduler_type", "constant"],
    ),
    "an unknown hypergradient": (
        ["--method", "bilora", "--hypergradient", "cgg"],
        "invalid choice: 'cgg'",
        ["--method", "bilora", "--hypergradient", "cg"],
    ),
    "an unknown device": (["--device", "quantum"], "'quantum' is no device", ["--device", "cpu"]),
    "a device without memory": (
        ["--device", "meta"],
        "nothing can be trained on 'meta'",
        ["--device", "auto"],
    ),
    "a device that is not there": (
        ["--device", "vulkan"],
        "nothing can be trained on 'vulkan'",
        ["--device", "cpu:0"],
    ),
    "no upper data": (
        ["--method", "bilora", "--upper_fraction", "0"],
        "--upper_fraction: must lie",
        ["--method", "bilora", "--upper_fraction", "0.4"],
    ),
    "all upper data": (
        ["--method", "bilora", "--upper_fraction", "1"],
        "--upper_fraction: must lie",
        ["--method", "bilora", "--upper_fraction", "0.6"],
    ),
    "no lower steps": (
        ["--method", "bilora", "--lower_steps", "0"],
        "--lower_steps: must be at least 1",
        ["--method", "bilora", "--lower_steps", "2"],
    ),
    "a norm as target": (
        ["--lora_target_modules", "LayerNorm"],
        "--lora_target_modules: .*LayerNorm",
        ["--lora_target_modules", "query"],
    ),
    "an embedding as target of two levels": (
        ["--method", "bilora", "--lora_target_modules", "word_embeddings"],
        "--lora_target_modules: .*(mbedding)",
        ["--method", "bilora", "--lora_target_modules", "query"],
    ),
    "no such target": (
        ["--lora_target_modules", "nowhere"],
        "no module of the model is called 'nowhere'; linear ones are .*query.*, or all-linear",
        ["--lora_target_modules", "key"],
    ),
    "one target that is there and one that is not": (
        ["--lora_target_modules", "query", "valeu"],
        "no module of the model is called valeu; adapted would be query alone",
        ["--lora_target_modules", "query", "value"],
    ),
    "all targets and one": (
        ["--lora_target_modules", "all-linear", "query"],
        "no module of the model is called all-linear; adapted would be query alone",
        ["--lora_target_modules", "all-linear"],
    ),
    "no name of a target": (
        ["--lora_target_modules", ""],
        "--lora_target_modules: no module of the model is called",
        ["--lora_target_modules", "attention.self.query"],
    ),
    "too short for ranks": (
        ["--method", "adalora", "--max_steps", "2"],
        "method adalora: needs 3 updates at least to find ranks by, got 2",
        ["--method", "adalora", "--max_steps", "3"],
    ),
    "one softmax value": (
        ["--method", "bilora", "--lora_r", "1"],
        "--lora_r: .*--singular_values real",
        ["--method", "bilora", "--lora_r", "1", "--singular_values", "real"],
    ),
    "dropout in bidora": (
        ["--method", "bidora", "--lora_dropout", "0.1"],
        "method bidora: lora_dropout must be 0",
        ["--method", "bidora", "--lora_dropout", "0"],
    ),
    "a penalty lora has not": (
        ["--orthogonality", "0.1"],
        "--orthogonality: method lora has no such penalty",
        ["--method", "bilora", "--orthogonality", "0.1"],
    ),
    "an infinite penalty": (
        ["--method", "bilora", "--orthogonality", "inf"],
        "--orthogonality: must be at least 0",
        ["--method", "bilora", "--orthogonality", "1"],
    ),
    "binary penalty on softmax": (
        ["--method", "bilora", "--binarisation", "1"],
        "needs --singular_values binary",
        ["--method", "bilora", "--binarisation", "1", "--singular_values", "binary"],
    ),
    "a control of other methods": (
        ["--control", "joint"],
        "--control: method lora has the controls",
        ["--control", "lower_data_only"],
    ),
    "a retraining without a search": (
        ["--retraining", "values"],
        "no search to retrain after",
        ["--method", "bilora", "--retraining", "values"],
    ),
    "ranks of bidora": (
        ["--method", "bidora", "--retraining", "ranks"],
        "selects ranks",
        ["--method", "bidora", "--retraining", "values"],
    ),
    "masks on dora": (
        ["--method", "dora", "--mask_rate", "0.1"],
        "--mask_rate: method dora has no masks",
        ["--method", "bilora", "--mask_rate", "0.1"],
    ),
    "selection without evaluations": (
        ["--metric_for_best_model", "loss"],
        "needs --eval_steps",
        ["--metric_for_best_model", "loss", "--eval_steps", "1", "--validation_fraction", "0.2"],
    ),
    "patience without selection": (
        ["--early_stopping_patience", "2"],
        "needs --metric_for_best_model",
        ["--eval_steps", "2"],
    ),
    "a scale for cg": (
        ["--method", "bilora", "--hypergradient", "cg", "--hypergradient_scale", "1"],
        "cg has no scale",
        ["--method", "bilora", "--hypergradient_scale", "1"],
    ),
    "an infinite scale": (
        ["--method", "bilora", "--hypergradient_scale", "inf"],
        "--hypergradient_scale: .*finite",
        ["--method", "bilora", "--hypergradient_scale", "2"],
    ),
    "damping for darts": (
        ["--method", "bilora", "--hypergradient_damping", "1"],
        "darts has no damping",
        ["--method", "bilora", "--hypergradient", "cg", "--hypergradient_damping", "1"],
    ),
    "one fold": (
        ["--method", "bilora", "--cross_fitting", "1"],
        "--cross_fitting: must be at least 2",
        ["--method", "bilora", "--cross_fitting", "2"],
    ),
    "folds of one level": (
        ["--cross_fitting", "2"],
        "needs a bi-level method",
        ["--method", "bilora", "--cross_fitting", "2"],
    ),
    "a warm-up longer than the run": (
        ["--method", "bilora", "--upper_warmup_steps", "9", "--max_steps", "4"],
        "--upper_warmup_steps: must be less than the 4",
        ["--method", "bilora", "--upper_warmup_steps", "3", "--max_steps", "4"],
    ),
    "three text columns": (
        ["--text_columns", "a", "b", "c"],
        "must name one or two columns",
        ["--text_columns", "text"],
    ),
    "an export of dora": (
        ["--method", "dora", "--export_lora"],
        "--export_lora: only",
        ["--method", "bilora", "--export_lora"],
    ),
    "a preset that was never published": (
        ["--method", "bilora", "--preset", "paper"],
        "--preset",
        ["--method", "bilora"],
    ),
    "a word too much": (["lora"], "unexpected word 'lora'", ["--method", "lora"]),
    "an unknown problem": (
        ["--problem_type", "ranking"],
        "invalid choice: 'ranking'",
        ["--problem_type", "classification"],
    ),
}

AXES = {"tasks": ["bbc_headlines"], "methods": ["lora"]}
# What it is: (grid, flags, what is said, the nearest grid).
GRIDS: dict[str, tuple[Any, list[str], str, Any]] = {
    "an unknown task": (
        AXES | {"tasks": ["sst3"]},
        [],
        "run sst3/.*: argument --task_name: unknown task 'sst3'",
        AXES,
    ),
    "missing data": (
        AXES | {"tasks": {"a": {"task_name": None, "train_file": "none.csv"}}},
        [],
        "run a/.*'none.csv' is no file",
        AXES,
    ),
    "a missing folder": (
        AXES | {"common": {"data_dir": "nowhere"}},
        [],
        "'nowhere' is no folder",
        AXES,
    ),
    "a folder without the task": (
        AXES | {"tasks": ["sst2"], "common": {"data_dir": "."}},
        [],
        "holds the files of task 'sst2'",
        AXES,
    ),
    "a task of another command": (
        AXES | {"tasks": {"wnut17": {"command": "nlu"}}},
        [],
        "is a task of python -m applications.token_classification",
        AXES,
    ),
    "a task without a name": (
        AXES | {"tasks": {"": {"task_name": "bbc_headlines"}}},
        [],
        "tasks: a name is empty, got ''",
        AXES | {"tasks": {"bbc_headlines": {"task_name": "bbc_headlines"}}},
    ),
    "names that are one folder on some systems": (
        AXES | {"methods": {"A": {"method": "lora"}, "a": {"method": "dora"}}},
        [],
        "methods: 'a' cannot be a folder beside 'A'",
        AXES | {"methods": {"A": {"method": "lora"}, "b": {"method": "dora"}}},
    ),
    "more seeds than can be planned": (
        AXES | {"seeds": 20_000},
        [],
        r"seeds: at most 10000 seeds are planned at once, .*\[20000\]",
        AXES | {"seeds": [20_000]},
    ),
    "two references": (
        AXES | {"reference": ["lora"]},
        [],
        r"reference: must be the name of one method, got \['lora'\]",
        AXES | {"reference": "lora"},
    ),
    "no tasks": ({"methods": ["lora"]}, [], "no tasks", AXES),
    "no methods": ({"tasks": ["bbc_headlines"]}, [], "no methods", AXES),
    "an unknown key": (
        AXES | {"task": ["cola"]},
        [],
        "unknown key 'task': did you mean tasks",
        AXES,
    ),
    "a key twice": (
        '{"tasks": ["bbc_headlines"], "methods": ["lora"], "methods": ["dora"]}',
        [],
        "cannot be read: the key 'methods' is there twice",
        AXES,
    ),
    "an unknown method": (AXES | {"methods": ["lorra"]}, [], "invalid choice|must be one of", AXES),
    "an unknown option": (
        AXES | {"common": {"lr": 1}},
        [],
        "unknown option",
        AXES | {"common": {"learning_rate": 1e-3}},
    ),
    "a seed twice": (AXES | {"seeds": [1, 1]}, [], "each once", AXES | {"seeds": [1, 2]}),
    "no seeds": (AXES | {"seeds": 0}, [], "at least one seed", AXES | {"seeds": 1}),
    "a train size of one": (
        AXES | {"train_sizes": [1]},
        [],
        "at least 2",
        AXES | {"train_sizes": [20]},
    ),
    "an option out of range": (
        AXES | {"common": {"learning_rate": "inf"}},
        [],
        "--learning_rate: must be a finite",
        AXES,
    ),
    "a reference that is not there": (
        AXES | {"reference": "bilora"},
        [],
        "'bilora' is not among the methods",
        AXES | {"reference": "lora"},
    ),
    "everything excluded": (AXES | {"exclude": [{"method": "lora"}]}, [], "no runs are left", AXES),
    "no mapping": ([1], [], "must hold one mapping", AXES),
    "no processes": (AXES, ["--processes", "0"], "--processes: must be at least 1", AXES),
    "a shard that is none": (AXES, ["--shard", "3/2"], "--shard: must be I/N", AXES),
}
