"""The problems, each a function of the type it is computed in and of its sizes.

Numbers are drawn in float32 and cast, so that a problem is the same one in every type.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from benchmarks.peers.task import Part, Task

Build = Callable[[torch.dtype], Task]


class Penalties(nn.Module):
    """Log penalties, one for each feature; called, it returns the penalties."""

    def __init__(self, size: int, value: float) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.full((size,), value))

    def forward(self) -> Tensor:
        return self.logs.exp()


class Importance(nn.Module):
    """A number for each example; called, it returns weights between 0 and 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(size))

    def forward(self) -> Tensor:
        return self.logits.sigmoid()


class Linear(nn.Module):
    """A linear model, which returns its weights beside what it predicts."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(0.1 * torch.randn(size))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs @ self.w, self.w


class Grid(nn.Module):
    """Parameters in rows, returned as they are."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(rows, size))

    def forward(self) -> Tensor:
        return self.w


class Layers(nn.Sequential):
    """A network of linear layers with ReLU between them; it returns half its squared length beside
    what it predicts.
    """

    def __init__(self, *sizes: int) -> None:
        *pairs, last = pairwise(sizes)
        inner: list[nn.Module] = []
        for i, o in pairs:
            inner += [nn.Linear(i, o), nn.ReLU()]
        super().__init__(*inner, nn.Linear(*last))

    def forward(self, inputs: Tensor, *, with_size: bool = False) -> Any:
        outputs = super().forward(inputs)
        if not with_size:
            return outputs
        parts = [part for part in self if isinstance(part, nn.Linear)]
        return outputs, 0.5 * sum((p.weight**2).sum() + (p.bias**2).sum() for p in parts)


def ridge(dtype: torch.dtype, *, size: int = 50, steps: int = 1) -> Task:
    """Ridge regression with a penalty for each feature above."""

    def loss(found: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * mse_loss(found, targets)

    return _penalised("ridge", loss, size, dtype, steps)


def logistic(dtype: torch.dtype, *, size: int = 50, steps: int = 1) -> Task:
    """Logistic regression with a penalty for each feature above."""

    def loss(found: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(found, (targets > 0).to(found.dtype))

    return _penalised("logistic", loss, size, dtype, steps)


def meta_weight_net(
    dtype: torch.dtype,
    *,
    steps: int = 1,
    optimizer: str = "SGD",
    decay: float = 0.0,
    lr: float = 0.05,
    layers: tuple[int, ...] = (784, 512, 512, 10),
    rows: int = 100,
) -> Task:
    """A network whose examples are weighted by a small network above (Shu et al., 2019,
    arXiv:1902.07379).

    Differs from the paper: the loss that is weighted is not detached where it enters the network
    above, since finite differences cannot see a detachment.
    """
    torch.manual_seed(0)
    net = Layers(*layers).to(dtype)
    weigh = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid()).to(dtype)
    (inputs, more), (labels, others) = noisy_classes(rows, layers[0], dtype)

    def lower(above: Part, below: Part) -> Tensor:
        found = below(inputs, with_size=bool(decay))
        scores, size = found if decay else (found, 0.0)
        each = cross_entropy(scores, labels, reduction="none")
        return (above(each.unsqueeze(1)).squeeze(1) * each).mean() + decay * size

    def upper(above: Part, below: Part) -> Tensor:
        return cross_entropy(below(more), others)

    shape = "-".join(map(str, layers))
    extra = f", L2 {decay}" if decay else ""
    extra = f" {lr}{extra}" if lr != 0.05 else extra
    return Task(
        problem="Meta-Weight-Net",
        setting=f"{shape}, {rows} rows, {steps} x {optimizer}{extra}",
        upper=weigh,
        lower=net,
        x=list(weigh.parameters()),
        y=list(net.parameters()),
        upper_loss=upper,
        lower_loss=lower,
        optimizer=optimizer,
        lr=1e-3 if optimizer == "Adam" else lr,
        steps=steps,
    )


def reweighting(
    dtype: torch.dtype, *, steps: int = 10, optimizer: str = "SGD", width: int = 128
) -> Task:
    """A network whose training examples have a weight each above: long unrolling."""
    torch.manual_seed(0)
    rows, inputs_size = 64, 64
    net, weights = Layers(inputs_size, width, 10).to(dtype), Importance(rows).to(dtype)
    (inputs, more), (labels, others) = noisy_classes(rows, inputs_size, dtype)

    def lower(above: Part, below: Part) -> Tensor:
        return (above() * cross_entropy(below(inputs), labels, reduction="none")).mean()

    def upper(above: Part, below: Part) -> Tensor:
        return cross_entropy(below(more), others)

    return Task(
        problem="reweighting",
        setting=f"{inputs_size}-{width}-10, {rows} rows, {steps} x {optimizer}",
        upper=weights,
        lower=net,
        x=list(weights.parameters()),
        y=list(net.parameters()),
        upper_loss=upper,
        lower_loss=lower,
        optimizer=optimizer,
        lr=1e-3 if optimizer == "Adam" else 0.1,
        steps=steps,
    )


def maml(dtype: torch.dtype, *, steps: int = 5, width: int = 40) -> Task:
    """The start of a network that is adapted by a few steps to one sinusoid (Finn et al., 2017,
    arXiv:1703.03400).
    """
    torch.manual_seed(0)
    start, net = Layers(1, width, width, 1).to(dtype), Layers(1, width, width, 1).to(dtype)
    net.load_state_dict(start.state_dict())
    inputs, more = (10 * torch.rand(2, 10, 1) - 5).to(dtype)

    def lower(above: Part, below: Part) -> Tensor:
        return mse_loss(below(inputs), inputs.sin())

    def upper(above: Part, below: Part) -> Tensor:
        return mse_loss(below(more), more.sin())

    return Task(
        problem="MAML, sinusoid",
        setting=f"1-{width}-{width}-1, 10 rows, {steps} x SGD",
        upper=start,
        lower=net,
        x=list(start.parameters()),
        y=list(net.parameters()),
        upper_loss=upper,
        lower_loss=lower,
        lr=0.01,
        steps=steps,
        from_upper=True,
    )


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


def noisy_classes(rows: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of ten classes, for below and above; 40 % of the labels below are
    drawn at random.
    """
    centres = torch.randn(10, size)
    labels = torch.randint(10, (2, rows))
    inputs = 0.5 * centres[labels] + torch.randn(2, rows, size)
    noisy = torch.rand(rows) < 0.4
    labels[0] = torch.where(noisy, torch.randint(10, (rows,)), labels[0])
    return inputs.to(dtype), labels


def diagonal(
    dtype: torch.dtype, *, num_lower: int = 1000, num_upper: int = 10, steps: int = 1
) -> Task:
    """As many independent squares as there are lower parameters, penalised in groups of equal
    size: any number of parameters on both levels.
    """
    torch.manual_seed(0)
    size = num_lower // num_upper
    centres, curvatures = torch.randn(num_upper, size).to(dtype), torch.rand(num_upper, size)
    curvatures = (0.5 + curvatures).to(dtype)
    weights, penalties = Grid(num_upper, size).to(dtype), Penalties(num_upper, -1.0).to(dtype)

    def lower(above: Part, below: Part) -> Tensor:
        w = below()
        return 0.5 * ((curvatures * (w - centres).square()).sum() + (above() @ w.square()).sum())

    def upper(above: Part, below: Part) -> Tensor:
        return 0.5 * (below() - 0.5 * centres).square().sum()

    return Task(
        problem="squares",
        setting=f"{num_lower} below, {num_upper} above",
        upper=penalties,
        lower=weights,
        x=list(penalties.parameters()),
        y=list(weights.parameters()),
        upper_loss=upper,
        lower_loss=lower,
        lr=0.3,
        steps=steps,
        upper_lr=1e-9,
    )


def _penalised(
    problem: str,
    loss: Callable[[Tensor, Tensor], Tensor],
    size: int,
    dtype: torch.dtype,
    steps: int,
) -> Task:
    """Return a regression on twice as many rows as features, with log penalties of -2 above."""
    torch.manual_seed(0)
    model, penalties = Linear(size).to(dtype), Penalties(size, -2.0).to(dtype)
    inputs, more = torch.randn(2, 2 * size, size)
    truth = torch.randn(size) / size**0.5
    targets, others = (t @ truth + 0.3 * torch.randn(2 * size) for t in (inputs, more))
    inputs, more, targets, others = (t.to(dtype) for t in (inputs, more, targets, others))

    def lower(above: Part, below: Part) -> Tensor:
        found, w = below(inputs)
        return loss(found, targets) + 0.5 * (above() * w * w).sum()

    def upper(above: Part, below: Part) -> Tensor:
        return loss(below(more)[0], others)

    return Task(
        problem=problem,
        setting=f"{size} unknowns, {2 * size} rows, {steps} x SGD",
        upper=penalties,
        lower=model,
        x=list(penalties.parameters()),
        y=list(model.parameters()),
        upper_loss=upper,
        lower_loss=lower,
        lr=0.3,
        steps=steps,
        data=(inputs, targets, more, others),
    )
