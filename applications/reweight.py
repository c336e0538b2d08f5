"""Weigh sources of unknown quality by a small trusted target set, and fine-tune with the weights.

Sources are files, folders or data sets (--sources NAME=PATH,...) or a column of one file
(--train_file FILE --source_column COLUMN). Each gets one weight: how much of it a model should see
so that it does best on the target.
"""

import sys
from collections.abc import Mapping, Sequence

from applications.options.arguments import GenerationOptions
from applications.options.command_line import GROUPS, parse_options
from applications.options.weighting import WeightingOptions
from applications.runs.command import quiet
from applications.runs.ending import ended, resumed

ALL_GROUPS: Mapping[str, type] = {
    "weighting": WeightingOptions,
    **GROUPS,
    "generation": GenerationOptions,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0, 1 where training failed, 2 where something cannot be done as asked, 128
        and the signal's number after an interruption.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    prog = "python -m applications.reweight"

    def work() -> None:
        options = parse_options(words, groups=ALL_GROUPS, description=__doc__ or "", prog=prog)
        from applications import processes
        from applications.weighting.speaking import run

        processes.refuse_several("applications.reweight")
        quiet()
        run(options)

    return ended(work, resumed())


if __name__ == "__main__":
    sys.exit(main())
