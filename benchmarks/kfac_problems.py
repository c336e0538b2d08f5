"""Lower problems that have been trained, for `benchmarks.kfac`."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn
from torch.func import functional_call

from adapters import BiLoraConfig, levels
from benchmarks.cuda.pack import Packed, pack, packed, stand_in
from benchmarks.peers.modules import Importance, Layers
from benchmarks.peers.tasks import noisy_classes
from blo import MINRES, Exact, GaussNewton, Implicit, Solution, SplitLoss, Status, hypergradient

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Alone:
    """A preconditioner in the place of a solver."""

    preconditioner: Any

    def __call__(self, matvec: Any, rhs: Tensors, init: Tensors | None = None) -> Solution:
        """Return the right-hand side, divided once."""
        return Solution(
            self.preconditioner.inverse(matvec, rhs, 0.0)(rhs), Status.TRUNCATED, 0, math.nan
        )


@dataclass(frozen=True)
class Case:
    """Two losses at a trained point.

    Args:
        setting: what it is.
        upper_loss: ``f(x, y)``, in the type of its arguments.
        lower_loss: ``g(x, y)``.
        upper: `x`, in float64.
        lower: `y`.
        damping: of the system.
        products: how the Hessian is taken.
    """

    setting: str
    upper_loss: Callable[[Tensors, Tensors], Tensor]
    lower_loss: Any
    upper: Tensors
    lower: Tensors
    damping: float
    products: Any = Exact()

    @property
    def num_lower(self) -> int:
        return sum(t.numel() for t in self.lower)

    def reference(self) -> tuple[Tensor, float]:
        """Return the response in float64, and the relative residual that it was solved to."""
        solver = MINRES(2000, rtol=1e-9, damping=self.damping)
        value, info, _ = self._response(Implicit(solver, self.products), torch.float64)
        return value, info.residual

    def compared(self, method: Any, reference: Tensor, repeats: int) -> tuple[float, Any, float]:
        """Return the relative error of a method's response in float32, and its CPU seconds."""
        found = [self._response(self._with_products(method), torch.float32) for _ in range(repeats)]
        value, info, _ = found[0]
        error = float((value.double() - reference).norm() / reference.norm())
        return error, info, statistics.median(seconds for *_, seconds in found)

    def _with_products(self, method: Any) -> Any:
        return replace(method, products=self.products) if isinstance(method, Implicit) else method

    def _response(self, method: Any, dtype: torch.dtype) -> tuple[Tensor, Any, float]:
        x, y = (tuple(t.to(dtype) for t in part) for part in (self.upper, self.lower))
        start = time.process_time()
        found = hypergradient(self.upper_loss, self.lower_loss, x, y, method=method)
        seconds = time.process_time() - start
        pairs = zip(found.grads, found.direct, strict=True)
        return torch.cat([(g - d).flatten() for g, d in pairs]), found.info, seconds


def trained(problem: str, seed: int) -> Case:
    """Return one of the problems, trained from a seed."""
    torch.manual_seed(seed)
    return {
        "softmax layer": softmax_layer,
        "Meta-Weight-Net": lambda: weighted_net("noise", (784, 512, 512, 10), 500, 1e-2),
        "Meta-Weight-Net, digits": lambda: weighted_net("digits", (64, 128, 128, 10), 2000, 1e-3),
        "BiLoRA, tiny BERT": lambda: bilora(stand_in(), seed, rows=48),
        "BiLoRA, MiniLM": lambda: bilora(_minilm(), seed, rows=16),
    }[problem]()


def digits(rows: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return images and labels for below and above; 40 % of the labels below are drawn anew."""
    from sklearn.datasets import load_digits

    data, target = load_digits(return_X_y=True)
    order = torch.randperm(len(data))[: 2 * rows]
    inputs, labels = torch.tensor(data)[order] / 16, torch.tensor(target)[order]
    labels[:rows] = torch.where(torch.rand(rows) < 0.4, torch.randint(10, (rows,)), labels[:rows])
    return list(inputs.split(rows)), list(labels.split(rows))


def noise(rows: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return the rows of `benchmarks.peers.tasks.meta_weight_net`, of another seed."""
    inputs, labels = noisy_classes(rows, 784, torch.float64)
    return list(inputs), list(labels)


def softmax_layer(*, rows: int = 500, decay: float = 1e-4) -> Case:
    """One layer on the digits, with a weight for each example above: a convex lower problem."""
    (inputs, more), (labels, others) = digits(rows)
    net, above = Layers(inputs.shape[1], 10).double(), Importance(rows).double()

    def each(z: Tensor) -> Tensor:
        return F.cross_entropy(z, labels, reduction="none")

    return _case(
        f"64-10 on the digits, {rows} rows, L2 {decay:g}, solved by L-BFGS",
        net, above, inputs, more, others, decay, Exact(),
        lambda weigh, z: (weigh() * each(z)).mean(), steps=0,
    )  # fmt: skip


def weighted_net(data: str, layers: tuple[int, ...], steps: int, decay: float) -> Case:
    """A network whose examples are weighted by a small network above, the Gauss-Newton matrix for
    its Hessian: that of a ReLU network after training is indefinite.
    """
    rows = 100 if data == "noise" else 500
    (inputs, more), (labels, others) = {"noise": noise, "digits": digits}[data](rows)
    net = Layers(*layers).double()
    above = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1), nn.Sigmoid()).double()

    def loss(weigh: Any, z: Tensor) -> Tensor:
        each = F.cross_entropy(z, labels, reduction="none")
        return (weigh(each.unsqueeze(1)).squeeze(1) * each).mean()

    shape = "-".join(map(str, layers))
    return _case(
        f"{shape} on {data}, {rows} rows, L2 {decay:g}, after {steps} steps of Adam, Gauss-Newton",
        net, above, inputs, more, others, decay, GaussNewton(), loss, steps=steps,
    )  # fmt: skip


def _case(
    setting: str,
    net: nn.Module,
    above: nn.Module,
    inputs: Tensor,
    more: Tensor,
    others: Tensor,
    decay: float,
    products: Any,
    loss: Callable[[Any, Tensor], Tensor],
    *,
    steps: int,
) -> Case:
    names, upper_names = (list(dict(m.named_parameters())) for m in (net, above))

    def at(y: Tensors, rows: Tensor) -> Tensor:
        placed = dict(zip(names, y, strict=True))
        found: Tensor = functional_call(net, placed, (rows.to(y[0].dtype),))
        return found

    def lower(z: Tensor, x: Tensors, y: Tensors) -> Tensor:
        placed = dict(zip(upper_names, x, strict=True))
        return loss(lambda *given: functional_call(above, placed, given), z)

    parameters = tuple(net.parameters())
    upper = tuple(p.detach() for p in above.parameters())

    def objective() -> Tensor:
        size = sum(p.square().sum() for p in parameters)
        return lower(at(parameters, inputs), upper, parameters) + 0.5 * decay * size

    if steps:
        _by_adam(parameters, objective, steps)
    else:
        _by_lbfgs(parameters, objective)
    return Case(
        setting,
        lambda x, y: F.cross_entropy(at(y, more), others),
        SplitLoss(lambda x, y: at(y, inputs), lower),
        upper,
        tuple(p.detach() for p in parameters),
        decay,
        products,
    )


def _by_adam(parameters: Tensors, objective: Callable[[], Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(parameters, 1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, 2 - 2 * t / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        objective().backward(inputs=list(parameters))
        optimizer.step()
        schedule.step()


def _by_lbfgs(parameters: Tensors, objective: Callable[[], Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=2000, tolerance_grad=1e-9, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward(inputs=list(parameters))
        return loss

    optimizer.step(closure)


def _minilm() -> Packed:
    with tempfile.TemporaryDirectory() as folder:
        return packed(pack(Path(folder)).parent)


def bilora(
    source: Packed, seed: int, *, rows: int, steps: int = 200, damping: float = 1e-2
) -> Case:
    """BiLoRA of rank 8 on a BERT and its texts, the factors and the head trained on one batch."""
    model = source.model(seed)
    torch.manual_seed(seed)
    config = BiLoraConfig(
        r=8, lora_alpha=16, target_modules=["query", "value"], values="softmax",
        scale_by_rank=True, task_type="SEQ_CLS",
    )  # fmt: skip
    model = get_peft_model(model, config).train()
    split = levels(model)
    order = torch.randperm(len(source.labels))
    batches = []
    for chosen in order[: 2 * rows].split(rows):
        ids = source.ids[chosen]
        ids = ids[:, : int((ids != 0).sum(1).max())]
        given = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        batches.append((given, source.labels[chosen]))
    (given, labels), (more, others) = batches
    optimizer = torch.optim.Adam(split.lower, 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(**given).logits, labels).backward(inputs=list(split.lower))
        optimizer.step()
    names = [*split.upper_names, *split.lower_names]
    model.double()
    frozen = {n: p.detach() for n, p in model.named_parameters() if n not in names}

    def logits(x: Tensors, y: Tensors, tokens: dict[str, Tensor]) -> Tensor:
        placed = {n: p.to(y[0].dtype) for n, p in frozen.items()}
        placed |= dict(zip(names, [*x, *y], strict=True))
        value: Tensor = functional_call(model, placed, kwargs=tokens).logits
        return value

    length = given["input_ids"].shape[1]
    return Case(
        f"Gauss-Newton, rank 8, {rows} x {length} tokens, after {steps} steps of Adam",
        lambda x, y: F.cross_entropy(logits(x, y, more), others),
        SplitLoss(lambda x, y: logits(x, y, given), lambda z, x, y: F.cross_entropy(z, labels)),
        tuple(p.detach() for p in split.upper),
        tuple(p.detach() for p in split.lower),
        damping,
        GaussNewton(),
    )
