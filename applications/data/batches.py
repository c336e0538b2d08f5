"""Batches of token numbers from encoded examples."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, WeightedRandomSampler

from applications import processes

Batch = dict[str, Tensor]
Encoded = list[dict[str, Any]]
Collator = Callable[[list[dict[str, Any]]], Batch]


def training_batches(
    encoded: Encoded,
    collator: Collator,
    *,
    size: int,
    seed: int,
    weights: Sequence[float] | None = None,
) -> Any:
    """Shuffled batches, padded to their longest example; the order depends on ``seed`` alone.

    Of several processes each takes its own of them, so that together they see what one process
    sees with batches of ``size`` times their number. With ``weights`` each row of an epoch is drawn
    with a probability proportional to its weight, with replacement. The loader draws from a
    generator of its own, which the engine saves and restores.
    """
    generator = torch.Generator().manual_seed(seed)
    order: Sampler[int] = RandomSampler(encoded, generator=generator)
    if weights is not None:
        order = WeightedRandomSampler(weights, len(encoded), generator=generator)
    return DataLoader(
        encoded,  # type: ignore[arg-type]
        batch_sampler=processes.own_batches(BatchSampler(order, size, drop_last=False)),
        collate_fn=collator,
        generator=generator,
    )


def evaluation_batches(encoded: Encoded, collator: Collator, *, size: int) -> Any:
    """All examples once, sorted by length to save padding; draws no global random number."""
    return DataLoader(
        sorted(encoded, key=lambda row: len(row["input_ids"])),  # type: ignore[arg-type]
        batch_size=size,
        collate_fn=collator,
        generator=torch.Generator(),
    )
