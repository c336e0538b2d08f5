"""Batches of token numbers from encoded examples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

Batch = dict[str, Tensor]
Encoded = list[dict[str, Any]]
Collator = Callable[[list[dict[str, Any]]], Batch]


def training_batches(encoded: Encoded, collator: Collator, *, size: int, seed: int) -> Any:
    """Shuffled batches, padded to their longest example; the order depends on ``seed`` alone.

    The loader draws from a generator of its own, which the engine saves and restores.
    """
    return DataLoader(
        encoded,  # type: ignore[arg-type]
        batch_size=size,
        shuffle=True,
        collate_fn=collator,
        generator=torch.Generator().manual_seed(seed),
    )


def evaluation_batches(encoded: Encoded, collator: Collator, *, size: int) -> Any:
    """All examples once, sorted by length to save padding; draws no global random number."""
    return DataLoader(
        sorted(encoded, key=lambda row: len(row["input_ids"])),  # type: ignore[arg-type]
        batch_size=size,
        collate_fn=collator,
        generator=torch.Generator(),
    )
