"""PEFT's LoRA layer, able to hold adapters whose parameters belong to two levels."""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import (  # type: ignore[attr-defined]
    Conv1D,
    Linear,
    LoraLayer,
    LoraVariant,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from adapters.glue.joint import JointWatch
from adapters.glue.masks import MASK_LOGIT, Masks, mask_logit, masks_of
from adapters.glue.variants import BiLevelVariant, add_parameter

__all__ = ["BiLevelLinear", "LayerConfig", "LoraLayer"]

# TRL adds an adapter of this name, as a copy of the one called "default", to what is trained on.
REFERENCE = "ref"


class LayerConfig(LoraConfig):
    """A ``LoraConfig`` that says what its method adds to a layer."""

    def variant(self) -> BiLevelVariant:
        """Return what the method adds to a layer."""
        raise NotImplementedError(f"{type(self).__name__} defines no variant")

    def masks(self) -> Masks | None:
        """Return the masks on a layer's factors, or None without LoRA Dropout."""
        raise NotImplementedError(f"{type(self).__name__} defines no masks")

    def joint_watch(self) -> JointWatch | None:
        """Return what notices joint training of both levels, or None where that is meant."""
        return None

    def adapt_modules(self) -> None:
        """Let PEFT put `BiLevelLinear` around what it can hold, and refuse all else."""
        # The first match wins; the last entry refuses what the others do not adapt.
        self._register_custom_module(
            {nn.Linear: BiLevelLinear, Conv1D: BiLevelLinear, nn.Module: _Unsupported}
        )


class BiLevelLinear(Linear):
    """PEFT's LoRA layer, able to hold adapters whose parameters belong to two levels."""

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any
    ) -> None:
        """Add the parameters of one adapter."""
        base = self.get_base_layer()
        _refuse_quantised(base)
        config.fan_in_fan_out = self.fan_in_fan_out = isinstance(base, Conv1D)
        masks = config.masks() if isinstance(config, LayerConfig) else None
        if masks is not None and masks.learned:
            add_parameter(self, MASK_LOGIT, adapter_name, torch.logit(torch.tensor([masks.rate])))
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)
        if isinstance(config, LayerConfig):
            self._watch(adapter_name, config.joint_watch())
        if adapter_name == REFERENCE:
            self._refer_to("default")

    def _refer_to(self, adapter: str) -> None:
        """Give the reference what its method adds to another adapter of the same kind: TRL copies
        what it finds by ".default." in names, and "lora_diagonal.default" ends there.
        """
        kinds = {type(self.lora_variant.get(name)) for name in (REFERENCE, adapter)}
        for container in self.adapter_layer_names if len(kinds) == 1 else ():
            held = getattr(self, container, None)
            if isinstance(held, nn.ParameterDict) and {REFERENCE, adapter} <= {*held}:
                own, other = held[REFERENCE], held[adapter]
                if own.shape == other.shape:
                    with torch.no_grad():
                        own.copy_(other)

    def _watch(self, adapter_name: str, watch: JointWatch | None) -> None:
        """Have a backward pass through both levels of an adapter noticed."""
        variant = self.lora_variant.get(adapter_name)
        if watch is None or not isinstance(variant, BiLevelVariant):
            return
        above = [
            p
            for name in variant.upper_containers
            for p in _parameters(getattr(self, name)[adapter_name])
        ]
        below = [
            p
            for name in ("lora_A", "lora_B")
            for p in getattr(self, name)[adapter_name].parameters()
        ]
        for level, parameters in (("upper", above), ("lower", below)):
            for parameter in parameters if above else ():
                watch.over(parameter, level)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load the layer's parameters, which PEFT lets be incomplete: it loads all it finds."""
        for adapter in self.lora_A:
            if f"{prefix}lora_A.{adapter}.weight" in state_dict:
                _check_checkpoint(self, adapter, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        """Return the method of one adapter: a layer may hold BiDoRA, DoRA and LoRA at once."""
        if isinstance(config, LayerConfig):
            variant = config.variant()
            variant.masks = config.masks()
            return variant
        return super().resolve_lora_variant(config=config, **kwargs)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return the change of the weight that a merge adds, laid out as the base weight."""
        variant: LoraVariant | None = self.lora_variant.get(adapter)
        delta = None
        if isinstance(variant, BiLevelVariant):
            delta = variant.delta_weight(self, adapter)
        if delta is None:
            delta = super().get_delta_weight(adapter)
        elif self.fan_in_fan_out:
            delta = delta.T
        masks = masks_of(self, adapter)
        return delta if masks is None else delta * masks.expected(mask_logit(self, adapter))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight.

        Raises:
            ValueError: if masks are on, so that the layer computes something else every time.
        """
        for adapter in self.active_adapters if adapter_names is None else adapter_names:
            masks = masks_of(self, adapter)
            if masks is not None and masks.on(training=self.training):
                raise ValueError(
                    f"adapter {adapter!r} cannot be merged while its masks are on: call "
                    "model.eval() first (and leave `masking`)"
                )
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)

    def keep_for_unmerging(self, adapter: str, value: Tensor) -> None:
        """Keep what a merge has multiplied the weight by, until the adapter is taken out."""
        self._cache_store(f"{adapter}-merged", value)

    def kept_for_unmerging(self, adapter: str) -> Tensor:
        """Return what the merge has kept, and forget it."""
        kept: Tensor = self._cache_pop(f"{adapter}-merged")
        return kept


def _check_checkpoint(
    layer: BiLevelLinear, adapter: str, state_dict: Mapping[str, Any], prefix: str
) -> None:
    """Raise ValueError unless a checkpoint holds what the configuration of an adapter says."""
    wanted = {
        f"{prefix}{name}": tuple(value.shape)
        for name, value in layer.named_parameters()
        if name.split(".")[1] == adapter and not name.startswith("base_layer.")
    }
    found = {
        key: tuple(value.shape)
        for key, value in state_dict.items()
        if key.startswith(f"{prefix}lora_")
        and key[len(prefix) :].split(".")[1:2] in ([], [adapter])  # PEFT names what it knows
    }
    odd = sorted(set(wanted.items()) ^ set(found.items()))
    if odd:
        key = odd[0][0]
        then, now = (
            f"has the shape {shapes[key]}" if key in shapes else "is not there"
            for shapes in (found, wanted)
        )
        raise ValueError(
            f"the checkpoint of adapter {adapter!r} contradicts its configuration: {key} {then} in "
            f"the checkpoint, and by the configuration it {now}; load it with the "
            "adapter_config.json that was saved with it"
        )


def _parameters(held: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [held] if isinstance(held, nn.Parameter) else list(held.parameters())


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
    """Refuse quantised layers, which subclass ``nn.Linear`` and would take the float path."""
    weight = base.weight
    if not isinstance(weight, Tensor) or not type(weight).__module__.startswith("torch."):
        _refuse(base)
    if not weight.is_floating_point() or weight.itemsize < 2:
        _refuse(base)
    if _packed(base, weight):
        _refuse(base)


def _packed(base: nn.Module, weight: Tensor) -> bool:
    """Return whether a weight has another shape than its module says."""
    if weight.dim() != 2:
        return True
    rows, columns = reversed(weight.shape) if isinstance(base, Conv1D) else weight.shape
    features = (getattr(base, "out_features", None), getattr(base, "in_features", None))
    return None not in features and features != (rows, columns)
