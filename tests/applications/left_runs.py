"""Runs of seconds, one of every kind that leaves something of its own, made once for all tests."""

import contextlib
import io
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from applications import nlg, nlu, token_classification
from tests.applications.conftest import FILLERS, TOPICS
from tests.applications.tiny_writers import write_data, write_model

FLAGS = (
    *("--device", "cpu", "--disable_tqdm", "--lora_r", "2", "--max_steps", "4"),
    *("--learning_rate", "5e-2", "--per_device_train_batch_size", "8", "--logging_steps", "2"),
)
TWO_LEVELS = ("--upper_learning_rate", "0.5")
CLASSES = {
    "bilora": ("bilora", *TWO_LEVELS, "--report_to", "tensorboard"),
    "bidora": ("bidora", *TWO_LEVELS),
    "autolora": ("autolora", *TWO_LEVELS, "--retraining", "none"),
    "decay": (
        *("lora_weight_decay", *TWO_LEVELS),
        *("--eval_steps", "2", "--metric_for_best_model", "loss"),
    ),
    "dropout": ("lora_dropout", *TWO_LEVELS, "--learn_mask_rate", "--num_masks", "2"),
    "columns": ("bidora", *TWO_LEVELS, "--norm_axis", "in", "--retraining", "none"),
    "chance": ("full", "--learning_rate", "1e-9"),
}
FOLDED = ("bilora", "bidora", "autolora", "decay", "dropout", "tags", "writer")
"""Those of which PEFT alone loads an adapter that is this package's."""


@dataclass(frozen=True)
class Left:
    """What a run left: its folder, and what it said on the screen."""

    folder: Path
    said: str

    @property
    def lines(self) -> str:
        """The lines of code it said it is loaded by."""
        after = self.said.split("load it:\n")[1].split("predict with it:")[0]
        return "\n".join(line.strip() for line in after.splitlines())


def left_runs(place: Path, model: str, topics: Path) -> dict[str, Left]:
    """All runs, by name."""
    write_tags(place / "data" / "tags")
    write_pairs(place / "data" / "pairs")
    (place / "gpt2").mkdir()
    write_model(place / "gpt2", "gpt2")
    (place / "data" / "writer").mkdir()
    write_data(place / "data" / "writer")
    runs = {}
    for name, (method, *flags) in CLASSES.items():
        runs[name] = made(nlu, place / name, model, topics, method, *flags)
    pairs = place / "data" / "pairs"
    runs["pairs"] = made(nlu, place / "pairs", model, pairs, "lora", "--text_columns", "one", "two")
    tags = place / "data" / "tags"
    runs["tags"] = made(
        token_classification, place / "tags", model, tags, "bilora", *TWO_LEVELS, "--max_steps", "8"
    )
    words = ("--num_beams", "2", "--max_new_tokens", "6", "--max_seq_length", "48", *TWO_LEVELS)
    data = place / "data" / "writer"
    runs["writer"] = made(nlg, place / "writer", str(place / "gpt2"), data, "bilora", *words)
    return runs


def made(command: object, folder: Path, model: str, data: Path, method: str, *flags: str) -> Left:
    """One run, by its command."""
    torch.manual_seed(0)
    said = io.StringIO()
    words = ["--model", model, "--data_dir", str(data), "--method", method]
    with contextlib.redirect_stdout(said):
        status = command.main([*words, "--output_dir", str(folder), *FLAGS, *flags])  # type: ignore[attr-defined]
    assert status == 0
    return Left(folder, said.getvalue())


def write_tags(folder: Path) -> None:
    """Sentences with animals to be found."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for split, count in {"train": 16, "test": 8}.items():
        rows = []
        for _ in range(count):
            sentence = [(word, "O") for word in draw.sample(FILLERS, draw.randint(1, 5))]
            sentence += [("-".join(draw.sample(TOPICS["animals"], 2)), "B-animal")]
            rows.append("".join(f"{word}\t{tag}\n" for word, tag in sentence))
        (folder / f"{split}.conll").write_text("\n".join(rows))


def write_pairs(folder: Path) -> None:
    """Pairs of texts with a number each."""
    folder.mkdir()
    draw = random.Random(1)
    for split, count in {"train": 12, "test": 9}.items():
        rows = ["one,two,label"]
        for _ in range(count):
            first, second = (draw.sample(FILLERS, draw.randint(1, 5)) for _ in range(2))
            rows.append(f"{' '.join(first)},{' '.join(second)},{draw.random():.3f}")
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
