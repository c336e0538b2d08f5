"""The factors A and B of one adapter of one layer, with what they are added to."""

import math
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


def restart_factors(
    layer: LoraLayer, adapter: str, init: bool | str, *, rank: int | None = None
) -> None:
    """Give A and B of one adapter new values, as a new adapter gets them.

    With another rank they become new parameters; the scale stays.
    """
    if rank is not None and rank != layer.r[adapter]:
        pair = factors(layer, adapter)
        holders: Any = (layer.lora_A[adapter], layer.lora_B[adapter])
        values = (pair.A.new_empty(rank, pair.A.shape[1]), pair.B.new_empty(len(pair.B), rank))
        for holder, value in zip(holders, values, strict=True):
            holder.weight = nn.Parameter(value, requires_grad=holder.weight.requires_grad)
            holder.out_features, holder.in_features = value.shape
        layer.r[adapter] = rank
        root = math.sqrt if layer.use_rslora[adapter] else float
        layer.lora_alpha[adapter] = layer.scaling[adapter] * root(rank)
    with torch.no_grad():
        layer.reset_lora_parameters(adapter, init)
