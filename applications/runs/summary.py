"""What a run reports: the numbers of summary.json."""

import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from adapters import levels
from applications import processes
from applications.data.splits import sizes
from applications.families.metrics import Evaluation
from applications.families.temperature import calibrated
from applications.options.arguments import AdapterOptions
from applications.options.versions import versions
from applications.runs.costs import Costs
from applications.runs.phases import Model, Workload
from applications.runs.training import Trained


@dataclass(frozen=True)
class Ended:
    """A phase that has been trained.

    Attributes:
        name: of the phase.
        learning_rates: of each of its problems.
        trained: what it took.
        evaluations: at its end, by split, where taken.
    """

    name: str
    learning_rates: Mapping[str, float]
    trained: Trained
    evaluations: Mapping[str, Evaluation]


def summarise(
    work: Workload,
    *,
    evaluations: Mapping[str, Evaluation],
    counts: tuple[int, int],
    ended: Sequence[Ended],
    selected: Mapping[str, Any] | None,
    device: torch.device,
) -> dict[str, Any]:
    """The summary of a run.

    ``train_metric``, ``train_loss`` are those of all training examples, D1 and D2 alike, in
    evaluation mode; ``validation_metric`` is None without a validation split (neither level sees
    it; D2 is training data); ``generalisation_gap`` is the training metric minus the test metric;
    ``ece`` and ``brier`` are those of the test split; ``temperature`` is fitted on the validation
    split, and ``calibrated_loss`` and its like are the test split's with it, None without classes
    or a validation split; ``wall_seconds`` is time spent in updates; costs are sums over the
    phases; metrics that are not defined are None. ``examples`` are those of the splits and of the
    levels (None for one level), ``evaluated`` those that metrics were taken on; ``per_class`` are
    scores on the test split.

    Args:
        work: the options, the task and its splits.
        evaluations: of the result, by split.
        counts: the numbers of trainable parameters and of those in the upper level.
        ended: the phases that have been trained.
        selected: the numbers at the selected step.
        device: where it ran.
    """
    options, task = work.options, work.task
    name = task.metric
    train, test = evaluations["train"], evaluations["test"]
    validation = evaluations.get("validation")
    total = sum((phase.trained.costs for phase in ended), start=Costs())
    hypergradients = [phase.trained.hypergradient for phase in ended if phase.trained.hypergradient]
    trainable, upper = counts
    return {
        "method": str(options.adapter.method),
        "task": task.name,
        "model": options.model.model_name_or_path,
        "seed": options.run.seed,
        "train_size": len(work.splits.train),
        "metric_name": name,
        "train_metric": train.metrics[name],
        "validation_metric": None if validation is None else validation.metrics[name],
        "test_metric": test.metrics[name],
        "train_loss": train.loss,
        "test_loss": test.loss,
        "ece": test.metrics.get("ece"),
        "generalisation_gap": difference(train.metrics[name], test.metrics[name]),
        "trainable_params": trainable,
        "upper_params": upper,
        "num_lower_steps": total.lower_steps,
        "num_upper_steps": total.upper_steps,
        "num_gradients": total.num_gradients,
        "num_hvps": total.num_hvps,
        "wall_seconds": total.seconds,
        "peak_memory_mb": peak_memory_mb(device),
        "hypergradient": hypergradients[0] if hypergradients else None,
        "device": device_name(device),
        "versions": versions(),
        "brier": test.metrics.get("brier"),
        **calibrated(validation, test),
        "control": options.levels.control,
        "retraining": options.levels.retraining,
        "selected": selected,
        "metrics": flat(evaluations),
        "reliability": None if test.reliability is None else list(test.reliability),
        "phases": [
            {
                "name": phase.name,
                "learning_rates": dict(phase.learning_rates),
                **asdict(phase.trained.costs),
                "metrics": flat(phase.evaluations),
            }
            for phase in ended
        ],
        "examples": num_examples(work),
        "evaluated": num_evaluated(work, evaluations),
        "per_class": None if test.details is None else test.details.per_class or None,
    }


def num_examples(work: Workload) -> dict[str, int | None]:
    """The examples of the splits, and of the levels where there are two."""
    two = work.options.adapter.bi_level
    return {
        **sizes(work.splits),
        "lower": len(work.lower) if two else None,
        "upper": len(work.upper) if two else None,
    }


def num_evaluated(work: Workload, evaluations: Mapping[str, Evaluation]) -> dict[str, int]:
    """The examples of each split that were evaluated."""
    limit, counts = work.options.data.max_eval_samples, sizes(work.splits)
    return {name: min(counts[name], limit or counts[name]) for name in evaluations}


def flat(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, float | None]]:
    """Loss and metrics of every split."""
    return {split: {"loss": found.loss, **found.metrics} for split, found in evaluations.items()}


def at_step(
    phase: str,
    lower_steps: int,
    evaluations: Mapping[str, Evaluation],
    held_out: Evaluation,
    work: Workload,
) -> dict[str, Any]:
    """The numbers at the selected step.

    Args:
        phase: the phase it belongs to.
        lower_steps: how far into the phase it is.
        evaluations: of the training and the test split.
        held_out: on the data that selected it, ``selected_on``: the validation split, or D2.
        work: the options, and the task's metric.
    """
    metric = work.task.metric
    train, test = evaluations["train"], evaluations["test"]
    return {
        "phase": phase,
        "lower_steps": lower_steps,
        "selected_on": work.options.run.select_on,
        "validation_loss": held_out.loss,
        "validation_metric": held_out.metrics[metric],
        "train_metric": train.metrics[metric],
        "train_loss": train.loss,
        "test_metric": test.metrics[metric],
        "test_loss": test.loss,
        "ece": test.metrics.get("ece"),
        "brier": test.metrics.get("brier"),
    }


def num_parameters(model: Model, adapter: AdapterOptions) -> tuple[int, int]:
    """The numbers of trainable parameters and of those in the upper level."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not adapter.bi_level:
        return trainable, 0
    return trainable, sum(p.numel() for p in levels(model).upper)


def difference(first: float | None, second: float | None) -> float | None:
    """First minus second, None where one of them is."""
    return None if first is None or second is None else first - second


def peak_memory_mb(device: torch.device) -> float:
    """On CUDA the most memory tensors held; on a CPU the most the process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def device_name(device: torch.device) -> str:
    """The device in words, and the number of processes where there are several."""
    among = f", {processes.count()} processes" if processes.count() > 1 else ""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device)) + among
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads){among}"
