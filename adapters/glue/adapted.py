"""The adapted layers of a model, found by kind."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from peft.tuners.lora.layer import Conv1D, LoraLayer  # type: ignore[attr-defined]
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from adapters.glue.factors import factors
from adapters.glue.layers import BiLevelLinear
from adapters.glue.variants import BiLevelVariant

__all__ = [
    "adapted_layers",
    "adapted_linears",
    "at_least_one",
    "lora_layers",
    "restart_saved_modules",
]

T = TypeVar("T")
V = TypeVar("V", bound=BiLevelVariant)


def adapted_layers(
    model: nn.Module, variant: type[V], adapter_name: str | None = None
) -> Iterator[tuple[str, str, BiLevelLinear, V]]:
    """Return name, adapter, layer and method of every adapter of this kind, in the model's order.

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
    """Return name, adapter and layer of every active LoRA adapter, PEFT's own or ours, in order.

    Names are those of the model that was adapted.

    Raises:
        TypeError: if an adapted module has no factors A and B that are matrices.
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


def adapted_linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Return name and layer of every ``nn.Linear`` or ``Conv1D`` that a method of PEFT adapts."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(
            module.get_base_layer(), (nn.Linear, Conv1D)
        ):
            yield name, module


def at_least_one(
    found: Iterable[T], model: nn.Module, *, what: str, config: str, otherwise: str = ""
) -> list[T]:
    """Return what was found in a model as a list.

    Args:
        found: from `adapted_layers`, `lora_layers` or `adapted_linears`.
        model: where it was looked for.
        what: what is looked for, such as "active LoRA adapter".
        config: the name of a config that brings it.
        otherwise: what else does, after "get_peft_model(model, config(...))".

    Raises:
        ValueError: if there is nothing.
    """
    items = list(found)
    if not items:
        raise ValueError(
            f"model ({type(model).__name__}) has no {what}; wrap it with "
            f"get_peft_model(model, {config}(...)){otherwise}"
        )
    return items


def restart_saved_modules(model: nn.Module, adapter: str) -> None:
    """Give the modules in ``modules_to_save`` the values of the base model."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            trained: Any = module.modules_to_save[adapter]
            trained.load_state_dict(module.original_module.state_dict())
