"""Write the report of a grid that applications.compare has run: summary.json and an HTML page."""

import sys
from collections.abc import Sequence
from pathlib import Path

from applications.errors import UsageError
from applications.options.plain import Parser
from applications.options.versions import told
from applications.runs.ending import GoesOn, ended

PROG = "python -m applications.report"


def parser() -> Parser:
    """The parser of this command's options."""
    made = Parser(prog=PROG, description=__doc__, allow_abbrev=False)
    made.add_argument("--version", action="version", version=told(PROG))
    made.add_argument("folder", type=Path, metavar="DIR", help="folder of the grid")
    made.add_argument("--out", type=Path, metavar="FILE", help="the page; default: DIR/report.html")
    made.add_argument(
        "--reference", metavar="NAME", help="compare every variant with this one only"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, 0, or 2 where there is nothing to report."""

    def work() -> None:
        asked = parser().parse_args(arguments)
        if not asked.folder.is_dir():
            raise UsageError(f"there is no folder {str(asked.folder)!r}")
        from applications.comparison.page import write_report  # brings matplotlib, scipy

        print(write_report(asked.folder, page=asked.out, reference=asked.reference))

    return ended(work, GoesOn.REPEATED)


if __name__ == "__main__":
    sys.exit(main())
