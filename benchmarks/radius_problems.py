"""The lower problems that `benchmarks.radius` measures difference steps on.

Each has one weight an example of the lower batch as its upper parameters, unless it says
otherwise, and the gradient of a held-out loss as the direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

Loss = Callable[[object], Tensor]


class Upper(nn.Module):
    """A vector of upper variables."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size))


@dataclass(frozen=True)
class Pair:
    """An upper and a lower problem on one network.

    Attributes:
        net: the network.
        upper: the upper parameters.
        loss: of the lower problem.
        above: the loss that the direction is the gradient of.
        lower: the lower parameters.
        factors: what the gradient is multiplied with, one tensor a parameter; None for 1.
    """

    net: nn.Module
    upper: Upper
    loss: Loss
    above: Loss
    lower: tuple[nn.Parameter, ...]
    factors: tuple[Tensor, ...] | None = None


def weighted(
    net: nn.Module,
    out: Callable[[Tensor], Tensor],
    train: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    lower: tuple[nn.Parameter, ...] | None = None,
) -> Pair:
    """Return the problem of weighting the training examples of a classifier; below are all that
    require gradients, or `lower`.
    """
    upper = Upper(len(train[0]))
    lower = lower or tuple(p for p in net.parameters() if p.requires_grad)

    def typed(x: Tensor) -> Tensor:
        return x.to(lower[0].dtype) if x.is_floating_point() else x

    def loss(_: object) -> Tensor:
        each = nn.functional.cross_entropy(out(typed(train[0])), train[1], reduction="none")
        return (upper.value.exp() * each).mean()

    def above(_: object) -> Tensor:
        return nn.functional.cross_entropy(out(typed(held[0])), held[1])

    return Pair(net, upper, loss, above, lower)


def classifier(vocabulary: int, width: int, *, hidden: bool) -> Pair:
    """A bag of words on torch's default `nn.Embedding`, with a linear or a ReLU head."""
    torch.manual_seed(0)
    emb = nn.Embedding(vocabulary, width)
    head = (
        nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 2))
        if hidden
        else nn.Linear(width, 2)
    )
    x, y = torch.randint(0, vocabulary, (16, 20)), torch.randint(0, 2, (16,))
    held = torch.randint(0, vocabulary, (64, 20))
    held[:, :10] = x.repeat(4, 1)[:, :10]
    net = nn.ModuleList([emb, head])
    return weighted(net, lambda t: head(emb(t).mean(1)), (x, y), (held, y.repeat(4)))


def images(net: nn.Module, *shape: int, classes: int = 10, num: int = 50) -> Pair:
    """A network on noisy Gaussian blobs, one a class."""
    centres = torch.randn(classes, *shape)
    y, z = torch.randint(classes, (num,)), torch.randint(classes, (num,))
    x = 0.5 * centres[y] + torch.randn(num, *shape)
    held = 0.5 * centres[z] + torch.randn(num, *shape)
    return weighted(net, net, (x, y), (held, z))


def perceptron(activation: type[nn.Module]) -> Pair:
    """A 64-128-128-10 network."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 128), activation(), nn.Linear(128, 128), activation(), nn.Linear(128, 10)
    )
    return images(net, 64)


def trained_perceptron() -> Pair:
    """The ReLU network after 100 steps of Adam."""
    pair = perceptron(nn.ReLU)
    optimizer = torch.optim.Adam(pair.lower, 1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        pair.loss(None).backward()
        optimizer.step()
    optimizer.zero_grad()
    pair.upper.value.grad = None
    return pair


def logistic_regression() -> Pair:
    """Logistic regression from zero."""
    torch.manual_seed(0)
    net = nn.Linear(64, 10)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    return images(net, 64)


def convolutions() -> Pair:
    """Two convolutions with batch norm in evaluation mode."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    return images(net, 3, 8, 8)


def encoder() -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """Return four 256-wide transformer layers with GELU, and batches for them."""
    layer = nn.TransformerEncoderLayer(
        256, 4, 512, dropout=0.0, activation="gelu", batch_first=True
    )
    net = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    x, y = torch.randn(8, 16, 256), torch.randint(3, (8,))
    held = x + 0.5 * torch.randn(8, 16, 256)
    return net, x, y, held, y


def transformer() -> Pair:
    """All weights of the transformer below."""
    torch.manual_seed(0)
    body, x, y, held, z = encoder()
    head = nn.Linear(256, 3)
    net = nn.ModuleList([body, head])
    return weighted(net, lambda t: head(body(t).mean(1)), (x, y), (held, z))


def low_rank(*, zero: bool) -> Pair:
    """Low-rank factors in the transformer below, the second ones zero or not; gains above."""
    torch.manual_seed(0)
    body, x, y, held, z = encoder()
    body.requires_grad_(False)
    down = nn.ParameterList([nn.Parameter(torch.randn(8, 256) / 16) for _ in range(4)])
    up = nn.ParameterList([nn.Parameter(torch.randn(256, 8) / 30) for _ in range(4)])
    if zero:
        for p in up:
            nn.init.zeros_(p)
    head = nn.Linear(256, 3)
    net = nn.ModuleList([body, down, up, head])

    def out(h: Tensor) -> Tensor:
        for i, block in enumerate(body.layers):
            h = block(h) + (h @ down[i].T) @ up[i].T
        return head(h.mean(1))

    return weighted(net, out, (x, y), (held, z))


def bert() -> Pair:
    """A two-layer BERT of random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    net = BertForSequenceClassification(
        BertConfig(vocab_size=2000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                   intermediate_size=128, num_labels=3)
    ).eval()  # fmt: skip
    x, y = torch.randint(2000, (8, 16)), torch.randint(3, (8,))
    held = torch.randint(2000, (24, 16))
    held[:, :8] = x.repeat(3, 1)[:, :8]
    return weighted(net, lambda t: net(input_ids=t).logits, (x, y), (held, y.repeat(3)))


def adapted(*, adam: bool) -> Pair:
    """BiLoRA on a two-layer RoBERTa of 128 dimensions, its factors off their start, its values
    fixed; the gradient, or what Adam makes of it: divided by the roots of second moments, so that
    most of its length is in a few entries.
    """
    from peft import get_peft_model
    from transformers import RobertaConfig, RobertaForSequenceClassification

    from adapters import BiLoraConfig, levels

    torch.manual_seed(0)
    base = RobertaForSequenceClassification(
        RobertaConfig(vocab_size=2000, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                      intermediate_size=512, num_labels=2)
    )  # fmt: skip
    settings = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
    net = get_peft_model(base, BiLoraConfig(r=8, lora_alpha=16, **settings)).eval()
    split = levels(net)
    with torch.no_grad():
        for p in (*split.upper, *split.lower):
            p.add_(0.02 * torch.randn_like(p))
    x, y = torch.randint(3, 2000, (8, 32)), torch.randint(2, (8,))
    held, z = torch.randint(3, 2000, (8, 32)), torch.randint(2, (8,))
    pair = weighted(
        net, lambda t: net(input_ids=t).logits, (x, y), (held, z), lower=tuple(split.lower)
    )
    if not adam:
        return pair
    gradients = torch.autograd.grad(pair.loss(None), pair.lower)
    noise = [0.3 * g.square().mean().sqrt() * torch.rand_like(g) for g in gradients]
    factors = tuple(1 / (g.abs() + n + 1e-8) for g, n in zip(gradients, noise, strict=True))
    return replace(pair, factors=factors)


def recurrent() -> Pair:
    """A GRU on a default embedding of 5000 words."""
    torch.manual_seed(0)
    emb, gru, head = nn.Embedding(5000, 48), nn.GRU(48, 64, batch_first=True), nn.Linear(64, 4)
    x, y = torch.randint(5000, (12, 15)), torch.randint(4, (12,))
    held = torch.randint(5000, (36, 15))
    held[:, :8] = x.repeat(3, 1)[:, :8]
    net = nn.ModuleList([emb, gru, head])
    return weighted(net, lambda t: head(gru(emb(t))[0][:, -1]), (x, y), (held, y.repeat(3)))


def residual() -> Pair:
    """Six residual blocks with layer norm and SiLU, on half a unit of noise."""
    torch.manual_seed(3)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(96), nn.Linear(96, 192), nn.Linear(192, 96)

        def forward(self, h: Tensor) -> Tensor:
            return h + self.b(nn.functional.silu(self.a(self.norm(h))))

    net = nn.Sequential(nn.Linear(40, 96), *(Block() for _ in range(6)), nn.Linear(96, 5))
    return images(net, 40, classes=5, num=32)


def llama() -> Pair:
    """A two-layer Llama of random weights that classifies sequences."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(4)
    net = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=500, hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
                    intermediate_size=192, num_labels=4, pad_token_id=0)
    ).eval()  # fmt: skip
    x, y = torch.randint(1, 500, (10, 12)), torch.randint(4, (10,))
    held, z = torch.randint(1, 500, (20, 12)), torch.randint(4, (20,))
    return weighted(net, lambda t: net(input_ids=t).logits, (x, y), (held, z))


def gated() -> Pair:
    """Convolutions in one dimension with gated linear units and group norm."""
    torch.manual_seed(5)
    net = nn.Sequential(
        nn.Conv1d(8, 48, 5, padding=2), nn.GLU(1), nn.GroupNorm(4, 24),
        nn.Conv1d(24, 64, 5, padding=2), nn.GLU(1), nn.AdaptiveAvgPool1d(4),
        nn.Flatten(), nn.Linear(128, 6),
    )  # fmt: skip
    return images(net, 8, 32, classes=6, num=24)


SIZES = ((1000, 64), (10000, 128), (30000, 256))
TUNED: dict[str, Callable[[], Pair]] = {
    **{f"bag linear {v}x{w}": lambda v=v, w=w: classifier(v, w, hidden=False) for v, w in SIZES},
    **{f"bag ReLU {v}x{w}": lambda v=v, w=w: classifier(v, w, hidden=True) for v, w in SIZES},
    "MLP ReLU": lambda: perceptron(nn.ReLU),
    "MLP tanh": lambda: perceptron(nn.Tanh),
    "MLP GELU": lambda: perceptron(nn.GELU),
    "MLP ReLU trained": trained_perceptron,
    "logistic from zero": logistic_regression,
    "convolutions": convolutions,
    "transformer": transformer,
    "low rank": lambda: low_rank(zero=False),
    "low rank from zero": lambda: low_rank(zero=True),
    "BERT": bert,
    "GRU": recurrent,
    "residual": residual,
    "BiLoRA": lambda: adapted(adam=False),
    "BiLoRA, Adam's direction": lambda: adapted(adam=True),
}
# Nobody looked at these before the rule and the radii were chosen.
HELD_OUT: dict[str, Callable[[], Pair]] = {"Llama": llama, "gated convolutions": gated}
SMALL = ("bag linear 1000x64", "bag ReLU 1000x64", "MLP ReLU", "MLP tanh", "MLP GELU",
         "MLP ReLU trained", "logistic from zero", "convolutions", "residual",
         "gated convolutions")  # fmt: skip
