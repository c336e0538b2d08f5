"""One run of the grid, in this process: importing the libraries takes as long as a short run."""

import tempfile
from functools import cache
from typing import Any

import torch

from applications.comparison.grid import Run
from applications.data.examples import TaskData
from applications.data.splits import split_task
from applications.families.family import Family
from applications.families.named import family_of
from applications.options.arguments import DataOptions
from applications.options.command_line import parse_options, words
from applications.options.commands import COMMANDS
from applications.options.completion import completed
from applications.runs.command import quiet
from applications.runs.experiment import held, trained_in
from applications.runs.phases import phases, prepare
from benchmarks.grid.regimes import in_regime
from benchmarks.grid.rows import row
from benchmarks.grid.slices import Slice


@cache
def loaded(family: Family, task_name: str, data_dir: str) -> TaskData:
    """The examples of a task; read once."""
    return family.load_task(DataOptions(task_name=task_name, data_dir=data_dir))


def summary_of(part: Slice, run: Run) -> dict[str, Any]:
    """Train a run of a slice; returns its row. What the run writes is removed."""
    quiet()
    torch.set_num_threads(1)
    family = family_of(run.command)
    with tempfile.TemporaryDirectory() as folder:
        given = {**run.options, "output_dir": folder + "/run"}
        parsed = parse_options(words(given), groups=COMMANDS[run.command].groups)
        options = completed(parsed, family)
        data = options.data
        task = loaded(family, str(data.task_name), str(data.data_dir))
        with held(options) as (claim, asked):
            work = prepare(options, family, task, split_task(task, data))
            if run.task in part.regimes:
                work = in_regime(work, part.regimes[run.task], family)
            summary = trained_in(claim, asked, work, phases(work), lambda text: None)
    return row(part.name, run, {**summary, "train_size": len(work.splits.train)})
