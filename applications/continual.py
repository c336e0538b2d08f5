"""Learn classes that come one after the other: SD-LoRA, its form on two levels, and controls.

The classes of a data set are dealt to tasks. A task's loss sees its new classes only, the tests see
all that have come. Finished sequences are not run again: the same command goes on after an
interruption.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from applications import processes
from applications.options.arguments import Options
from applications.options.command_line import parse_options
from applications.options.sequences import SEQUENCE_GROUPS
from applications.runs.command import quiet
from applications.runs.ending import GoesOn, ended
from applications.sequences.grid import Grid
from applications.sequences.material import gathered, placed
from applications.sequences.report import PAGE, summary_table, write_page

PROG = "python -m applications.continual"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0, 1 where training failed, 2 where something cannot be done as asked, 128
        and the signal's number after an interruption.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    console = Console()
    quiet()

    def work() -> None:
        processes.refuse_several("applications.continual")
        options = placed(
            parse_options(words, groups=SEQUENCE_GROUPS, description=__doc__ or "", prog=PROG)
        )
        assert options.sequence is not None
        grid = Grid(Path(str(options.sequence.output_dir)), options)
        if options.dry_run:
            for order, variant, units, products in grid.costs(gathered(options)):
                more = f", up to {products:,} Hessian products" if products else ""
                print(f"order {order} {variant}: to run, {units:,} gradient units{more}")
            return
        learn(grid, options)
        results = grid.results()
        write_page(grid.folder, results)
        console.print(summary_table(results))
        print(f"page: {grid.folder / PAGE}")

    return ended(work, GoesOn.CONTINUED)


def learn(grid: Grid, options: Options) -> None:
    """Run the sequences that are left, and say what comes of each."""
    if not grid.left():
        return
    material = gathered(options)
    for note in material.task.notes:
        print(note)
    with grid.held():
        for line in grid.lines(material):
            print(
                f"order {line['order']} {line['variant']}: last {line['last']:.4f}, average "
                f"{line['average']:.4f}, forgetting {line['forgetting']:.4f}, "
                f"{line['seconds']:.0f} s",
                flush=True,
            )
            write_page(grid.folder, grid.results())


if __name__ == "__main__":
    sys.exit(main())
