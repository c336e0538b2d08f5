"""What two levels are for, on real headlines with a real MiniLM, without a network, in minutes.

First BiLoRA beside LoRA on examples of one kind, at equal scale and with retraining; then six
sources of headlines, two of them mislabelled, weighed by forty that are trusted. Finished runs are
not run again: the same command goes on after an interruption.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from applications.options.plain import Parser
from applications.options.versions import told
from applications.runs.command import quiet
from applications.runs.ending import GoesOn, ended

PROG = "python -m applications.demo"
PLACE = "runs/demo"


def parser() -> Parser:
    """The parser of this command's options."""
    made = Parser(prog=PROG, description=__doc__, allow_abbrev=False)
    made.add_argument("--version", action="version", version=told(PROG))
    made.add_argument("--output_dir", default=PLACE, metavar="DIR", help=f"default: {PLACE}")
    made.add_argument("--model", default="minilm", help="folder or Hub name; default: minilm")
    made.add_argument("--max_steps", type=int, metavar="N", help="updates of every run")
    made.add_argument("--max_eval_samples", type=int, metavar="N", help="of each split")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, as `applications.runs.ending.ended` says."""

    def work() -> None:
        asked = parser().parse_args(arguments)
        from applications import processes
        from applications.runs.interruption import Interrupted

        processes.refuse_several("applications.demo")
        quiet()
        try:
            show(asked)
        except Interrupted as error:
            raise Interrupted(f"interrupted: {GoesOn.CONTINUED.value}", error.number) from None

    return ended(work, GoesOn.CONTINUED)


def show(asked: Namespace) -> None:
    """Run both halves."""
    from rich.console import Console

    from applications.options.command_line import parse_options, words
    from applications.runs.demo import PRESETS
    from applications.runs.demo import run_demo as compare_methods
    from applications.weighting.demo import PRESETS as WEIGHING
    from applications.weighting.demo import run_demo as weigh_sources

    console, place = Console(), Path(asked.output_dir)
    of_every_run = {"max_eval_samples": asked.max_eval_samples, "max_steps": asked.max_steps}
    common = words({"model": asked.model, "disable_tqdm": True, **of_every_run})
    console.rule("1. Examples of one kind: LoRA or BiLoRA?")
    presets = {**PRESETS, "output_dir": asked.output_dir}
    compare_methods(parse_options(common, presets=presets), console)
    console.rule("2. Sources of unknown quality, and a few examples that are trusted")
    weigh_sources(place, [*words(WEIGHING), *common], console)
    console.print(f"All of it: {place}. More: docs/results.md, docs/reweight.md.", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
