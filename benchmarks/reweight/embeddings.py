"""Frozen features of whole sets, kept in a file so that they are computed once."""

from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor

from applications.families.classification import TextClassification
from applications.models.loading import load_pretrained
from applications.options.arguments import DataOptions, ModelOptions, Options
from applications.weighting.features import frozen

CACHE = Path("benchmarks/results/local")


def features(name: str, texts: list[str]) -> Tensor:
    """MiniLM's mean last hidden states ``(texts, 384)``."""
    from transformers import AutoModel

    file = CACHE / f"minilm-{name}.pt"
    if file.exists():
        kept: Tensor = torch.load(file, weights_only=True)
        if len(kept) == len(texts):
            return kept
    options = Options(model=ModelOptions(device="cpu"), data=DataOptions(max_seq_length=64))
    model, tokenizer = load_pretrained(AutoModel, options.model)
    family = TextClassification()
    rows = family.encode(
        Dataset.from_dict({"text": texts, "label": [0] * len(texts)}), tokenizer, options
    )
    found, _ = frozen(model, rows, family.collator(tokenizer), options, words=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, file)
    return found
