"""RoLoRA: the factors of LoRA in turns, so that clients average exactly.

In even rounds A is fixed and B trained, in odd ones the other way round. What clients have trained
from a common adapter then averages without error, ``mean_i(B_i A) = mean_i(B_i) A``; with both
factors trained, the mean of the products is not the product of the means.

Reference: Chen et al. (2025), arXiv:2502.01755.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.glue.adapted import at_least_one, lora_layers
from adapters.glue.factors import factors
from adapters.glue.norms import widen
from adapters.methods.hooks import StepHook

__all__ = ["Alternation", "average"]

FACTORS: tuple[Literal["A", "B"], ...] = ("A", "B")


class Alternation(StepHook):
    """Lets an optimizer train one factor of LoRA at a time, B first.

    The gradients of the fixed factor are dropped before each step, so that the optimizer leaves the
    factor, its momentum and its decay alone; ``requires_grad``, which PEFT rewrites, is not
    touched. All other parameters are trained in every round.

    Args:
        optimizer: the optimizer that holds both factors of every layer.
        model: a model with an active LoRA adapter: PEFT's own, or one of this package.
        steps: steps of the optimizer in one round.
        first: the factor that is trained in round 0.

    Raises:
        ValueError: if the model has no active LoRA adapter, or a factor is not in `optimizer`.

    Example:
        >>> from adapters import Alternation
        >>> from peft import LoraConfig, get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"]))
        >>> optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        >>> alternation = Alternation(optimizer, model, steps=1)
        >>> for _ in range(3):
        ...     print(alternation.round, alternation.trained)
        ...     optimizer.step()
        0 B
        1 A
        2 B

    Reference: Chen et al. (2025), arXiv:2502.01755.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        steps: int,
        first: Literal["A", "B"] = "B",
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps!r}")
        if first not in FACTORS:
            raise ValueError(f"first must be one of {FACTORS}, got {first!r}")
        self.steps = steps
        self.first: Literal["A", "B"] = first
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._factors: dict[str, list[Tensor]] = {"A": [], "B": []}
        found = at_least_one(
            lora_layers(model),
            model,
            what="active LoRA adapter for Alternation",
            config="LoraConfig",
        )
        for name, adapter, layer in found:
            pair = factors(layer, adapter)
            for which, factor in (("A", pair.A), ("B", pair.B)):
                if id(factor) not in held:
                    raise ValueError(
                        f"optimizer must hold factor {which} of {name!r}; build it from the "
                        "trainable parameters of the model"
                    )
                self._factors[which].append(factor)
        super().__init__(optimizer, before=self._hold)

    @property
    def round(self) -> int:
        """The number of the round, from 0, that the next step belongs to."""
        return self.num_steps // self.steps

    @property
    def trained(self) -> Literal["A", "B"]:
        """The factor that the next step trains."""
        return FACTORS[(FACTORS.index(self.first) + self.round) % 2]

    def _hold(self, optimizer: torch.optim.Optimizer) -> None:
        for factor in self._factors["A" if self.trained == "B" else "B"]:
            factor.grad = None


def average(
    adapters: Sequence[Mapping[str, Tensor]], *, weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the adapter whose update is exactly the mean of the clients' updates.

    ``sum_i w_i B_i A = (sum_i w_i B_i) A``, and the same with the factors swapped; heads and biases
    are averaged too.

    Args:
        adapters: what the clients have trained, as ``peft.get_peft_model_state_dict`` returns it or
            as a checkpoint holds it.
        weights: one for each client, for example its number of samples; they are divided by their
            sum. None for equal weights.

    Raises:
        ValueError: if there are no adapters, or weights of another number, negative or all zero; if
            adapters are of different modules, or differ in both factors of one.

    Example:
        >>> from adapters import average
        >>> A = torch.tensor([[1.0, 2.0]])
        >>> clients = [
        ...     {"0.lora_A.weight": A, "0.lora_B.weight": torch.tensor([[b]])} for b in (1.0, 3.0)
        ... ]
        >>> average(clients)["0.lora_B.weight"]
        tensor([[2.]])

    Reference: Chen et al. (2025), arXiv:2502.01755.
    """
    if not adapters:
        raise ValueError("adapters must not be empty, got none to average")
    shares = [1.0] * len(adapters) if weights is None else list(weights)
    if len(shares) != len(adapters):
        raise ValueError(f"weights must be {len(adapters)}, one an adapter, got {len(shares)}")
    if min(shares) < 0 or not sum(shares) > 0:
        raise ValueError(f"weights must be at least 0 and not all zero, got {shares}")
    names = adapters[0].keys()
    for position, adapter in enumerate(adapters):
        if adapter.keys() != names:
            strangers = sorted(adapter.keys() ^ names)
            raise ValueError(
                f"adapters must be of the same modules, adapters[{position}] differs from the "
                f"first in {strangers[:3]}"
            )
    moved = {
        name
        for name in names
        if not all(torch.equal(adapter[name], adapters[0][name]) for adapter in adapters)
    }
    for name in sorted(moved):
        other = name.replace("lora_A", "lora_B")
        if "lora_A" in name and other in moved:
            raise ValueError(
                f"adapters must differ in one factor of a module, got different {name!r} and "
                f"{other!r}: the mean of the products is not the product of the means; train the "
                "clients with Alternation, from a common adapter, for one round"
            )
    return {
        name: _mean([adapter[name] for adapter in adapters], shares)
        if name in moved
        else adapters[0][name].clone()
        for name in names
    }


def _mean(values: list[Tensor], shares: list[float]) -> Tensor:
    dtype = widen(values[0].dtype)
    terms = [share * value.to(dtype) for share, value in zip(shares, values, strict=True)]
    return (torch.stack(terms).sum(0) / sum(shares)).to(values[0].dtype)
