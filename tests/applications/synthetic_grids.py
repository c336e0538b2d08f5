"""Folders of grids as runs leave them, made on the spot: what compare and report read."""

import json
from pathlib import Path
from typing import Any

VERSIONS = {"torch": "2.0", "peft": "1.0", "transformers": "5.0", "blo-torch": "0.1"}


def summary(**changes: Any) -> dict[str, Any]:
    """A summary.json; ``generalisation_gap`` follows from the metrics unless it is given."""
    values: dict[str, Any] = {
        "method": "lora",
        "task": "sst2",
        "model": "minilm",
        "seed": 0,
        "train_size": 300,
        "metric_name": "accuracy",
        "train_metric": 1.0,
        "validation_metric": 0.8,
        "test_metric": 0.75,
        "train_loss": 0.01,
        "test_loss": 0.9,
        "ece": 0.1,
        "trainable_params": 1000,
        "upper_params": 0,
        "num_lower_steps": 30,
        "num_upper_steps": 0,
        "num_gradients": 30,
        "num_hvps": 0,
        "wall_seconds": 10.0,
        "peak_memory_mb": 900.0,
        "hypergradient": None,
        "device": "cpu (x86_64, 1 threads)",
        "versions": VERSIONS,
        "brier": 0.3,
        "control": "none",
        "retraining": "none",
        "selected": None,
        "metrics": {},
        "reliability": None,
        "phases": [{"name": "training", "lower_steps": 30}],
    } | changes
    values.setdefault("generalisation_gap", values["train_metric"] - values["test_metric"])
    return values


def put_run(
    out: Path,
    variant: str = "lora",
    seed: int = 0,
    *,
    task: str = "sst2",
    size: str = "300",
    lines: tuple[dict[str, Any], ...] = (),
    options: dict[str, Any] | None = None,
    finished: bool = True,
    **changes: Any,
) -> Path:
    """Write the folder of one run."""
    folder = out / "runs" / task / size / variant / f"seed{seed}"
    folder.mkdir(parents=True)
    record = {
        "variant": variant,
        "task_label": task,
        "train_size_label": size,
        "seed": seed,
        "command": "nlu",
        "options": {"method": variant} | (options or {}),
        "resolved": {"method": variant, "seed": seed} | (options or {}),
    }
    (folder / "run.json").write_text(json.dumps(record))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    if finished:
        values = summary(method=variant, seed=seed, task=task, **changes)
        (folder / "summary.json").write_text(json.dumps(values))
    return folder


def evaluation(
    lower_steps: int, num_gradients: int, *, loss: float, accuracy: float, phase_index: int = 0
) -> dict[str, Any]:
    """An evaluation line of metrics.jsonl."""
    return {
        "phase": "training",
        "phase_index": phase_index,
        "round": lower_steps,
        "lower_steps": lower_steps,
        "num_gradients": num_gradients,
        "num_hvps": 0,
        "seconds": 1.0,
        "validation": {"loss": loss, "accuracy": accuracy},
    }
