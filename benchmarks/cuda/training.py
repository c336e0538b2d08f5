"""Part 3: BiLoRA and BiDoRA trained on MiniLM, on the device and on the CPU from the same seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from adapters import BiDoraConfig, BiLoraConfig, levels, two_level
from benchmarks.cuda.pack import Packed, packed, stand_in
from benchmarks.cuda.rows import Disagreement, Row, Setting, Values
from blo import Engine

CPU = torch.device("cpu")
ADAPTERS = {
    "BiLoRA": lambda **o: BiLoraConfig(values="softmax", scale_by_rank=True, **o),
    "BiDoRA": BiDoraConfig,
}
# As the demo of applications.nlu: 120 examples, a fifth of them above, half of all texts for tests.
TRAINED, ABOVE = 120, 24
BATCH = 16


@dataclass
class Trainings:
    """What has been trained in this run, and from what."""

    setting: Setting
    rounds: int
    found: dict[tuple[str, int, str], Values] = field(default_factory=dict)
    source: Packed | None = None

    def data(self) -> Packed:
        """Return model and text: the packed ones, or a stand-in in a dry run without a folder."""
        if self.source is None:
            small = self.setting.dry and self.setting.data is None
            self.source = stand_in() if small else packed(self.setting.data)
        return self.source

    def on_device(self, adapter: str, seed: int, precision: str) -> Values:
        """Return the accuracy on the device."""
        found = train(self.data(), adapter, seed, precision, self.setting.device, self.rounds)
        self.found[adapter, seed, precision] = found
        return found

    def on_cpu(self, adapter: str, seed: int) -> Values:
        """Return the accuracy on the CPU in float32, with the device's beside.

        Raises:
            Disagreement: the first losses are others on the device, or the accuracy is more than
                two points away.
        """
        found = train(self.data(), adapter, seed, "float32", CPU, self.rounds)
        there = self.found.get((adapter, seed, "float32"))
        if there is None:
            return found
        first = abs(there["first_loss"] - found["first_loss"]) / found["first_loss"]
        distance = abs(there["accuracy"] - found["accuracy"])
        found |= {"accuracy_on_device": there["accuracy"], "first_loss_difference": first}
        if first > 1e-4:
            raise Disagreement(f"the first loss differs by {first:.2g}", **found)
        if distance > 0.02:
            raise Disagreement(f"the accuracy differs by {100 * distance:.1f} points", **found)
        return found


def rows(setting: Setting) -> Iterator[Row]:
    """Yield the rows of part 3, the most important first."""
    rounds = 3 if setting.smallest else 8 if setting.dry else 100
    trainings = Trainings(setting, rounds)
    seeds = (0,) if setting.dry else (0, 1, 2)
    for seed in seeds:
        for adapter in ADAPTERS:
            here = partial(trainings.on_device, adapter, seed)
            yield Row(f"{adapter} | seed {seed} | float32", partial(here, "float32"))
            if setting.smallest:
                return
            yield Row(f"{adapter} | seed {seed} | bfloat16", partial(here, "bfloat16"))
        for adapter in ADAPTERS:
            there = partial(trainings.on_cpu, adapter, seed)
            yield Row(f"{adapter} | seed {seed} | float32 on the CPU", there)


def train(
    source: Packed, adapter: str, seed: int, precision: str, device: torch.device, rounds: int
) -> Values:
    """Return losses, accuracy on the test half, and the time of the rounds."""
    options: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}
    model = source.model(seed)
    torch.manual_seed(seed)
    model = get_peft_model(model, ADAPTERS[adapter](task_type="SEQ_CLS", **options)).to(device)
    order = torch.randperm(len(source.labels), generator=torch.Generator().manual_seed(0))
    half = len(order) // 2
    trained = order[half : half + TRAINED]
    above, below = trained[:ABOVE], trained[ABOVE:]
    split = levels(model)
    graph = two_level(
        model,
        loss=lambda batch: model(**batch)["loss"],
        upper_batches=drawn(source, above, rounds, seed + 1),
        lower_batches=drawn(source, below, rounds, seed + 2),
        upper_optimizer=torch.optim.AdamW(split.upper, 1e-2, weight_decay=0.0),
        lower_optimizer=torch.optim.AdamW(split.lower, 2e-3, weight_decay=0.0),
    )
    engine = Engine(graph, precision=torch.bfloat16 if precision == "bfloat16" else None)
    model.train()
    start, losses = time.perf_counter(), []
    for record in engine.rounds(rounds):
        losses.append(record.losses["lower"])
    seconds = time.perf_counter() - start
    return {
        "adapter": adapter,
        "seed": seed,
        "precision": precision,
        "on": device.type,
        "problem": source.name,
        "rounds": rounds,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "accuracy": accuracy(model, source, order[:half], device),
        "num_tested": half,
        "train_seconds": seconds,
        "num_gradients": record.num_gradients,
    }


def drawn(source: Packed, positions: Tensor, count: int, seed: int) -> list[dict[str, Tensor]]:
    """Return `count` batches in the order that `seed` shuffles."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while sum(map(len, found)) < count * BATCH:
        found.append(positions[torch.randperm(len(positions), generator=generator)])
    return [batch(source, chosen) for chosen in torch.cat(found).split(BATCH)[:count]]


def batch(source: Packed, positions: Tensor) -> dict[str, Tensor]:
    """Return the texts at some positions, cut to their longest."""
    ids = source.ids[positions]
    ids = ids[:, : int((ids != 0).sum(1).max())]
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": source.labels[positions]}


def accuracy(model: nn.Module, source: Packed, positions: Tensor, device: torch.device) -> float:
    """Return the share of the texts whose class the model finds, in float32."""
    model.eval()
    right = 0
    with torch.no_grad():
        for chosen in positions.split(256):
            moved = {name: t.to(device) for name, t in batch(source, chosen).items()}
            right += int((model(**moved)["logits"].argmax(1) == moved["labels"]).sum())
    return right / len(positions)
