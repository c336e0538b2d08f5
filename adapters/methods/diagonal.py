"""The layer ``dW = s B diag(g(d)) A`` behind BiLoRA and its relatives.

``d`` is one vector of length rank for each adapted module and ``g`` a map of the method: with the
identity the values may have any sign, with a softmax they share a budget, with a sigmoid they are
gates. A folds into plain LoRA exactly, with the same rank: ``B <- B diag(g(d))``.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.factors import LoraLayer, factors
from adapters.glue.masks import factors_in_use
from adapters.glue.norms import widen
from adapters.glue.variants import AdditiveVariant, add_parameter

__all__ = ["DiagonalVariant", "singular_values"]


class DiagonalVariant(AdditiveVariant):
    """One adapter of one layer, ``dW = s B diag(g(d)) A``.

    Args:
        values: g, from the shape of d to the same shape.
        start: what every entry of d starts at.
        noise: the standard deviation of the normal noise added to it.
        level: the level that d belongs to.
        tied: d has one entry, which all ranks share.
    """

    container = "lora_diagonal"

    def __init__(
        self,
        values: Callable[[Tensor], Tensor],
        *,
        start: float,
        noise: float = 0.0,
        level: Literal["upper", "lower"] = "upper",
        tied: bool = False,
    ) -> None:
        self.values = values
        self.start = start
        self.noise = noise
        self.level = level
        self.tied = tied

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Add d to the layer, next to the adapter's A and B."""
        variant = _variant(module, adapter_name)
        A = factors(module, adapter_name).A
        size = 1 if variant.tied else A.shape[0]
        diagonal = torch.full((size,), variant.start, dtype=A.dtype, device=A.device)
        if variant.noise:
            diagonal += variant.noise * torch.randn_like(diagonal)
        add_parameter(module, variant.container, adapter_name, diagonal)

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return ``result + s B (g(d) * A x)``."""
        values = _variant(module, active_adapter).singular_values(module, active_adapter)
        used = factors_in_use(module, active_adapter)
        hidden = F.linear(module.lora_dropout[active_adapter](x), used.A)
        return result + F.linear(hidden * (used.scale * values), used.B)

    def singular_values(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return ``g(d)``, shape ``(rank,)``."""
        values = self.values(self.parameters(layer, adapter))
        return values.expand(factors(layer, adapter).A.shape[0])

    def parameters(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return d, shape ``(rank,)``, or ``(1,)`` where it is tied."""
        d: Tensor = getattr(layer, self.container)[adapter]
        return d

    def folded_scale(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return ``g(d)``: ``B diag(g(d))`` is LoRA's B."""
        return self.singular_values(layer, adapter)

    def kept(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return which ranks a pruned adapter keeps, ``(rank,)``: those whose value is not zero."""
        return self.singular_values(layer, adapter).detach() != 0

    def delta_weight(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return ``s B diag(g(d)) A``, shape ``(out, in)``, in the precision of the factors."""
        pair = factors(layer, adapter)
        dtype = widen(pair.A.dtype)
        values = pair.scale * self.singular_values(layer, adapter).to(dtype)
        return ((pair.B.to(dtype) * values) @ pair.A.to(dtype)).to(pair.A.dtype)


def _variant(module: LoraLayer, adapter: str) -> DiagonalVariant:
    variant = module.lora_variant[adapter]
    assert isinstance(variant, DiagonalVariant)
    return variant


def singular_values(model: nn.Module) -> dict[str, Tensor]:
    """Return the singular values ``g(d)`` of every active adapter, by module name, detached.

    Raises:
        ValueError: if the model has no active adapter of this kind.

    Example:
        >>> import torch
        >>> from adapters import BiLoraConfig, singular_values
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> singular_values(model)
        {'base_model.model.0': tensor([0.5000, 0.5000])}
    """
    found = at_least_one(
        adapted_layers(model, DiagonalVariant),
        model,
        what="active adapter with singular values",
        config="BiLoraConfig",
    )
    return {
        name: variant.singular_values(layer, adapter).detach()
        for name, adapter, layer, variant in found
    }
