"""Files, options and graphs by chance: each trains or is one sentence, and nothing else.

`python -m tests.applications.test_fuzzed_inputs 20000` tries as many of each kind.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from applications.data.examples import load_task
from applications.data.meaning_representations import load_generation_task
from applications.data.splits import split_task
from applications.errors import UsageError
from applications.families.tagging import TokenClassification
from applications.options.arguments import DataOptions
from applications.options.command_line import GROUPS, names_of, parse_options
from applications.options.commands import COMMANDS
from applications.options.completion import completed
from blo import Engine, Problem, ProblemGraph, cg, darts, t1t2

EXAMPLES = int(sys.argv[1]) if __name__ == "__main__" else 60
CELL = st.sampled_from(
    [
        *(
            "a",
            "b",
            "1",
            "0",
            "2.5",
            "",
            " ",
            "nan",
            "inf",
            "null",
            "é",
            '"',
            '""',
            ",",
            "\t",
            "\n",
        ),
        "O",
        "B-x",
        "I-",
    ]
)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**20) | st.floats() | CELL,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELL, inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(["text", "label", "tokens", "tags", "mr", "ref", "references", "source"])
TABLE = st.lists(st.lists(CELL, min_size=1, max_size=3).map(",".join), max_size=6).map("\n".join)
ROWS = st.lists(st.dictionaries(KEYS, VALUE, max_size=4), max_size=5)


def one_sentence(work: Any) -> None:
    try:
        work()
    except UsageError as error:
        said = str(error)
        assert 15 < len(said) < 1200, said
        assert "Traceback" not in said


def read(content: bytes, name: str, task: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / name
        file.write_bytes(content)
        options = DataOptions(train_file=str(file))
        for load in (load_task, load_generation_task, TokenClassification().load_task):
            one_sentence(lambda load=load: split_task(load(options), options))


@settings(max_examples=EXAMPLES, deadline=None)
@given(TABLE, st.sampled_from(["", "text,label\n", "mr,ref\n", "label,text,label\n"]))
def test_any_table_is_read_or_refused_in_one_sentence(rows: str, header: str) -> None:
    for name in ("train.csv", "train.tsv", "train.conll", "train.txt"):
        read((header + rows).encode(), name)


@settings(max_examples=EXAMPLES, deadline=None)
@given(ROWS)
def test_any_json_is_read_or_refused_in_one_sentence(rows: list[Any]) -> None:
    read(json.dumps(rows).encode(), "train.json")
    read("\n".join(map(json.dumps, rows)).encode(), "train.jsonl")


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["csv", "json", "jsonl", "conll", "tsv"]))
def test_any_bytes_are_read_or_refused_in_one_sentence(content: bytes, kind: str) -> None:
    read(content, f"train.{kind}")


WORDS = st.sampled_from(
    [
        *("0", "1", "-1", "nan", "inf", "1e400", "0.5", "lora", "bilora", "bidora", "values", "cg"),
        "true",
        "",
        "é",
    ]
)


@settings(max_examples=2 * EXAMPLES, deadline=None)
@given(st.dictionaries(st.sampled_from(names_of(GROUPS)), WORDS, max_size=4))
def test_any_options_are_taken_or_refused_in_one_sentence(flags: dict[str, str]) -> None:
    words = [f"--{name}={value}" for name, value in flags.items()]
    one_sentence(lambda: completed(parse_options(words), COMMANDS["nlu"]))


ARGUMENT = st.sampled_from(
    [
        None,
        0,
        -1,
        1,
        2,
        1.5,
        float("nan"),
        "lower",
        [],
        [torch.ones(2, 2)],
        print,
        nn.Linear,
        nn.Linear(2, 2),
    ]
)


@settings(max_examples=2 * EXAMPLES, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "name",
                "loss",
                "module",
                "optimizer",
                "batches",
                "steps",
                "method",
                "scheduler",
                "clip",
                "accumulate",
            ]
        ),
        ARGUMENT,
        max_size=2,
    ),
    st.sampled_from([darts(), t1t2(), cg(2)]),
    st.permutations(["upper", "lower"]),
)
def test_any_graph_trains_or_is_refused_in_one_sentence(
    changes: dict[str, Any], method: Any, order: list[str]
) -> None:
    net, scale = nn.Linear(2, 1), nn.ParameterDict({"log": torch.zeros(1)})

    def fit(batch: torch.Tensor) -> torch.Tensor:
        return (scale["log"].exp() * net(batch) - 1).square().mean()

    lower: dict[str, Any] = {
        "name": "lower",
        "loss": fit,
        "module": [net, scale],
        "optimizer": torch.optim.SGD(net.parameters(), 0.1),
        "batches": [torch.ones(2, 2)],
        "method": method,
    }

    def upper() -> Problem:
        optimizer = torch.optim.SGD(scale.parameters(), 0.1)
        return Problem(
            "upper", lambda b: net(b).square().mean(), [net, scale], optimizer, [torch.ones(2, 2)]
        )

    try:
        made = {"upper": upper(), "lower": Problem(**{**lower, **changes})}
        Engine(ProblemGraph([made[name] for name in order])).run(1)
    except (TypeError, ValueError, FloatingPointError) as error:
        said = str(error)
        assert 15 < len(said) < 900, said


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            sys.stdout.write(f"{name}: at least {EXAMPLES} examples\n")
