"""One training of the commands, in this process, measured on one split."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from applications.data.examples import TaskData
from applications.data.splits import at_most, split_task
from applications.families.classification import TextClassification
from applications.models import smollm2
from applications.models.loading import precision
from applications.options.arguments import DataOptions
from applications.options.command_line import parse_options
from applications.options.completion import completed
from applications.runs.phases import phases, prepare
from benchmarks.defaults.grid import HELD_OUT, PACE, STEPS, TRAIN_SIZE, Cell
from blo import Engine, ProblemGraph


@cache
def task_data(options: DataOptions) -> TaskData:
    """The examples, read once."""
    return TextClassification().load_task(options)


def trained(cell: Cell, data: list[str], model: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """The row of a cell.

    Args:
        cell: what is trained.
        data: the flags that name the data set.
        model: what ``--model`` is given, or smollm2.
        more: further flags.
    """
    words = [
        *data,
        *cell.flags(),
        *("--model", place_of(model), "--device", "cpu", "--precision", "bf16", "--disable_tqdm"),
        *("--max_steps", str(STEPS), "--max_train_samples", str(TRAIN_SIZE)),
        *(("--lower_steps", str(PACE)) if cell.split == "validation" else ()),
        *("--max_seq_length", "32", "--seed", str(cell.seed), "--split_seed", str(cell.seed)),
        *more,
    ]
    started = time.process_time()
    family = TextClassification()
    options = completed(parse_options(words), family)
    task = task_data(replace(options.data, split_seed=0))
    splits = split_task(task, options.data)
    work = prepare(options, family, task, splits)
    found: dict[str, Any] = {}
    for phase in phases(work):
        start = upper_values(phase.graph)
        Engine(phase.graph, precision=precision(options.model)).run(phase.updates.rounds)
        if phase.name in ("search", "values"):
            found = upper_motion(phase.graph, start)
    parts = {"validation": splits.validation, "test": splits.test}
    held_out = parts[cell.split]
    assert held_out is not None
    examples = at_most(held_out, HELD_OUT if cell.split == "validation" else None, task, 0)
    score = family.evaluate(phase.model, examples, work, split=cell.split, stage="final")
    return {
        "used": [options.run.learning_rate, options.levels.upper_learning_rate],
        "metric": score.metrics[task.metric],
        "loss": score.loss,
        "cpu_seconds": round(time.process_time() - started, 1),
        **found,
    }


def place_of(model: str) -> str:
    """What the commands are given for a model: a folder for the one that only texts to be written
    know by its name.
    """
    return str(smollm2.smollm2_folder()) if model == smollm2.NAME else model


def upper_optimizer(graph: ProblemGraph) -> Optimizer | None:
    """The optimizer of the upper problem, where there is one."""
    return next((p.optimizer for p in graph.problems if p.name == "upper"), None)


def tensors(optimizer: Optimizer) -> Iterator[Tensor]:
    """What an optimizer trains."""
    return (tensor for group in optimizer.param_groups for tensor in group["params"])


def upper_values(graph: ProblemGraph) -> list[Tensor]:
    """Copies of the upper variables."""
    optimizer = upper_optimizer(graph)
    return [] if optimizer is None else [t.detach().clone() for t in tensors(optimizer)]


def upper_motion(graph: ProblemGraph, start: list[Tensor]) -> Mapping[str, Any]:
    """How large the hypergradient was, and how far the upper variables went.

    ``hypergradient``: the 5th, 50th and 95th percentile over the variables of sqrt(v / (1 -
    beta2^t)), Adam's own mean square of the hypergradient at the end; ``moved``: the root mean
    square of the distance from the start, over the learning rate times the steps.
    """
    optimizer = upper_optimizer(graph)
    if optimizer is None:
        return {}
    sizes = []
    for group in optimizer.param_groups:
        for tensor in group["params"]:
            state = optimizer.state[tensor]
            unbiased = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            sizes.append(unbiased.sqrt().flatten())
    gone = torch.cat([(t - s).flatten() for t, s in zip(tensors(optimizer), start, strict=True)])
    levels = torch.tensor([0.05, 0.5, 0.95])
    return {
        "hypergradient": torch.cat(sizes).quantile(levels).tolist(),
        "moved": gone.square().mean().sqrt().item(),
    }


def data_flags(task: str, folder: Path) -> list[str]:
    """The flags that name a data set, with a part of its training examples held out."""
    if task == "mpqa":
        return ["--train_file", str(folder / "mpqa.csv"), "--test_fraction", "0.5"]
    if task == "bbc_headlines":
        return ["--task_name", task, "--test_fraction", "0.5"]
    return ["--task_name", task, "--data_dir", str(folder), "--validation_fraction", "0.2"]
