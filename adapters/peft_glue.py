"""The only module that touches PEFT's private extension points (written for peft 0.21).

PEFT has no entry point for methods from outside. Four of its mechanisms are used here, none of
them public: the three dictionaries behind ``get_peft_model``, the map of custom modules of
``LoraConfig``, ``LoraVariant`` and ``lora.layer.Linear``. A change in any of them is met here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, TypeVar

from peft import LoraConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.lora import LoraModel
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import (  # type: ignore[attr-defined]
    Conv1D,
    Linear,
    LoraLayer,
    LoraVariant,
)
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

__all__ = [
    "CONFIG_NAME",
    "SAFETENSORS_WEIGHTS_NAME",
    "BiLevelConfig",
    "BiLevelLinear",
    "BiLevelVariant",
    "DoraLinearVariant",
    "Factors",
    "LoraLayer",
    "LoraModel",
    "adapted_layers",
    "factors",
    "magnitude_layer",
    "register",
]

V = TypeVar("V", bound="BiLevelVariant")
INITS = (True, False, "gaussian")


class ExternalPeftType(str):
    """A PEFT type defined outside PEFT.

    Where PEFT and transformers handle a ``peft.PeftType``, they compare it with strings, hash it
    or read its ``value``; this class answers all three. The enumeration cannot be extended.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """The type as a plain string."""
        return str.__str__(self)

    @property
    def value(self) -> str:
        """The type as a plain string."""
        return str.__str__(self)


def register(peft_type: str, config: type[LoraConfig], model: type[LoraModel]) -> ExternalPeftType:
    """The type under which PEFT saves, loads and injects adapters with this config."""
    known = ExternalPeftType(peft_type)
    PEFT_TYPE_TO_CONFIG_MAPPING[known] = config  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[known] = model  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[known] = "lora_"  # type: ignore[index]
    return known


class BiLevelVariant(LoraVariant):
    """What one method adds to a LoRA layer: its parameters, its forward pass, its merge."""

    upper: ClassVar[str]
    """Name of the layer's dictionary (adapter -> parameters) that the upper level owns."""
    level: Literal["upper", "lower"] = "upper"
    """Whether it does; "lower" for a method that trains everything on one level."""

    def delta_weight(self, layer: LoraLayer, adapter: str) -> Tensor | None:
        """The change of the weight, ``(out, in)``, or None for LoRA's own ``scale * B A``."""
        return None


@dataclass
class BiLevelConfig(LoraConfig):
    """A ``LoraConfig`` whose layers are `BiLevelLinear`: the base of BiLoRA's and BiDoRA's.

    Adapts ``torch.nn.Linear`` and GPT-2's ``Conv1D``; which of the two decides ``fan_in_fan_out``.
    """

    own_variants: ClassVar[frozenset[str]] = frozenset()
    """The LoRA variants, as PEFT calls them, that the method itself turns on."""

    def variant(self) -> BiLevelVariant:
        """What the method adds to a layer."""
        raise NotImplementedError(f"{type(self).__name__} defines no variant")

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        method = type(self).__name__
        if self.init_lora_weights not in INITS:
            raise ValueError(
                f"init_lora_weights must be one of {INITS} for {method}, got "
                f"{self.init_lora_weights!r}: the others change the base weights"
            )
        for option in ("target_parameters", "megatron_config", "use_qalora", "lora_bias"):
            if getattr(self, option):
                raise ValueError(
                    f"{option} is not supported by {method}, got {getattr(self, option)!r}; adapt "
                    "whole torch.nn.Linear or Conv1D modules through target_modules"
                )
        for field in fields(self):
            foreign = field.metadata.get("is_lora_variant") and field.name not in self.own_variants
            if foreign and getattr(self, field.name):
                raise ValueError(
                    f"{field.name} cannot be combined with {method}, got "
                    f"{getattr(self, field.name)!r}; leave it at its default"
                )
        # The first match wins; the last entry refuses what the others do not adapt.
        self._register_custom_module(
            {nn.Linear: BiLevelLinear, Conv1D: BiLevelLinear, nn.Module: _Unsupported}
        )


class BiLevelLinear(Linear):
    """PEFT's LoRA layer, able to hold adapters whose parameters belong to two levels."""

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any
    ) -> None:
        """Adds the parameters of one adapter."""
        base = self.get_base_layer()
        _refuse_quantised(base)
        config.fan_in_fan_out = self.fan_in_fan_out = isinstance(base, Conv1D)
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        """The method of one adapter: a layer may hold BiDoRA, DoRA and LoRA adapters at once."""
        if isinstance(config, BiLevelConfig):
            return config.variant()
        return super().resolve_lora_variant(config=config, **kwargs)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change of the weight that a merge adds, laid out as the base weight."""
        variant: LoraVariant | None = self.lora_variant.get(adapter)
        delta = None
        if isinstance(variant, BiLevelVariant):
            delta = variant.delta_weight(self, adapter)
        if delta is None:
            return super().get_delta_weight(adapter)
        return delta.T if self.fan_in_fan_out else delta


class _Unsupported(nn.Module):
    """Raises a TypeError instead of adapting a module that the bi-level layers cannot hold."""

    def __init__(self, target: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        super().__init__()
        _refuse(target)


def _refuse(target: nn.Module) -> NoReturn:
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    raise TypeError(
        f"target_modules selects a {type(base).__module__}.{type(base).__qualname__}; the bi-level "
        "adapters support torch.nn.Linear and GPT-2's Conv1D with floating point weights. Load the "
        "base model without quantisation, or select other modules"
    )


def _refuse_quantised(base: nn.Module) -> None:
    """Quantised layers subclass ``nn.Linear`` and would silently take the float path."""
    weight = base.weight
    if not isinstance(weight, Tensor) or not type(weight).__module__.startswith("torch."):
        _refuse(base)
    if not weight.is_floating_point() or weight.itemsize < 2:
        _refuse(base)
    rows, columns = (1, 0) if isinstance(base, Conv1D) else (0, 1)
    features = (getattr(base, "out_features", None), getattr(base, "in_features", None))
    packed = weight.dim() != 2 or (
        None not in features and features != (weight.shape[rows], weight.shape[columns])
    )
    if packed:
        _refuse(base)


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
    """The tensors of one adapter of one layer."""
    base: Any = layer.get_base_layer()
    weight = base.weight.T if getattr(layer, "fan_in_fan_out", False) else base.weight
    A: Any = layer.lora_A[adapter]
    B: Any = layer.lora_B[adapter]
    return Factors(weight, base.bias, A.weight, B.weight, layer.scaling[adapter])


def adapted_layers(
    model: nn.Module, variant: type[V], adapter_name: str | None = None
) -> Iterator[tuple[str, str, BiLevelLinear, V]]:
    """Name, adapter, layer and method of every adapter of this kind, in the model's order.

    Args:
        model: any module.
        variant: the kind of method.
        adapter_name: one adapter, active or not; None for the active ones.
    """
    for name, module in model.named_modules():
        if isinstance(module, BiLevelLinear):
            for adapter in module.active_adapters if adapter_name is None else [adapter_name]:
                found = module.lora_variant.get(adapter)
                if isinstance(found, variant):
                    yield name, adapter, module, found


def magnitude_layer(layer: LoraLayer, magnitude: Tensor) -> nn.Module:
    """The module under which PEFT keeps, saves and merges a DoRA magnitude."""
    holder: nn.Module = DoraLinearLayer(getattr(layer, "fan_in_fan_out", False))
    holder.weight = nn.Parameter(magnitude)
    return holder
