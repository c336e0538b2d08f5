"""The folder of a run: every file appears whole or not at all."""

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from applications import processes
from applications.pages.writing import write_json, write_text, write_whole
from applications.runs.mark import read_mark
from blo.state_files import is_sealed, sealed

SUMMARY_KEYS = (
    "method",
    "task",
    "model",
    "seed",
    "train_size",
    "metric_name",
    "train_metric",
    "validation_metric",
    "test_metric",
    "train_loss",
    "test_loss",
    "ece",
    "generalisation_gap",
    "trainable_params",
    "upper_params",
    "num_lower_steps",
    "num_upper_steps",
    "num_gradients",
    "num_hvps",
    "wall_seconds",
    "peak_memory_mb",
    "hypergradient",
    "device",
    "versions",
    "brier",
    "temperature",
    "calibrated_loss",
    "calibrated_ece",
    "calibrated_brier",
    "control",
    "retraining",
    "selected",
    "metrics",
    "reliability",
    "phases",
    "examples",
    "evaluated",
    "per_class",
)
CHECKPOINTS = "checkpoints"
CHECKPOINT = "phase-{}-round-{:08d}.pt"
FOLDERS = (
    *(CHECKPOINTS, "adapter", "adapter_training", "model", "lora"),
    *("selected", "selected_training", "logs"),
)
FILES = ("config.json", "task.json", "metrics.jsonl", "summary.json", "report.html")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; of several processes the first alone changes them.

    ``config.json`` (its options, a configuration file), ``metrics.jsonl`` (a line a log step),
    ``checkpoints/``, and at the end ``adapter/`` and ``adapter_training/`` (``model/`` where all
    weights are trained), ``selected/`` (the same at the selected step), ``task.json`` (what a
    prediction has to know of the data), ``summary.json`` and ``report.html``.
    """

    path: Path

    def clear(self) -> None:
        """Remove the results of an earlier run, where there is its mark; other files stay."""
        if not processes.is_first() or read_mark(self.path) is None:
            return
        for name in result_names(self.path):
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def write_config(self, options: Mapping[str, Any]) -> None:
        """Write config.json."""
        write_json(self.path / "config.json", options)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if not processes.is_first():
            return
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that was cut off is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def forget_after(self, phase: int, last_round: int) -> None:
        """Drop the lines of metrics.jsonl that the resumed phase will write again."""
        if not processes.is_first():
            return
        kept = [
            line
            for line in self.metrics()
            if line["phase_index"] != phase or line["round"] <= last_round
        ]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text(self.path / "metrics.jsonl", text)

    def checkpoints(self, phase: int | None = None) -> list[Path]:
        """The checkpoints of one phase, or of all, oldest first."""
        which = "*" if phase is None else str(phase)
        return sorted((self.path / CHECKPOINTS).glob(f"phase-{which}-round-*.pt"))

    def save_checkpoint(
        self, phase: int, round_: int, state: Mapping[str, Any], *, keep: int
    ) -> None:
        """Write a checkpoint and remove all but the ``keep`` newest of its phase.

        The last checkpoint of every phase stays: the next phase is built on it.
        """
        path = self.path / CHECKPOINTS / CHECKPOINT.format(phase, round_)
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        content = sealed(buffer.getvalue())
        write_whole(path, lambda draft: draft.write_bytes(content))
        if not processes.is_first():
            return
        for old in self.checkpoints(phase)[:-keep]:
            old.unlink()

    def read_checkpoint(self, path: Path) -> dict[str, Any] | None:
        """The state in a checkpoint; None where one of its bytes is not what was written."""
        content = path.read_bytes()
        if not is_sealed(content):
            return None
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
        return state

    def save_selected(self, values: Mapping[str, torch.Tensor]) -> None:
        """Write the trained values of the best step so far."""
        path = self.path / "checkpoints" / "selected.pt"
        write_whole(path, lambda draft: torch.save(dict(values), draft))

    def read_selected(self) -> dict[str, torch.Tensor]:
        """The trained values of the best step."""
        path = self.path / "checkpoints" / "selected.pt"
        values: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return values

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json.

        Raises:
            ValueError: the keys are not SUMMARY_KEYS, which other tools read.
        """
        if tuple(summary) != SUMMARY_KEYS:
            raise ValueError(f"summary must have the keys {SUMMARY_KEYS}, got {tuple(summary)}")
        write_json(self.path / "summary.json", summary)


def result_names(place: Path) -> list[str]:
    """The names in a folder that a run leaves there."""
    names = [name for name in (*FOLDERS, *FILES) if (place / name).exists()]
    return [*names, *sorted(file.name for file in place.glob("generated*.jsonl"))]
