"""What applications.reweight does once its options are read, and what it says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from applications.data.splits import split_task
from applications.families.family import Family
from applications.families.named import family_of
from applications.options.arguments import Options
from applications.options.weighting import HELPFUL, WeightingOptions
from applications.runs.closing import closing
from applications.runs.estimate import Estimate, estimated, plan_table
from applications.weighting.finetuning import weighted_phases, workload
from applications.weighting.gathering import Gathered, gather
from applications.weighting.mixture import Weighed
from applications.weighting.online import online_phases
from applications.weighting.report import COMPARED, HEAD, compared_rows, weight_rows
from applications.weighting.running import prepared, reweight


def run(options: Options) -> None:
    """Weigh and fine-tune, and say what came of it; with ``--dry_run`` what would be weighed."""
    family = family_of(options.weighting.family)
    if options.dry_run:
        plan(options, family)
        return
    summary, sources, controls = reweight(options, family)
    console = Console()
    console.print(weights_table(sources))
    options, _ = prepared(options, family)
    if controls:
        console.print(controls_table(controls))
    print("\n".join(closing(summary, options, family)))


def weights_table(sources: Sequence[Weighed]) -> Table:
    """The weights for the screen."""
    table = Table(*HEAD, title="Weights")
    for row in weight_rows(sources):
        table.add_row(*row)
    return table


def controls_table(controls: Sequence[Mapping[str, Any]]) -> Table:
    """The controls beside the learned weights, for the screen."""
    table = Table(*COMPARED, title="Controls, on frozen features")
    for row in compared_rows(controls):
        table.add_row(*(entry.text for entry in row))
    return table


def plan(options: Options, family: Family) -> None:
    """Say what would be weighed, and what the fine-tuning would take; nothing is trained, and
    nothing stays written.
    """
    options, weighting = prepared(options, family)
    with TemporaryDirectory() as folder:
        gathered = gather(options.data, weighting, family, Path(folder))
        costs = fine_tuning_costs(options, weighting, family, gathered)
    table = Table("source", "examples", "group", title="Sources")
    for group in gathered.groups:
        table.add_row(", ".join(group.members), str(len(group.examples)), group.name)
    console = Console()
    console.print(table)
    target = len(gathered.task.splits["train"])
    search = "none"
    if weighting.route == "features":
        searched = f"at most {weighting.most_fits} heads fitted"
        search = "one hypergradient" if weighting.form == HELPFUL else searched
    console.print(f"target: {target} examples; search on features: {search}", highlight=False)
    if costs:
        console.print(plan_table(costs))


def fine_tuning_costs(
    options: Options, weighting: WeightingOptions, family: Family, gathered: Gathered
) -> list[Estimate]:
    """An estimate of every phase of the fine-tuning, the sources weighing as much as they are
    large; nothing where there is none.
    """
    splits = split_task(gathered.task, options.data)
    if weighting.route != "features":
        work, _, sequence = online_phases(options, family, gathered, splits, weighting)
    elif weighting.fine_tune:
        equal = dict.fromkeys(gathered.names, 1.0)
        work = workload(options, family, gathered, splits, equal)
        sequence = weighted_phases(work, splits.train, weighting)
    else:
        return []
    return [estimated(phase, work) for phase in sequence]
