"""The folder of a run: every file appears whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

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
)
CHECKPOINT = "round-{:08d}.pt"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file or folder beside ``path`` that then takes its name and place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as place:
        draft = Path(place) / path.name
        write(draft)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(draft, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    ``config.json`` (its options, a configuration file), ``metrics.jsonl`` (a line a log step),
    ``checkpoints/``, and at the end ``adapter/``, ``summary.json`` and ``report.html``.
    """

    path: Path

    def clear(self) -> None:
        """Remove the results of an earlier run; other files stay."""
        for name in ("checkpoints", "adapter", "lora"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("config.json", "metrics.jsonl", "summary.json", "report.html"):
            (self.path / name).unlink(missing_ok=True)

    def write_config(self, options: Mapping[str, Any]) -> None:
        """Write config.json."""
        write_json(self.path / "config.json", options)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line that was cut off is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def forget_after(self, last_round: int) -> None:
        """Drop the lines of metrics.jsonl from rounds that a resumed run will take again."""
        kept = [line for line in self.metrics() if line["round"] <= last_round]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        path = self.path / "metrics.jsonl"
        write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))

    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("round-*.pt"))

    def save_checkpoint(self, round_: int, state: Mapping[str, Any], *, keep: int) -> None:
        """Write a checkpoint and remove all but the ``keep`` newest."""
        path = self.path / "checkpoints" / CHECKPOINT.format(round_)
        write_whole(path, lambda draft: torch.save(dict(state), draft))
        for old in self.checkpoints()[:-keep]:
            old.unlink()

    def save_adapter(self, model: PeftModel) -> None:
        """Write the adapter in PEFT's form."""
        write_whole(self.path / "adapter", lambda draft: model.save_pretrained(str(draft)))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json.

        Raises:
            ValueError: the keys are not SUMMARY_KEYS, which other tools read.
        """
        if tuple(summary) != SUMMARY_KEYS:
            raise ValueError(f"summary must have the keys {SUMMARY_KEYS}, got {tuple(summary)}")
        write_json(self.path / "summary.json", summary)
