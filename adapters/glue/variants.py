"""What a method adds to a LoRA layer, as a variant that PEFT's layer calls."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from adapters.glue.masks import MASK_LOGIT, Masks, factors_in_use

__all__ = [
    "AdditiveVariant",
    "BiLevelVariant",
    "DoraLinearVariant",
    "PlainVariant",
    "add_parameter",
    "magnitude_layer",
]


class BiLevelVariant(LoraVariant):
    """What one method adds to a LoRA layer: its parameters, its forward pass, its merge."""

    container: ClassVar[str] = ""
    """Name of the layer's dictionary (adapter -> parameters) that holds what the method adds."""
    level: Literal["upper", "lower"] = "upper"
    """The level that owns it; "lower" for a method that trains everything on one level."""

    two_levels: ClassVar[str] = ""
    """The config that gives an adapter of one level a second."""
    unexportable: ClassVar[str] = ""
    """Why no checkpoint of PEFT's own computes the same, where none does; follows the adapter."""

    masks: Masks | None = None
    """LoRA Dropout's masks on the factors."""

    @property
    def upper_containers(self) -> tuple[str, ...]:
        """The names of the layer's dictionaries that the upper level owns."""
        own = (self.container,) if self.container and self.level == "upper" else ()
        return (*own, MASK_LOGIT) if self.masks is not None and self.masks.learned else own

    def delta_weight(self, layer: LoraLayer, adapter: str) -> Tensor | None:
        """Return the change of the weight, ``(out, in)``, or None for LoRA's own ``scale * B A``.

        Without masks; the layer's ``get_delta_weight`` multiplies it by their mean.
        """
        return None

    def folded_scale(self, layer: LoraLayer, adapter: str) -> Tensor | None:
        """Return what plain LoRA multiplies the columns of B by, ``(rank,)`` or ``(1,)``.

        None where no plain LoRA computes what the method does. Without masks.
        """
        return None


class AdditiveVariant(BiLevelVariant):
    """A variant that adds a matrix to the weight: how it merges."""

    @staticmethod
    @torch.no_grad()
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the base weight with the adapter added, in a new tensor."""
        return orig_weight + _delta(module, active_adapter, orig_weight)

    @staticmethod
    @torch.no_grad()
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the adapter to the base weight in place."""
        orig_weight.add_(_delta(module, active_adapter, orig_weight))

    @staticmethod
    @torch.no_grad()
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the base weight with the adapter taken out."""
        return orig_weight.detach() - _delta(module, active_adapter, orig_weight)


class PlainVariant(AdditiveVariant):
    """LoRA's own ``dW = s B A``, with masks on the factors where they are wanted."""

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Add nothing to A and B."""

    def folded_scale(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return 1: the factors are LoRA's."""
        return torch.ones(1)

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return ``result + s B A x``."""
        used = factors_in_use(module, active_adapter)
        hidden = F.linear(module.lora_dropout[active_adapter](x), used.A)
        return result + F.linear(hidden, used.B) * used.scale


def add_parameter(layer: LoraLayer, container: str, adapter: str, start: Tensor) -> None:
    """Add a parameter of one adapter to a layer, in its dictionary of that name."""
    if not hasattr(layer, container):
        setattr(layer, container, nn.ParameterDict())
        layer.adapter_layer_names = (*layer.adapter_layer_names, container)
    getattr(layer, container)[adapter] = nn.Parameter(start)


def magnitude_layer(layer: LoraLayer, magnitude: Tensor) -> nn.Module:
    """Return the module under which PEFT keeps, saves and merges a DoRA magnitude."""
    holder: nn.Module = DoraLinearLayer(getattr(layer, "fan_in_fan_out", False))
    holder.weight = nn.Parameter(magnitude)
    return holder


def _delta(module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
    assert isinstance(module, Linear)
    return module.get_delta_weight(adapter).to(weight.dtype)
