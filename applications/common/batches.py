"""From labelled texts to batches of token numbers."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

Batch = dict[str, Tensor]
Encoded = list[dict[str, Any]]


def encode(examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """The examples as token numbers, with their label; too long inputs are cut."""
    texts = [list(examples[name]) for name in ("text", "pair") if name in examples.column_names]
    tokens = tokenizer(*texts, truncation=True, max_length=max_length)
    rows = [dict(zip(tokens, row, strict=True)) for row in zip(*tokens.values(), strict=True)]
    return [row | {"labels": label} for row, label in zip(rows, examples["label"], strict=True)]


def training_batches(
    encoded: Encoded, tokenizer: PreTrainedTokenizerBase, *, size: int, seed: int
) -> DataLoader[Any]:
    """Shuffled batches, padded to their longest example; the order depends on ``seed`` alone.

    The loader draws from a generator of its own, which the engine saves and restores.
    """
    return DataLoader(
        encoded,  # type: ignore[arg-type]
        batch_size=size,
        shuffle=True,
        collate_fn=DataCollatorWithPadding(tokenizer),
        generator=torch.Generator().manual_seed(seed),
    )


def evaluation_batches(
    encoded: Encoded, tokenizer: PreTrainedTokenizerBase, *, size: int
) -> DataLoader[Any]:
    """All examples once, sorted by length to save padding; draws no global random number."""
    return DataLoader(
        sorted(encoded, key=lambda row: len(row["input_ids"])),  # type: ignore[arg-type]
        batch_size=size,
        collate_fn=DataCollatorWithPadding(tokenizer),
        generator=torch.Generator(),
    )
