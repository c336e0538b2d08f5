"""The carried MiniLM and headlines as one small file, for a machine that has neither package.

The file holds what the headlines need: the weights in bfloat16, of the embeddings the rows of
tokens that occur. The model computes on these texts what the whole one would.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.cuda.rows import Absent

FILE = "minilm.pt"
LENGTH = 32
WORDS = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class Packed:
    """A BERT and labelled texts.

    Attributes:
        name: what it is.
        config: the settings of `transformers.BertConfig`.
        weights: of the encoder, without a head; none for a model that starts at random.
        ids: token numbers ``(texts, length)``, padded with 0.
        labels: the class of each text, ``(texts,)``.
        num_labels: the number of classes.
    """

    name: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    ids: Tensor
    labels: Tensor
    num_labels: int

    def model(self, seed: int) -> nn.Module:
        """Return the classifier in float32, without dropout, its head drawn from `seed` on the CPU:
        one start, and one sequence of losses, on every device.
        """
        torch.manual_seed(seed)
        settings = {**self.config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = transformers.BertConfig(**settings, num_labels=self.num_labels)
        model = transformers.BertForSequenceClassification(config)
        if self.weights:
            model.bert.load_state_dict({n: w.float() for n, w in self.weights.items()}, strict=True)
        return model


def pack(folder: Path) -> Path:
    """Write the file into `folder` from the pip packages that carry model and text; return it."""
    from safetensors.torch import load_file

    from applications.carried import bbc_headlines, minilm_folder

    source = minilm_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(source))
    texts = bbc_headlines()
    names = sorted(set(texts["label"]))
    tokens = tokenizer(
        list(texts["text"]), padding="max_length", truncation=True, max_length=LENGTH
    )
    used, ids = torch.unique(torch.tensor(tokens["input_ids"]), return_inverse=True)
    if tokenizer.pad_token_id != 0 or int(used[0]) != 0:
        raise ValueError(f"the padding token must be number 0, got {tokenizer.pad_token_id}")
    weights = load_file(source / "model.safetensors")
    own = transformers.BertConfig.from_pretrained(str(source))
    model = transformers.BertModel(own)
    model.load_state_dict({n: w for n, w in weights.items() if n in model.state_dict()})
    kept = {n: w.to(torch.bfloat16) for n, w in model.state_dict().items()}
    kept[WORDS] = kept[WORDS][used].clone()
    known = json.loads((source / "config.json").read_text())
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes += ("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "hidden_act")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    torch.save(
        {
            "name": "all-MiniLM-L6-v2 in bfloat16, BBC headlines",
            "config": {**{n: known[n] for n in sizes}, "vocab_size": len(used)},
            "weights": kept,
            "ids": ids.to(torch.int16),
            "labels": torch.tensor([names.index(label) for label in texts["label"]]),
            "num_labels": len(names),
        },
        file,
    )
    return file


def packed(folder: Path | None) -> Packed:
    """Return what `pack` wrote.

    Raises:
        Absent: there is no such file.
    """
    if folder is None or not (folder / FILE).is_file():
        raise Absent(
            f"no {FILE} in {folder}: write it with python -m benchmarks.cuda --pack FOLDER"
        )
    found = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    return Packed(**{**found, "ids": found["ids"].long(), "labels": found["labels"].long()})


def stand_in() -> Packed:
    """Return a tiny BERT and made-up texts in three classes, each with words of its own."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (120,), generator=generator)
    own = 4 + 10 * labels[:, None] + torch.randint(10, (120, 7), generator=generator)
    common = torch.randint(34, 40, (120, 7), generator=generator)
    mixed = torch.where(torch.rand(120, 7, generator=generator) < 0.5, own, common)
    ids = torch.cat([torch.ones(120, 1, dtype=torch.long), mixed], dim=1)
    config = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
        "initializer_range": 0.2,
    }
    return Packed("a tiny BERT at random, made-up texts", config, {}, ids, labels, 3)
