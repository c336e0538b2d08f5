"""Models of real shapes with random weights and an adapter, and their batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor

from adapters import BiDoraConfig, BiLoraConfig, Levels, levels

Batch = dict[str, Tensor]
ADAPTERS: dict[str, Callable[..., Any]] = {
    "BiLoRA": lambda **o: BiLoraConfig(values="real", **o),
    "BiDoRA": BiDoraConfig,
}


@dataclass(frozen=True)
class Shape:
    """A configuration with the batch it is measured on, and the same in small."""

    config: dict[str, Any]
    batch: tuple[int, int]
    small: dict[str, Any]
    llama: bool = False


def roberta(width: int, layers: int, heads: int) -> dict[str, Any]:
    """Return the settings of a RoBERTa."""
    return {
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SHAPES: dict[str, Shape] = {
    "roberta-base": Shape(roberta(768, 12, 12), (32, 128), SMALL),
    "roberta-large": Shape(roberta(1024, 24, 16), (32, 128), SMALL),
    "Llama 1.3 B": Shape(
        {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 5504,
        },
        (4, 256),
        SMALL,
        llama=True,
    ),
}


@dataclass(frozen=True)
class Adapted:
    """A model whose adapter stands off its start, its levels and a batch for each."""

    model: PeftModel
    split: Levels
    upper: Batch
    lower: Batch
    precision: torch.dtype | None
    start: list[Tensor]
    num_parameters: int

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.split.upper[0].device

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, under autocast where there is a precision.

        Autocast is entered here too, and not by the engine alone: a graph of problems evaluates the
        loss once before there is an engine, and float32 heads on bfloat16 features need it.
        """
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            value: Tensor = self.model(**batch)["loss"]
        return value

    def reset(self) -> None:
        """Put the adapter back where it stood."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.start, strict=True):
                parameter.copy_(value)
                parameter.grad = None

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """All trained parameters."""
        return [*self.split.upper, *self.split.lower]


def adapted(
    name: str, adapter: str, precision: torch.dtype | None, device: torch.device, *, small: bool
) -> Adapted:
    """Return a shape with an adapter of rank 8 on queries and values, without dropout.

    The frozen weights have the type of `precision` where there is one; adapters are float32.
    """
    shape = SHAPES[name]
    settings = dict(shape.small if small else shape.config)
    rows, length = (2, 8) if small else shape.batch
    torch.manual_seed(0)
    with torch.device(device):
        if shape.llama:
            base: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
        else:
            no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            base = transformers.RobertaForSequenceClassification(
                transformers.RobertaConfig(**settings, **no_dropout)
            )
    if precision is not None:
        base = base.to(precision)
    targets = ["q_proj", "v_proj"] if shape.llama else ["query", "value"]
    task = "CAUSAL_LM" if shape.llama else "SEQ_CLS"
    options = {"r": 8, "lora_alpha": 16, "task_type": task, "target_modules": targets}
    model = get_peft_model(base, ADAPTERS[adapter](**options)).to(device).train()
    split = levels(model)
    with torch.no_grad():
        for parameter in [*split.upper, *split.lower]:
            parameter.data = parameter.data.float()
            parameter.add_(0.02 * torch.randn_like(parameter))
    own = [*split.upper, *split.lower]
    generator = torch.Generator().manual_seed(1)
    vocabulary = settings["vocab_size"]

    def batch() -> Batch:
        ids = torch.randint(3, vocabulary, (rows, length), generator=generator)
        labels = ids if shape.llama else torch.randint(2, (rows,), generator=generator)
        found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return {key: value.to(device) for key, value in found.items()}

    return Adapted(
        model,
        split,
        batch(),
        batch(),
        precision,
        [p.detach().clone() for p in own],
        sum(p.numel() for p in model.parameters()),
    )
