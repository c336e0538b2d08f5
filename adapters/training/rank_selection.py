"""Ranks that a method has selected, and stock LoRA of those ranks."""

import copy
import math
import re
from dataclasses import fields

from peft import LoraConfig
from torch import nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.layers import LoraLayer
from adapters.methods.diagonal import DiagonalVariant

__all__ = ["rank_pattern", "ranks", "retrain_config"]

WRAPPER = "base_model.model."


def ranks(model: nn.Module, adapter_name: str | None = None) -> dict[str, int]:
    """Return the selected rank of every adapted module, by its name in the model that was adapted.

    AutoLoRA selects the ranks whose share is at least 1/r, at least one; the others those whose
    value is not zero, possibly none.

    Args:
        model: a model with an AutoLoRA, SoRA or BiLoRA adapter.
        adapter_name: the adapter; the active ones if None.

    Raises:
        ValueError: if the model has no such adapter.

    Example:
        >>> import torch
        >>> from adapters import SoraConfig, levels, ranks
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> config = SoraConfig(r=3, gate_level="upper", target_modules=["0"])
        >>> model = get_peft_model(net, config)
        >>> _ = levels(model).upper[0].data.copy_(torch.tensor([0.5, 0.0, -1.0]))
        >>> ranks(model)
        {'0': 2}
    """
    return {name: selected for name, _, selected, _ in _selected(model, adapter_name)}


def rank_pattern(model: nn.Module, adapter_name: str | None = None) -> dict[str, int]:
    """Return the selected ranks as ``LoraConfig(rank_pattern=...)`` takes them.

    The keys are regular expressions that match one module each; a rank of 0 becomes 1, the lowest
    that PEFT has.

    Args:
        model: as in `ranks`.
        adapter_name: as in `ranks`.

    Raises:
        ValueError: if the model has no such adapter.

    Example:
        >>> import torch
        >>> from adapters import AutoLoraConfig, rank_pattern
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> rank_pattern(get_peft_model(net, AutoLoraConfig(r=2, target_modules=["0"])))
        {'^0': 2}
    """
    return {pattern(name): max(1, rank) for name, rank in ranks(model, adapter_name).items()}


def alpha_pattern(model: nn.Module, adapter_name: str | None = None) -> dict[str, float]:
    """Return the alphas with which LoRA of the selected ranks keeps every module's scale."""
    found = {}
    for name, adapter, selected, layer in _selected(model, adapter_name):
        root = math.sqrt if layer.use_rslora[adapter] else float
        alpha = layer.lora_alpha[adapter] * root(max(1, selected)) / root(layer.r[adapter])
        found[pattern(name)] = int(alpha) if alpha.is_integer() else alpha
    return found


def retrain_config(model: nn.Module, adapter_name: str | None = None) -> LoraConfig:
    """Return a plain ``LoraConfig`` of the selected ranks, to retrain from the frozen model.

    Everything else is as it was in the search. Each module keeps its scale s: ``alpha_pattern``
    makes up for the rank that it is divided by.

    Args:
        model: as in `ranks`.
        adapter_name: as in `ranks`, but only one.

    Raises:
        ValueError: if the model has no such adapter, or several are active.

    Example:
        >>> import torch
        >>> from adapters import AutoLoraConfig, levels, retrain_config
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, AutoLoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
        >>> _ = levels(model).upper[0].data.copy_(torch.tensor([1.0, 1.0, -1.0, -1.0]))
        >>> config = retrain_config(model)
        >>> config.rank_pattern, config.alpha_pattern
        ({'^0': 2}, {'^0': 4})

    Reference: Zhang, Qiang, Somayajula and Xie (2024), arXiv:2403.09113.
    """
    adapters = {adapter for _, adapter, _, _ in _selected(model, adapter_name)}
    if len(adapters) > 1:
        raise ValueError(
            f"adapter_name must be given, several adapters are active: {sorted(adapters)}"
        )
    searched: LoraConfig = model.peft_config[adapters.pop()]  # type: ignore[assignment,index]
    settings = {
        field.name: copy.deepcopy(getattr(searched, field.name)) for field in fields(LoraConfig)
    }
    settings |= {
        "inference_mode": False,
        "rank_pattern": rank_pattern(model, adapter_name),
        "alpha_pattern": alpha_pattern(model, adapter_name),
    }
    return LoraConfig(**settings)


def pattern(name: str) -> str:
    """Return the key of ``rank_pattern`` for a module; PEFT matches from any dot to the end."""
    return f"^{re.escape(name)}"


def _selected(model: nn.Module, adapter_name: str | None) -> list[tuple[str, str, int, LoraLayer]]:
    which = "active adapter" if adapter_name is None else f"adapter {adapter_name!r}"
    found = at_least_one(
        adapted_layers(model, DiagonalVariant, adapter_name),
        model,
        what=f"{which} that selects ranks",
        config="AutoLoraConfig",
        otherwise=" or SoraConfig",
    )
    return [
        (name.removeprefix(WRAPPER), adapter, int(variant.kept(layer, adapter).sum()), layer)
        for name, adapter, layer, variant in found
    ]
