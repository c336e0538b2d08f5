"""The factors A and B of one adapter of one layer, with what they are added to."""

from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

__all__ = ["Factors", "LoraLayer", "factors", "low_rank_factors", "restart_factors"]


class Factors(NamedTuple):
    """One adapter of one layer, ``dW = scale * B A`` up to what its method adds."""

    weight: Tensor
    """W0, frozen, ``(out, in)`` whatever the layer's own layout."""
    bias: Tensor | None
    A: Tensor
    """``(rank, in)``"""
    B: Tensor
    """``(out, rank)``"""
    scale: float


def factors(layer: LoraLayer, adapter: str) -> Factors:
    """Return the tensors of one adapter of one layer."""
    base: Any = layer.get_base_layer()
    weight = base.weight.T if getattr(layer, "fan_in_fan_out", False) else base.weight
    A: Any = layer.lora_A[adapter]
    B: Any = layer.lora_B[adapter]
    return Factors(weight, base.bias, A.weight, B.weight, layer.scaling[adapter])


def low_rank_factors(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return A and B of a layer's one active adapter, in float64; None where it has none."""
    if not isinstance(layer, LoraLayer) or len(layer.active_adapters) != 1:
        return None
    (adapter,) = layer.active_adapters
    if adapter not in layer.lora_A:
        return None
    holders: Any = (layer.lora_A[adapter], layer.lora_B[adapter])
    A, B = (h if isinstance(h, Tensor) else h.weight for h in holders)  # AdaLoRA holds tensors
    return A.detach().double(), B.detach().double()


def restart_factors(layer: LoraLayer, adapter: str, init: bool | str) -> None:
    """Give A and B of one adapter new values, as a new adapter gets them."""
    with torch.no_grad():
        layer.reset_lora_parameters(adapter, init)
