"""What a run reports: the numbers of summary.json."""

import platform
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from peft import PeftModel

from adapters import levels
from applications.common.arguments import BI_LEVEL_METHODS, Options
from applications.common.examples import TaskData
from applications.common.graphs import Plan
from applications.common.metrics import Evaluation
from applications.common.training import Training
from blo import Engine

PACKAGES = ("torch", "peft", "transformers", "blo-torch")


def summarise(
    options: Options,
    *,
    task: TaskData,
    train_size: int,
    evaluations: Mapping[str, Evaluation],
    model: PeftModel,
    engine: Engine,
    updates: Plan,
    training: Training,
    device: torch.device,
) -> dict[str, Any]:
    """The summary of a run.

    ``train_metric``, ``train_loss`` are those of all training examples, D1 and D2 alike, in
    evaluation mode; ``validation_metric`` is None without a validation split (neither level sees
    it; D2 is training data); ``generalisation_gap`` is the training metric minus the test metric;
    ``wall_seconds`` is time spent in updates; metrics that are not defined are None.
    """
    name, method = task.metric, str(options.adapter.method)
    train, test = evaluations["train"], evaluations["test"]
    validation = evaluations.get("validation")
    trainable, upper = counts(model, method)
    return {
        "method": method,
        "task": task.name,
        "model": options.model.model_name_or_path,
        "seed": options.run.seed,
        "train_size": train_size,
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
        "num_lower_steps": updates.num_lower_steps,
        "num_upper_steps": updates.num_upper_steps,
        "num_gradients": engine.num_gradients,
        "num_hvps": engine.num_products,
        "wall_seconds": training.seconds,
        "peak_memory_mb": peak_memory_mb(device),
        "hypergradient": training.hypergradient,
        "device": device_name(device),
        "versions": versions(),
    }


def counts(model: PeftModel, method: str) -> tuple[int, int]:
    """The numbers of trainable parameters and of those in the upper level."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if method not in BI_LEVEL_METHODS:
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
    """The device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """The versions of the packages that made the numbers."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
