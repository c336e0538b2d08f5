"""What the runs of a grid will take, each variant of a task and train size estimated once."""

from collections import defaultdict
from collections.abc import Sequence

from applications.comparison.grid import Run
from applications.families.named import family_of
from applications.options.command_line import parse_options, words
from applications.options.commands import COMMANDS
from applications.pages.table import Table, shown, table
from applications.runs.estimate import MiB, estimates
from applications.runs.screen import in_words

HEAD = ("runs", "number", "gradient units", "Hessian products", "MiB", "time of one")


def cost_table(runs: Sequence[Run]) -> Table:
    """A row a task, train size and variant: how many runs, and what one of them takes.

    Data and models are loaded, nothing is trained. Products are the most that solvers take; the
    time is that of one process with the whole machine.

    Raises:
        UsageError: what a run would be refused for.
    """
    alike = defaultdict[str, list[Run]](list)
    for run in runs:
        alike[run.name.rpartition("/")[0]].append(run)
    rows = []
    for name, same in alike.items():
        first = same[0]
        options = parse_options(words(first.options), groups=COMMANDS[first.command].groups)
        found = estimates(options, family_of(first.command))
        units = sum(one.rounds * one.gradients for one in found)
        products = sum(one.rounds * one.products for one in found)
        seconds = sum(one.seconds * one.rounds * (one.gradients + one.products) for one in found)
        most = max(one.total for one in found) / MiB
        row = [name, shown(len(same)), shown(units), shown(products)]
        rows.append([*row, f"{most:,.0f}", in_words(seconds)])
    return table("Costs", HEAD, rows)
