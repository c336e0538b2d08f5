"""Tiny models with every adapter, and the hypergradients that an upper optimizer receives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import blo
from adapters import (
    AutoLoraConfig,
    BiDoraConfig,
    BiLoraConfig,
    LoraDropoutConfig,
    LoraWeightDecayConfig,
    SoraConfig,
    WeightDecay,
    levels,
    two_level,
)
from blo import Engine, Method, ProblemGraph

Batch = dict[str, Tensor]

ADAPTERS: dict[str, Callable[..., Any]] = {
    "BiLoRA": lambda **o: BiLoraConfig(values="real", **o),
    "BiDoRA": BiDoraConfig,
    "BiLoRA, softmax": lambda **o: BiLoraConfig(values="softmax", scale_by_rank=True, **o),
    "BiLoRA, binary": lambda **o: BiLoraConfig(values="binary", **o),
    "BiLoRA, tied": lambda **o: BiLoraConfig(values="real", tied=True, **o),
    "BiDoRA, in": lambda **o: BiDoraConfig(norm_axis="in", **o),
    "AutoLoRA": AutoLoraConfig,
    "SoRA": lambda **o: SoraConfig(gate_level="upper", **o),
    "weight decay": lambda **o: LoraWeightDecayConfig(initial_weight_decay=0.1, **o),
    "LoRA Dropout": lambda **o: LoraDropoutConfig(mask_rate=0.4, learn_mask_rate=True, **o),
}
RANDOM = ("LoRA Dropout",)


@dataclass(frozen=True)
class Use:
    """A method with the number of lower steps it is tried with, and whether Adam takes them."""

    method: Method
    steps: int = 1
    adam: bool = False
    difference: bool = False
    """Its numbers are differences of gradients, whose rounding errors are divided by a radius."""


METHODS: dict[str, Use] = {
    "darts": Use(blo.darts(), difference=True),
    "darts, one-sided": Use(blo.darts(one_sided=True), difference=True),
    "t1t2": Use(blo.t1t2()),
    "sama": Use(blo.sama(), steps=2, adam=True, difference=True),
    "cg": Use(blo.cg(4, damping=5.0)),
    "neumann": Use(blo.neumann(3, scale=0.1)),
    "unrolled": Use(blo.unrolled(), steps=2),
    "alternating": Use(blo.alternating()),
    "minres": Use(blo.minres(4, damping=5.0)),
    "gmres": Use(blo.gmres(4, damping=5.0)),
    "bicgstab": Use(blo.bicgstab(4, damping=5.0)),
    "normal_cg": Use(blo.normal_cg(6, damping=5.0)),
    "nystrom": Use(blo.nystrom(4, rho=5.0)),
    "dense": Use(blo.dense(damping=5.0)),
    "soba": Use(blo.soba(0.1)),
    "unrolled, checkpointed": Use(blo.unrolled(checkpoint=True), steps=4),
    "forward_mode": Use(blo.forward_mode(), steps=2),
    "f2sa": Use(blo.f2sa(4, lr=0.1, delta=0.3, damping=5.0), difference=True),
    "pbgd": Use(blo.pbgd(10.0, num_steps=2, lr=0.1)),
    "evolution": Use(blo.evolution(4), difference=True),
}


@dataclass(frozen=True)
class Run:
    """How two rounds of a tiny model are computed; every field has an effect on the numbers or
    should have none.
    """

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    precision: torch.dtype | None = None
    base: str = "perceptron"
    attention: str = "eager"
    dropout: float = 0.0
    optimizer: type[torch.optim.Optimizer] = torch.optim.SGD
    options: Mapping[str, Any] = field(default_factory=lambda: {"lr": 0.05, "momentum": 0.9})
    rounds: int = 2
    moved: float = 0.0
    """Every weight of the frozen model times 1 plus or minus this, to see what rounding does."""


ADAM = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-3}


class Perceptron(nn.Module):
    """Two layers and the loss; the second has no bias."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss under "loss"."""
        scores = self.second(self.dropout(torch.tanh(self.first(x))))
        return {"loss": cross_entropy(scores, labels)}


def perceptron(run: Run) -> nn.Module:
    """Return a network of 6, 8 and 3 units."""
    return Perceptron(run.dropout)


def bert(run: Run) -> nn.Module:
    """Return a BERT classifier of two layers of 32 dimensions."""
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
        hidden_dropout_prob=run.dropout,
        attention_probs_dropout_prob=run.dropout,
        num_labels=3,
        initializer_range=0.2,
        attn_implementation=run.attention,
    )
    return transformers.BertForSequenceClassification(config)


BASES: dict[str, tuple[Callable[[Run], nn.Module], dict[str, Any]]] = {
    "perceptron": (perceptron, {"target_modules": ["first", "second"]}),
    "bert": (bert, {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}),
}


def adapted(adapter: str, run: Run) -> PeftModel:
    """Return the model of `run` with an adapter of rank 2 moved off its start; the same numbers,
    to rounding, on every device and in every type.
    """
    torch.manual_seed(1)
    make, settings = BASES[run.base]
    config = ADAPTERS[adapter](r=2, lora_alpha=4, **settings)
    model = get_peft_model(make(run), config)
    rounding = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif run.moved:
                signs = torch.randint(2, parameter.shape, generator=rounding) * 2 - 1
                parameter.mul_(1 + run.moved * signs)
    return model.to(run.dtype).to(run.device).train()


def batches(run: Run) -> list[Batch]:
    """Return four batches on the CPU, of the type of `run`."""
    generator = torch.Generator().manual_seed(2)
    found: list[Batch] = []
    for _ in range(4):
        labels = torch.randint(3, (6,), generator=generator)
        if run.base == "perceptron":
            x = torch.randn(6, 6, generator=generator)
            found.append({"x": x.to(run.dtype), "labels": labels})
            continue
        ids = torch.randint(1, 40, (6, 8), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def tiny_graph(use: Use, adapter: str, run: Run) -> tuple[ProblemGraph, nn.Module]:
    """Return the two problems of a tiny model, and the model."""
    model = adapted(adapter, run)
    split, data = levels(model), batches(run)
    chosen, options = run.optimizer, run.options
    if use.adam and chosen is torch.optim.SGD:
        chosen, options = torch.optim.Adam, ADAM
    graph = two_level(
        model,
        loss=lambda batch: model(**batch)["loss"],
        upper_batches=data[:2],
        lower_batches=data[2:],
        upper_optimizer=torch.optim.SGD(split.upper, lr=0.1),
        lower_optimizer=chosen(split.lower, **options),
        method=use.method,
        penalty=[WeightDecay()] if adapter == "weight decay" else (),
        steps=use.steps,
    )
    return graph, model


def received(use: Use, adapter: str, run: Run) -> Tensor:
    """Return what the upper optimizer receives in the rounds of `run`, in float64 on the CPU."""
    graph, _ = tiny_graph(use, adapter, run)
    upper, seen = graph["upper"], []

    def look(*_: Any) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in upper.parameters]
        seen.append(torch.cat([g.detach().double().cpu().flatten() for g in grads]))

    upper.optimizer.register_step_pre_hook(look)
    torch.manual_seed(3)
    Engine(graph, precision=run.precision).run(run.rounds)
    return torch.cat(seen)


def difference(value: Tensor, reference: Tensor) -> float:
    """Return ``|value - reference| / |reference|``, the absolute difference where that is zero."""
    length = float(reference.norm())
    return float((value - reference).norm()) / (length or 1.0)
