"""Predict with what a fine-tuning run has left, or merge it into a plain model of transformers.

A run of applications.nlu predicts a class (prediction, and probability_NAME of each) or a number,
one of token_classification the tags of the words, one of nlg a text.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from applications.errors import UsageError
from applications.options.plain import Parser
from applications.options.versions import told
from applications.runs.ending import GoesOn, ended
from applications.runs.naming import LOCK, MARK, NEXT

PROG = "python -m applications.predict"


def parser() -> Parser:
    """The parser of this command's options."""
    made = Parser(
        prog=PROG,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("--version", action="version", version=told(PROG))
    add("folder", type=Path, metavar="RUN_FOLDER", help="the --output_dir of a finished run")
    add(
        "--input_file",
        type=Path,
        metavar="FILE",
        help="csv, tsv, json or jsonl with the columns that the run was trained on, or txt with a "
        "text a line; words to be tagged as lists, as conll, or as texts divided at white space",
    )
    add(
        "--output_file",
        type=Path,
        metavar="FILE",
        help="csv, json or jsonl: the rows of the input and what is predicted for them; default: "
        "csv on the screen",
    )
    add("--text_columns", nargs="+", metavar="NAME", help="the columns of the texts in the input")
    add(
        "--merge",
        type=Path,
        metavar="DIR",
        help="a new folder for the base model with the adapter merged into its weights",
    )
    add("--device", default="auto", help="'auto' takes a CUDA device when there is one; cpu, ...")
    add("--model_name_or_path", metavar="NAME", help="the base model, where it has moved")
    add("--per_device_eval_batch_size", type=int, metavar="N", help="rows of a batch")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, 0, or 2 where it cannot be done as asked."""

    def work() -> None:
        asked = parser().parse_args(arguments)
        check(asked)
        from applications.runs.command import quiet
        from applications.runs.predicting import merge, predict

        quiet()
        words = overrides(asked)
        if asked.merge is not None:
            print(merge(asked.folder, asked.merge, words), file=sys.stderr)
        if asked.input_file is not None:
            text = predict(asked.folder, asked.input_file, asked.output_file, words)
            if asked.output_file is None:
                print(text, end="")

    return ended(work, GoesOn.REPEATED)


def check(asked: argparse.Namespace) -> None:
    """Refuse what cannot be before anything is loaded."""
    if asked.input_file is None and asked.merge is None:
        raise UsageError("nothing to do: give --input_file FILE, or --merge DIR")
    if asked.output_file is not None:
        if asked.input_file is None:
            raise UsageError("argument --output_file: needs --input_file")
        if asked.output_file.suffix not in (".csv", ".json", ".jsonl"):
            raise UsageError(
                f"argument --output_file: must end in .csv, .json or .jsonl, got "
                f"{str(asked.output_file)!r}"
            )
        if asked.output_file.resolve() == asked.input_file.resolve():
            raise UsageError("argument --output_file: is the input file; name another one")
    if asked.output_file is not None:
        check_output(asked.output_file, asked.folder)
    if asked.merge is not None and asked.merge.exists():
        raise UsageError(f"argument --merge: {str(asked.merge)!r} exists; name a new folder")


def check_output(file: Path, folder: Path) -> None:
    """Refuse a place for the predictions where something else would be lost."""
    if file.exists() and not file.is_file():
        raise UsageError(f"argument --output_file: {str(file)!r} is no file; name one")
    place, run = file.resolve(), folder.resolve()
    if run in place.parents:
        from applications.runs.outputs import FILES, FOLDERS  # brings torch

        first = place.relative_to(run).parts[0]
        if first in (*FILES, *FOLDERS, LOCK, MARK, NEXT):
            raise UsageError(
                f"argument --output_file: {str(file)!r} belongs to the run; name another file"
            )


def overrides(asked: argparse.Namespace) -> list[str]:
    """The options of the run that are others now, as words of a command line."""
    words = ["--device", asked.device, "--report_to", "none"]
    for name in ("model_name_or_path", "per_device_eval_batch_size"):
        if getattr(asked, name) is not None:
            words += [f"--{name}", str(getattr(asked, name))]
    if asked.text_columns is not None:
        words += ["--text_columns", *asked.text_columns]
    return words


if __name__ == "__main__":
    sys.exit(main())
