"""Weigh sources of unknown quality by a small trusted target set, and fine-tune with the weights.

Sources are files, folders or data sets (--sources NAME=PATH,...) or a column of one file
(--train_file FILE --source_column COLUMN). Each gets one weight: how much of it a model should see
so that it does best on the target.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from applications.errors import UsageError
from applications.families.classification import TextClassification
from applications.families.family import Family
from applications.families.generation import TextGeneration
from applications.families.tagging import TokenClassification
from applications.options.arguments import GenerationOptions, Options
from applications.options.command_line import GROUPS, parse_options
from applications.options.weighting import WeightingOptions
from applications.runs.closing import closing
from applications.runs.command import quiet
from applications.runs.usage import left_model
from applications.weighting.gathering import gather
from applications.weighting.mixture import Weighed
from applications.weighting.report import HEAD, weight_rows
from applications.weighting.running import prepared, reweight

ALL_GROUPS: Mapping[str, type] = {
    "weighting": WeightingOptions,
    **GROUPS,
    "generation": GenerationOptions,
}
FAMILIES: Mapping[str, Family] = {
    family.command: family
    for family in (TextClassification(), TokenClassification(), TextGeneration())
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0, 1 where training failed, 2 where something cannot be done as asked, 130
        after an interruption.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    quiet()
    prog = "python -m applications.reweight"
    try:
        options = parse_options(words, groups=ALL_GROUPS, description=__doc__ or "", prog=prog)
        assert options.weighting is not None
        family = FAMILIES[options.weighting.family]
        if options.dry_run:
            plan(options, family)
        else:
            summary, sources = reweight(options, family)
            Console().print(weights_table(sources))
            options, _ = prepared(options, family)
            lines = closing(summary, options, family)
            trained = left_model(Path(str(options.run.output_dir))).is_dir()
            print("\n".join(lines if trained else lines[:1]))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def weights_table(sources: Sequence[Weighed]) -> Table:
    """The weights for the screen."""
    table = Table(*HEAD, title="Weights")
    for row in weight_rows(sources):
        table.add_row(*row)
    return table


def plan(options: Options, family: Family) -> None:
    """Say what would be weighed; nothing is trained, and nothing stays written."""
    options, weighting = prepared(options, family)
    with TemporaryDirectory() as folder:
        gathered = gather(options.data, weighting, family, Path(folder))
    table = Table("source", "examples", "group", title="Sources")
    for group in gathered.groups:
        table.add_row(", ".join(group.members), str(len(group.examples)), group.name)
    console = Console()
    console.print(table)
    target = len(gathered.task.splits["train"])
    fits = (weighting.weight_folds * weighting.weight_seeds + 1) * (weighting.max_weight_steps + 1)
    search = f"at most {fits} heads fitted" if weighting.route == "features" else "none"
    console.print(f"target: {target} examples; search on features: {search}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
