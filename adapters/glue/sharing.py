"""Parameters that several adapted layers share: one layer owns them, the others refer to it.

A parameter registered twice would be saved twice and come back as two; a reference is neither saved
nor moved, and a copy of the model refers to its own owner.
"""

from typing import Any

from torch import nn

from adapters.glue.adapted import adapted_layers
from adapters.glue.layers import BiLevelLinear, LoraLayer
from adapters.glue.registry import WRAPPER, FactorsOnlyModel
from adapters.glue.variants import BiLevelVariant

__all__ = ["SharedVariant", "SharingModel", "freeze", "layer_of", "parent_of"]


class SharedVariant(BiLevelVariant):
    """A variant some of whose parameters belong to a group of layers."""

    shared: tuple[str, ...] = ()
    """The names of the dictionaries that one layer of the group keeps for all."""
    owner: LoraLayer | None = None
    """The layer that keeps them; None before the groups are known."""

    def group(self, name: str, layer: LoraLayer, adapter: str) -> str:
        """Return what the layers of one group have in common, from the name of the module."""
        return name

    def keeper(self, layer: LoraLayer) -> LoraLayer:
        """Return the layer that keeps the parameters of a layer's group."""
        return layer if self.owner is None else self.owner


class SharingModel(FactorsOnlyModel):
    """PEFT's LoRA model, whose layers share what a `SharedVariant` says."""

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Adapt the model, then leave each shared parameter with the first layer of its group."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        owners: dict[str, BiLevelLinear] = {}
        for name, _, layer, variant in adapted_layers(model, SharedVariant, adapter_name):
            group = variant.group(name.removeprefix(WRAPPER), layer, adapter_name)
            variant.owner = owner = owners.setdefault(group, layer)
            if owner is not layer:
                for container in variant.shared:
                    del getattr(layer, container)[adapter_name]


def freeze(layer: LoraLayer, adapter: str, *containers: str) -> None:
    """Let PEFT leave these dictionaries' entries of one adapter untrained, whatever is active."""
    frozen = dict(layer.frozen_peft_weight_names)
    frozen[adapter] = tuple(dict.fromkeys((*frozen.get(adapter, ()), *containers)))
    layer.frozen_peft_weight_names = frozen
    layer._freeze_non_trainable_peft_weights(adapter)


def layer_of(name: str) -> str:
    """Return the block of a transformer that a module is in: its name up to the first number.

    The name itself where it has no number.
    """
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def parent_of(name: str) -> str:
    """Return the name of the module that a module is a part of."""
    return name.rpartition(".")[0]
