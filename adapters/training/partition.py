"""Which parameter belongs to which level."""

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from adapters.glue.adapted import adapted_layers
from adapters.glue.layers import LoraLayer
from adapters.glue.soundness import refuse_unused
from adapters.glue.variants import BiLevelVariant

__all__ = ["Levels", "levels"]

CONTAINERS = ("modules_to_save", "trainable_tokens_delta")


@dataclass(frozen=True)
class Levels:
    """The trainable parameters of one adapter, each in exactly one of two lists.

    Parameters are held as objects and by name, never by ``requires_grad``, which PEFT rewrites.

    Example:
        >>> import torch
        >>> from adapters import BiLoraConfig, levels
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> split = levels(get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"])))
        >>> [name.rpartition("0.")[2] for name in split.upper_names + split.lower_names]
        ['lora_diagonal.default', 'lora_A.default.weight', 'lora_B.default.weight']
    """

    upper: list[nn.Parameter]
    """BiLoRA's singular values, BiDoRA's magnitudes, AutoLoRA's selection variables, LoRA
    Dropout's rates where they are learned."""
    lower: list[nn.Parameter]
    """All other trainable parameters: A, B, heads in ``modules_to_save``, trained biases."""
    upper_names: list[str]
    """The names of `upper`, as in ``model.named_parameters()``."""
    lower_names: list[str]
    """The names of `lower`."""


def levels(model: nn.Module, adapter_name: str | None = None) -> Levels:
    """Return the two levels of the active adapter, a partition of its trainable parameters.

    Args:
        model: a PEFT model, or any module with injected adapters.
        adapter_name: the adapter, which must be active; needed where several are.

    Raises:
        ValueError: if no bi-level adapter is active, several are, the one named is frozen, or
            adapters take no part in what the model computes.

    Example:
        >>> import torch
        >>> from adapters import BiLoraConfig, levels
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> [tuple(parameter.shape) for parameter in levels(model).upper]
        [(2,)]
    """
    adapter = _active(model, adapter_name)
    refuse_unused(model)
    found = [each for each in adapted_layers(model, BiLevelVariant) if each[1] == adapter]
    upper = {
        f"{name}.{container}.{adapter}".removeprefix(".")
        for name, _, _, variant in found
        for container in variant.upper_containers
    }
    if not upper:
        remedies = sorted({variant.two_levels for *_, variant in found if variant.two_levels})
        raise ValueError(
            f"adapter {adapter!r} trains all its parameters on one level; with "
            f"{' or '.join(remedies)} it has two"
        )
    others = _adapters(model) - {adapter}
    named = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _owner(name) not in others
    ]
    above = [(name, p) for name, p in named if not upper.isdisjoint((name, _parent(name)))]
    below = [(name, p) for name, p in named if upper.isdisjoint((name, _parent(name)))]
    if not above or not below:
        raise ValueError(
            f"adapter {adapter!r} has {len(above)} trainable upper and {len(below)} trainable "
            "lower parameters; load it with is_trainable=True, or call model.set_adapter"
            f"({adapter!r})"
        )
    return Levels(
        [p for _, p in above], [p for _, p in below], [n for n, _ in above], [n for n, _ in below]
    )


def _active(model: nn.Module, adapter_name: str | None) -> str:
    active = sorted({adapter for _, adapter, _, _ in adapted_layers(model, BiLevelVariant)})
    if adapter_name is None and len(active) == 1:
        return active[0]
    if adapter_name in active:
        return adapter_name
    if active and adapter_name is None:
        raise ValueError(f"adapter_name must be given, several adapters are active: {active}")
    if active:
        raise ValueError(
            f"adapter_name must name an active bi-level adapter {active}, got {adapter_name!r}; "
            f"call model.set_adapter({adapter_name!r}) first"
        )
    known = sorted(_adapters(model))
    raise ValueError(
        f"model ({type(model).__name__}) has no active bi-level adapter (adapters: {known}); wrap "
        "it with get_peft_model(model, BiLoraConfig(...)) or BiDoraConfig. A BiDoRA checkpoint is "
        "a DoRA checkpoint: to train it further, load it with "
        "config=BiDoraConfig.from_pretrained(path)"
    )


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _owner(name: str) -> str | None:
    """Return the adapter of a parameter: what follows the container that PEFT keeps adapters in."""
    parts = name.split(".")
    for container, adapter in pairwise(parts):
        if container.startswith("lora_") or container in CONTAINERS:
            return adapter
    return None


def _adapters(model: nn.Module) -> set[str]:
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    return {adapter for layer in layers for adapter in layer.scaling}
