"""Tiny models built from their configurations, and the adapters under test."""

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from adapters import (
    AutoLoraConfig,
    BiDoraConfig,
    BiLoraConfig,
    LoraDropoutConfig,
    LoraWeightDecayConfig,
    SoraConfig,
)

Batch = dict[str, Tensor]

BILORA: dict[str, dict[str, Any]] = {
    "real": {"values": "real"},
    "softmax": {"values": "softmax"},
    "softmax-rank": {"values": "softmax", "scale_by_rank": True},
    "binary": {"values": "binary"},
    "tied": {"values": "real", "tied": True},
}
DIAGONAL = [*BILORA, "autolora", "sora"]
METHODS = [*DIAGONAL, "bidora"]
# LoRA Dropout with learned rates is random in training mode.
ALL = [*METHODS, "dropout"]


def config(method: str, **options: Any) -> LoraConfig:
    """The configuration of one method; rank 3 and alpha 6, so that the scale is 2."""
    options = {"r": 3, "lora_alpha": 6, "joint": True, **options}
    if method == "bidora":
        return BiDoraConfig(**options)
    if method == "decay":
        return LoraWeightDecayConfig(**options)
    if method == "dropout":
        return LoraDropoutConfig(mask_rate=0.4, learn_mask_rate=True, **options)
    if method == "autolora":
        return AutoLoraConfig(**options)
    if method == "sora":
        return SoraConfig(gate_level="upper", **options)
    return BiLoraConfig(**BILORA[method], **options)


def bert(dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A BERT classifier with two layers of width 32, without dropout."""
    torch.manual_seed(1)
    settings = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 16,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 3,
        "initializer_range": 0.2,
        "attn_implementation": "eager",
        **changes,
    }
    return BertForSequenceClassification(BertConfig(**settings)).to(dtype).eval()


def gpt2(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A GPT-2 with two layers of width 32, without dropout; its projections are Conv1D."""
    torch.manual_seed(2)
    settings = GPT2Config(
        vocab_size=40,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(settings).to(dtype).eval()


class Mlp(nn.Module):
    """Two layers; the second has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.second = nn.Linear(7, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network of 5, 7 and 3 units."""
    torch.manual_seed(3)
    return Mlp().to(dtype)


BASES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "mlp": (mlp, {"target_modules": ["first", "second"]}),
    "bert": (bert, {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}),
    "gpt2": (gpt2, {"task_type": "CAUSAL_LM", "target_modules": ["c_attn", "c_proj"]}),
}


def base_model(base: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh copy of the frozen model, with the same weights every time."""
    return BASES[base][0](dtype)


def adapted(
    base: str,
    method: str,
    *,
    dtype: torch.dtype = torch.float32,
    moved: float = 0.0,
    **options: Any,
) -> PeftModel:
    """A fresh copy with an adapter, in evaluation mode, its parameters moved at random."""
    torch.manual_seed(4)
    options = {**BASES[base][1], **options}
    model = get_peft_model(base_model(base, dtype), config(method, **options))
    return move(model, moved).eval()


def move(model: PeftModel, size: float) -> PeftModel:
    """The model, its trainable parameters moved at random by about `size`."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return model


def inputs(base: str, seed: int = 6, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch for one of the models, with labels for the transformers."""
    generator = torch.Generator().manual_seed(seed)
    if base == "mlp":
        return {"x": torch.randn(6, 5, generator=generator, dtype=dtype)}
    ids = torch.randint(1, 40, (6, 8), generator=generator)
    if base == "gpt2":
        return {"input_ids": ids, "labels": ids}
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    labels = torch.randint(0, 3, (6,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def output(model: nn.Module, batch: Batch) -> Tensor:
    """What the model computes, without a graph."""
    with torch.no_grad():
        result = model(**batch)
    value: Tensor = result if isinstance(result, Tensor) else result.logits
    return value
