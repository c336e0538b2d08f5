"""RAC-LoRA: a chain of LoRA adapters, each with one random and one trained factor.

``W_{t+1} = W_t + s B_t A_t``: one factor is drawn at random and fixed, the other starts at zero and
is trained, the product is merged into the weight, and so on. A chain of any rank converges to what
training the weights themselves converges to, which a single adapter of that rank does not.

Reference: Malinovsky et al. (2024), arXiv:2410.08305.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from torch import nn

from adapters.glue.adapted import lora_layers
from adapters.glue.factors import LoraLayer, factors

__all__ = ["Link", "chain"]

FACTORS = ("A", "B")


@dataclass(frozen=True)
class Link:
    """One link of a chain, to be trained before the next is asked for.

    Example:
        >>> import torch
        >>> from adapters import chain
        >>> from peft import LoraConfig, get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraConfig(r=1, target_modules=["0"]))
        >>> for link in chain(model, num_links=2):  # B alone, zero at the start
        ...     print(link.index, [parameter.tolist() for parameter in link.parameters])
        0 [[[0.0], [0.0], [0.0]]]
        1 [[[0.0], [0.0], [0.0]]]
    """

    index: int
    """0, 1, 2 and so on."""
    parameters: list[nn.Parameter]
    """What to train: one factor of every layer, and what else is trainable (heads, biases)."""


def chain(
    model: PeftModel,
    *,
    num_links: int,
    trained: Literal["A", "B"] = "B",
    generator: torch.Generator | None = None,
) -> Iterator[Link]:
    """Return the links of a chain: train what each holds, with an optimizer of its own.

    At the start of a link the trained factor is zero, so that the model computes what it did at the
    end of the last, and the other is drawn from N(0, 1/n) with n its inputs (A) or outputs (B): its
    rows or columns are about orthonormal. When the next link is asked for, the product is merged
    into the frozen weights, in place; after the last one too, and the adapter is then empty.
    ``model.merge_and_unload()`` returns the model; there is no small checkpoint of it.

    Args:
        model: a model with one active adapter of PEFT's own LoRA, on torch.nn.Linear or Conv1D.
        num_links: how often to draw, train and merge.
        trained: the factor that is trained.
        generator: where the random factors are drawn, a generator of the CPU; None for torch's own.

    Raises:
        ValueError: if the model has no plain LoRA adapter, more than one, or it is merged.

    Example:
        >>> import torch
        >>> from adapters import chain
        >>> from peft import LoraConfig, get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraConfig(r=1, target_modules=["0"]))
        >>> for link in chain(model, num_links=3):
        ...     optimizer = torch.optim.SGD(link.parameters, 0.1)
        ...     model(torch.ones(1, 4)).square().sum().backward()
        ...     optimizer.step()

    Reference: Malinovsky et al. (2024), arXiv:2410.08305.
    """
    if num_links < 1:
        raise ValueError(f"num_links must be at least 1, got {num_links!r}")
    if trained not in FACTORS:
        raise ValueError(f"trained must be one of {FACTORS}, got {trained!r}")
    layers = _plain_layers(model)
    # A generator function would leave mistakes for the first link to find.
    return _links(model, layers, num_links, trained, generator)


def _links(
    model: PeftModel,
    layers: list[tuple[str, LoraLayer]],
    num_links: int,
    trained: str,
    generator: torch.Generator | None,
) -> Iterator[Link]:
    for index in range(num_links):
        fixed = set()
        for adapter, layer in layers:
            pair = factors(layer, adapter)
            sampled, zero = (pair.A, pair.B) if trained == "B" else (pair.B, pair.A)
            features = pair.A.shape[1] if trained == "B" else pair.B.shape[0]
            drawn = torch.randn(sampled.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                sampled.copy_(drawn / features**0.5)
                zero.zero_()
            fixed.add(id(sampled))
        yield Link(index, [p for p in model.parameters() if p.requires_grad and id(p) not in fixed])
        model.merge_adapter()
        with torch.no_grad():
            for adapter, layer in layers:
                pair = factors(layer, adapter)
                (pair.B if trained == "B" else pair.A).zero_()
        model.unmerge_adapter()  # takes out a product that is zero by now


def _plain_layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    layers = []
    for name, adapter, layer in lora_layers(model):
        if adapter in layer.lora_variant or layer.lora_bias[adapter]:
            raise ValueError(
                f"adapter {adapter!r} of {name!r} must be plain LoRA to be chained, got a variant "
                "of it or lora_bias=True; build the model with LoraConfig(r=..., lora_alpha=...)"
            )
        if layer.merged:
            raise ValueError(
                f"adapter {adapter!r} is merged; call model.unmerge_adapter() before chain"
            )
        layers.append((adapter, layer))
    adapters = sorted({adapter for adapter, _ in layers})
    if len(adapters) != 1:
        raise ValueError(
            f"model must have one active LoRA adapter to be chained, got {adapters}; wrap it with "
            "get_peft_model(model, LoraConfig(...)), or call model.set_adapter"
        )
    return layers
