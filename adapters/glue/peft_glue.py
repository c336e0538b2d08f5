"""The only module that touches PEFT's private extension points (written for peft 0.21).

PEFT has no entry point for methods from outside. Four of its mechanisms are used here, none of
them public: the three dictionaries behind ``get_peft_model``, the map of custom modules of
``LoraConfig``, ``LoraVariant`` and ``lora.layer.Linear``. A change in any of them is met here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, TypeVar

import torch
import torch.nn.functional as F
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
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from torch import Tensor, nn

from adapters.glue.masks import Masks

__all__ = [
    "CONFIG_NAME",
    "MASK_LOGIT",
    "SAFETENSORS_WEIGHTS_NAME",
    "AdditiveVariant",
    "BiLevelConfig",
    "BiLevelLinear",
    "BiLevelVariant",
    "DoraLinearVariant",
    "Factors",
    "FactorsOnlyModel",
    "LoraLayer",
    "LoraModel",
    "PlainVariant",
    "adapted_layers",
    "adapted_linears",
    "add_parameter",
    "factors",
    "factors_in_use",
    "lora_layers",
    "low_rank_factors",
    "magnitude_layer",
    "mask_logit",
    "register",
    "restart_factors",
    "restart_saved_modules",
]

V = TypeVar("V", bound="BiLevelVariant")
INITS = (True, False, "gaussian")
MASK_LOGIT = "lora_mask_logit"


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

    masks: Masks | None = None
    """LoRA Dropout's masks on the factors."""

    @property
    def upper_containers(self) -> tuple[str, ...]:
        """The names of the layer's dictionaries that the upper level owns."""
        own = (self.upper,) if self.level == "upper" else ()
        return (*own, MASK_LOGIT) if self.masks is not None and self.masks.learned else own

    def delta_weight(self, layer: LoraLayer, adapter: str) -> Tensor | None:
        """The change of the weight, ``(out, in)``, or None for LoRA's own ``scale * B A``.

        Without masks; `BiLevelLinear.get_delta_weight` multiplies it by their mean.
        """
        return None


class AdditiveVariant(BiLevelVariant):
    """A variant that adds a matrix to the weight: how it merges."""

    @staticmethod
    @torch.no_grad()
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The base weight with the adapter added, in a new tensor."""
        return orig_weight + _delta(module, active_adapter, orig_weight)

    @staticmethod
    @torch.no_grad()
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Adds the adapter to the base weight in place."""
        orig_weight.add_(_delta(module, active_adapter, orig_weight))

    @staticmethod
    @torch.no_grad()
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The base weight with the adapter taken out."""
        return orig_weight.detach() - _delta(module, active_adapter, orig_weight)


class PlainVariant(AdditiveVariant):
    """LoRA's own ``dW = s B A``, with masks on the factors where they are wanted."""

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Adds nothing to A and B."""

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """``result + s B A x``."""
        _, _, A, B, scale = factors_in_use(module, active_adapter)
        return result + F.linear(F.linear(module.lora_dropout[active_adapter](x), A), B) * scale


def _delta(module: LoraLayer, adapter: str, weight: Tensor) -> Tensor:
    assert isinstance(module, BiLevelLinear)
    return module.get_delta_weight(adapter).to(weight.dtype)


class FactorsOnlyModel(LoraModel):
    """PEFT's LoRA model, less what would combine A and B and drop the rest without a word."""

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses: PEFT combines A and B alone."""
        raise NotImplementedError(
            "add_weighted_adapter would ignore all but A and B; write each adapter as a plain PEFT "
            "checkpoint with adapters.export_lora and combine those"
        )


@dataclass
class BiLevelConfig(LoraConfig):
    """A ``LoraConfig`` whose layers are `BiLevelLinear`: the base of BiLoRA's and BiDoRA's.

    Adapts ``torch.nn.Linear`` and GPT-2's ``Conv1D``; which of the two decides ``fan_in_fan_out``.
    """

    mask_rate: float = field(
        default=0.0,
        metadata={
            "help": "LoRA Dropout: the probability that a mask drops an input of A or an output "
            "of B.",
            "is_lora_variant": True,
        },
    )
    mask_inverted: bool = field(
        default=False, metadata={"help": "LoRA Dropout: divide each mask by 1 - mask_rate."}
    )
    learn_mask_rate: bool = field(
        default=False,
        metadata={"help": "LoRA Dropout: learn one rate a layer at the upper level."},
    )
    mask_temperature: float = field(
        default=0.1, metadata={"help": "LoRA Dropout: temperature of masks with learned rates."}
    )
    own_variants: ClassVar[frozenset[str]] = frozenset()
    """The LoRA variants, as PEFT calls them, that the method itself turns on; "mask_rate" where the
    factors may be masked."""

    def variant(self) -> BiLevelVariant:
        """What the method adds to a layer."""
        raise NotImplementedError(f"{type(self).__name__} defines no variant")

    def masks(self) -> Masks | None:
        """The masks on a layer's factors, or None without LoRA Dropout."""
        if self.mask_rate == 0:
            return None
        return Masks(
            rate=self.mask_rate,
            inverted=self.mask_inverted,
            learned=self.learn_mask_rate,
            temperature=self.mask_temperature,
        )

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
        foreign = [
            option.name
            for option in fields(self)
            if option.metadata.get("is_lora_variant") and option.name not in self.own_variants
        ]
        for option in foreign:
            if getattr(self, option):
                raise ValueError(
                    f"{option} cannot be combined with {method}, got {getattr(self, option)!r}; "
                    "leave it at its default"
                )
        if not 0 <= self.mask_rate < 1:
            raise ValueError(f"mask_rate must be in [0, 1) for {method}, got {self.mask_rate!r}")
        if self.learn_mask_rate and not self.mask_rate > 0:
            raise ValueError(
                f"learn_mask_rate=True needs a mask_rate above 0 to start from for {method}, got "
                f"{self.mask_rate!r}"
            )
        if not self.mask_temperature > 0:
            raise ValueError(
                f"mask_temperature must be above 0 for {method}, got {self.mask_temperature!r}"
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
        if isinstance(config, BiLevelConfig) and config.learn_mask_rate:
            start = torch.logit(torch.tensor([config.mask_rate]))
            add_parameter(self, MASK_LOGIT, adapter_name, start)
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        """The method of one adapter: a layer may hold BiDoRA, DoRA and LoRA adapters at once."""
        if isinstance(config, BiLevelConfig):
            variant = config.variant()
            variant.masks = config.masks()
            return variant
        return super().resolve_lora_variant(config=config, **kwargs)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change of the weight that a merge adds, laid out as the base weight."""
        variant: LoraVariant | None = self.lora_variant.get(adapter)
        delta = None
        if isinstance(variant, BiLevelVariant):
            delta = variant.delta_weight(self, adapter)
        if delta is None:
            delta = super().get_delta_weight(adapter)
        elif self.fan_in_fan_out:
            delta = delta.T
        if isinstance(variant, BiLevelVariant) and variant.masks is not None:
            delta = delta * variant.masks.expected(mask_logit(self, adapter))
        return delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds adapters to the base weight.

        Raises:
            ValueError: Masks are on, so that the layer computes something else every time.
        """
        for adapter in self.active_adapters if adapter_names is None else adapter_names:
            variant: LoraVariant | None = self.lora_variant.get(adapter)
            masks = variant.masks if isinstance(variant, BiLevelVariant) else None
            if masks is not None and masks.on(training=self.training):
                raise ValueError(
                    f"adapter {adapter!r} cannot be merged while its masks are on: call "
                    "model.eval() first (and leave `masking`)"
                )
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)


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


def add_parameter(layer: LoraLayer, container: str, adapter: str, start: Tensor) -> None:
    """Adds a parameter of one adapter to a layer, in its dictionary of that name."""
    if not hasattr(layer, container):
        setattr(layer, container, nn.ParameterDict())
        layer.adapter_layer_names = (*layer.adapter_layer_names, container)
    getattr(layer, container)[adapter] = nn.Parameter(start)


def factors(layer: LoraLayer, adapter: str) -> Factors:
    """The tensors of one adapter of one layer."""
    base: Any = layer.get_base_layer()
    weight = base.weight.T if getattr(layer, "fan_in_fan_out", False) else base.weight
    A: Any = layer.lora_A[adapter]
    B: Any = layer.lora_B[adapter]
    return Factors(weight, base.bias, A.weight, B.weight, layer.scaling[adapter])


def factors_in_use(layer: LoraLayer, adapter: str) -> Factors:
    """The tensors of one adapter as a forward pass uses them.

    `factors` without LoRA Dropout. With it, A and B under new masks while those are on, and
    multiplied by the masks' mean while they are off.
    """
    weight, bias, A, B, scale = factors(layer, adapter)
    variant = layer.lora_variant.get(adapter)
    masks = variant.masks if isinstance(variant, BiLevelVariant) else None
    if masks is not None:
        assert isinstance(layer, BiLevelLinear)
        logit = mask_logit(layer, adapter)
        if masks.on(training=layer.training):
            A, B = masks.apply(A, B, logit)
        elif not masks.inverted:
            B = B * masks.expected(logit)
    return Factors(weight, bias, A, B, scale)


def mask_logit(layer: LoraLayer, adapter: str) -> Tensor | None:
    """The logit of a learned mask rate, shape ``(1,)``, or None where the rate is fixed."""
    logits = getattr(layer, MASK_LOGIT, None)
    if logits is None or adapter not in logits:
        return None
    logit: Tensor = logits[adapter]
    return logit


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


def lora_layers(model: nn.Module) -> Iterator[tuple[str, str, LoraLayer]]:
    """Name, adapter and layer of every active LoRA adapter, PEFT's own or ours, in order.

    Names are those of the model that was adapted.

    Raises:
        TypeError: An adapted module has no factors A and B that are matrices.
    """
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            if adapter not in module.scaling:
                continue
            if adapter not in module.lora_A or factors(module, adapter).A.dim() != 2:
                raise TypeError(
                    f"module {name!r} is adapted as {type(module).__name__}, without matrices A "
                    "and B; adapt torch.nn.Linear or Conv1D modules through target_modules"
                )
            yield name.removeprefix("base_model.model."), adapter, module


def magnitude_layer(layer: LoraLayer, magnitude: Tensor) -> nn.Module:
    """The module under which PEFT keeps, saves and merges a DoRA magnitude."""
    holder: nn.Module = DoraLinearLayer(getattr(layer, "fan_in_fan_out", False))
    holder.weight = nn.Parameter(magnitude)
    return holder


def restart_factors(layer: LoraLayer, adapter: str, init: bool | str) -> None:
    """Gives A and B of one adapter new values, as a new adapter gets them."""
    with torch.no_grad():
        layer.reset_lora_parameters(adapter, init)


def restart_saved_modules(model: nn.Module, adapter: str) -> None:
    """Gives the modules in ``modules_to_save`` the values of the base model."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            trained: Any = module.modules_to_save[adapter]
            trained.load_state_dict(module.original_module.state_dict())


def adapted_linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and layer of every ``nn.Linear`` or ``Conv1D`` that any of PEFT's methods adapts."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(
            module.get_base_layer(), (nn.Linear, Conv1D)
        ):
            yield name, module


def low_rank_factors(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """A and B of a layer's one active adapter, in float64; None where it has no such factors."""
    if not isinstance(layer, LoraLayer) or len(layer.active_adapters) != 1:
        return None
    (adapter,) = layer.active_adapters
    if adapter not in layer.lora_A:
        return None
    holders: Any = (layer.lora_A[adapter], layer.lora_B[adapter])
    A, B = (h if isinstance(h, Tensor) else h.weight for h in holders)  # AdaLoRA holds tensors
    return A.detach().double(), B.detach().double()
