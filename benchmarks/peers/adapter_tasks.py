"""Adapters on transformers with random weights: classifiers, and models of GPT-2's shape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers.task import Task


def adapter(
    dtype: torch.dtype,
    *,
    kind: str = "BiLoRA",
    rows: int = 8,
    length: int = 32,
    shape: str = "MiniLM",
    optimizer: str = "SGD",
) -> Task:
    """An adapter of rank 8 on queries and values of a transformer with random weights, without
    dropout: a classifier, or a language model of GPT-2's shape.
    """
    from peft import get_peft_model

    from adapters import BiDoraConfig, BiLoraConfig, levels

    torch.manual_seed(0)
    width, depth, heads = SHAPES[shape]
    generates = shape.startswith("GPT-2")
    base = _gpt2(width, depth, heads) if generates else _bert(width, depth, heads)
    configuration = {"BiLoRA": BiLoraConfig, "BiDoRA": BiDoraConfig}[kind]
    chosen = configuration(
        task_type="CAUSAL_LM" if generates else "SEQ_CLS",
        r=8,
        target_modules=["c_attn"] if generates else ["query", "value"],
        fan_in_fan_out=generates,
    )
    model = get_peft_model(base, chosen).to(dtype).train()
    split = levels(model)
    with torch.no_grad():
        for parameter in (*split.upper, *split.lower):
            parameter += (0.02 * torch.randn(parameter.shape)).to(dtype)

    def batch() -> dict[str, Tensor]:
        ids = torch.randint(1000, 30000, (rows, length))
        labels = ids if generates else torch.randint(2, (rows,))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    first, second = batch(), batch()
    return Task(
        problem=f"{kind}, {shape} shape",
        setting=f"{depth} x {width}, rank 8, {rows} x {length} tokens, 1 x {optimizer}",
        upper=model,
        lower=model,
        x=list(split.upper),
        y=list(split.lower),
        upper_loss=lambda above, below: below(**second).loss,
        lower_loss=lambda above, below: below(**first).loss,
        optimizer=optimizer,
        lr=1e-3 if optimizer == "Adam" else 0.05,
    )


SHAPES = {
    "MiniLM": (384, 6, 12),
    "roberta-base": (768, 12, 12),
    "GPT-2": (768, 12, 12),
    "GPT-2, small": (64, 2, 2),
}


def _bert(width: int, depth: int, heads: int) -> nn.Module:
    """Return a classifier with random weights, without dropout."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def _gpt2(width: int, depth: int, heads: int) -> nn.Module:
    """Return a language model with random weights, without dropout."""
    import transformers

    config = transformers.GPT2Config(
        n_embd=width,
        n_layer=depth,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = transformers.GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # else it warns that it takes this one
    return model
