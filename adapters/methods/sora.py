"""SoRA: LoRA with a gate on every rank, driven to zero by a proximal step.

``W = W0 + s B diag(g) A`` and ``min L + lambda |g|_1``: each step of the optimizer is followed by
``g <- sign(g) max(|g| - eta lambda, 0)``, the proximal map of ``eta lambda |.|_1``. Ranks whose
gate is zero are dropped in the end.

Reference: Ding et al. (2023), arXiv:2311.11696.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.penalties import check_weight
from adapters.glue.registry import register
from adapters.methods.diagonal import DiagonalVariant
from adapters.methods.hooks import StepHook

__all__ = ["Shrinkage", "SoraConfig"]

LEVELS = ("lower", "upper")


def _gate(g: Tensor) -> Tensor:
    return g


class SoraVariant(DiagonalVariant):
    """One adapter of one layer, ``dW = s B diag(g) A``, g standard normal at the start."""

    two_levels = "SoraConfig(gate_level='upper')"

    def __init__(self, *, level: Literal["lower", "upper"]) -> None:
        super().__init__(_gate, start=0.0, noise=1.0, level=level)


@dataclass
class SoraConfig(BiLevelConfig):
    """Configuration of SoRA, for ``peft.get_peft_model``; every option of ``LoraConfig`` and one.

    B starts at zero and the gates are drawn from N(0, 1). Train with `Shrinkage` on the optimizer
    that holds the gates; then `ranks` counts what is left, and ``export_lora(..., prune=True)``
    drops the rest, exactly.

    Args:
        gate_level: the level of the gates. ``"lower"``, the paper's: one level, trained with A and
            B on the same data; `levels` refuses the model. ``"upper"``: held-out data fit the
            gates (``Differs from the paper``).

    Example:
        >>> from adapters import SoraConfig, singular_values
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, SoraConfig(r=2, target_modules=["0"]))
        >>> {name: gates.shape for name, gates in singular_values(model).items()}
        {'base_model.model.0': torch.Size([2])}

    Reference: Ding et al. (2023), arXiv:2311.11696.
    """

    gate_level: Literal["lower", "upper"] = field(
        default="lower",
        metadata={"help": "The level of the gates: 'lower' or 'upper'.", "is_lora_variant": True},
    )
    own_variants: ClassVar[frozenset[str]] = frozenset({"gate_level"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SORA
        if self.gate_level not in LEVELS:
            raise ValueError(f"gate_level must be one of {LEVELS}, got {self.gate_level!r}")

    def variant(self) -> SoraVariant:
        """Return what the method adds to a layer."""
        return SoraVariant(level=self.gate_level)


SORA = register("SORA", SoraConfig)


class Shrinkage(StepHook):
    """The proximal step on the gates of a model, after every step of an optimizer.

    ``g <- sign(g) max(|g| - eta lambda, 0)`` with eta the learning rate of the gate's parameter
    group at that step. With an adaptive optimizer this is still the group's learning rate, as in
    the paper. Only the gates are touched; gates that receive no gradient shrink too.

    Args:
        optimizer: the optimizer that holds the gates, all of them. The step is attached to it.
        model: a model with an active SoRA adapter.
        weight: lambda, at least 0; or a schedule, from the number of steps taken before to lambda.
        times_lr: shrink by ``eta lambda``, the paper's step; if False by lambda, as the authors'
            code does by default.

    Raises:
        ValueError: if the model has no active SoRA adapter, or a gate is not in `optimizer`.

    Example:
        >>> from adapters import Shrinkage, SoraConfig, ranks
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, SoraConfig(r=2, target_modules=["0"]))
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
        >>> shrinkage = Shrinkage(optimizer, model, weight=1e4)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> ranks(model)
        {'0': 0}

    Reference: Ding et al. (2023), arXiv:2311.11696.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        weight: float | Callable[[int], float],
        times_lr: bool = True,
    ) -> None:
        if not callable(weight):
            check_weight(weight)
        self.weight = weight
        self.times_lr = times_lr
        found = at_least_one(
            adapted_layers(model, SoraVariant),
            model,
            what="active SoRA adapter for Shrinkage",
            config="SoraConfig",
        )
        gates = {
            id(variant.parameters(layer, adapter)): f"{name}.{variant.container}.{adapter}"
            for name, adapter, layer, variant in found
        }
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for identity in gates.keys() - held:
            raise ValueError(
                f"optimizer must hold the gate {gates[identity]!r}; build it from the trainable "
                "parameters of the model"
            )
        self._gates = frozenset(gates)
        super().__init__(optimizer, after=self._shrink)

    @torch.no_grad()
    def _shrink(self, optimizer: torch.optim.Optimizer) -> None:
        weight = self.weight(self.num_steps) if callable(self.weight) else self.weight
        for group in optimizer.param_groups:
            amount = weight * float(group["lr"]) if self.times_lr else weight
            for parameter in group["params"]:
                if id(parameter) in self._gates:
                    parameter.copy_(F.softshrink(parameter, amount))
