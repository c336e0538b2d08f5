"""The problems, each a function of the type it is computed in and of its sizes.

Numbers are drawn in float32 and cast, so that a problem is the same one in every type.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from benchmarks.peers.modules import Grid, Importance, Layers, Linear, Penalties
from benchmarks.peers.task import Part, Task

Build = Callable[[torch.dtype], Task]


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
