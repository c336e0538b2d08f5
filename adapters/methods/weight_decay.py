"""LoRA with learned weight decay: one coefficient for each layer, fitted to held-out data.

``min_w L2(A*(w), B*(w))`` with ``A*, B* = argmin L1 + 1/2 sum_l exp(w_l) (|A_l|^2 + |B_l|^2)``. The
held-out loss does not contain w: its hypergradient is the response of the lower level, and nothing
else, so that a method that leaves the response out learns nothing.

Ours, for adapters: that a weight decay for each part of a model can be learned on held-out data by
hypergradients is old.

Reference: Maclaurin, Duvenaud and Adams (2015), arXiv:1502.03492; Lorraine, Vicol and Duvenaud
(2020), arXiv:1911.02590.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.checks import check_positive
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.factors import LoraLayer, factors
from adapters.glue.layers import BiLevelLinear
from adapters.glue.norms import widen
from adapters.glue.registry import register
from adapters.glue.variants import PlainVariant, add_parameter

__all__ = ["LoraWeightDecayConfig", "WeightDecay", "weight_decays"]


class WeightDecayVariant(PlainVariant):
    """One adapter of one layer, ``dW = s B A``, and w, the logarithm of its weight decay."""

    container = "lora_log_decay"

    def __init__(self, start: float) -> None:
        self.start = start

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Add w to the layer, next to the adapter's A and B."""
        variant = module.lora_variant[adapter_name]
        assert isinstance(variant, WeightDecayVariant)
        A = factors(module, adapter_name).A
        w = torch.full((1,), math.log(variant.start), dtype=A.dtype, device=A.device)
        add_parameter(module, variant.container, adapter_name, w)

    def parameters(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return w, shape ``(1,)``."""
        w: Tensor = getattr(layer, self.container)[adapter]
        return w


@dataclass
class LoraWeightDecayConfig(BiLevelConfig):
    """Configuration of LoRA with learned weight decay, for ``peft.get_peft_model``; every option of
    ``LoraConfig`` and one.

    The decay acts through `WeightDecay` alone, which belongs in the lower loss. Leave the
    optimizers' own weight decay at zero.

    Args:
        initial_weight_decay: the coefficient that every layer starts with, above 0.

    Example:
        >>> from adapters import LoraWeightDecayConfig, levels, weight_decays
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> config = LoraWeightDecayConfig(r=2, target_modules=["0"], initial_weight_decay=0.25)
        >>> model = get_peft_model(net, config)
        >>> weight_decays(model)
        {'base_model.model.0': 0.25}
        >>> levels(model).upper_names
        ['base_model.model.0.lora_log_decay.default']

    Reference: Lorraine, Vicol and Duvenaud (2020), arXiv:1911.02590.
    """

    initial_weight_decay: float = field(
        default=0.01,
        metadata={
            "help": "The weight decay that every layer starts with.",
            "is_lora_variant": True,
        },
    )
    own_variants: ClassVar[frozenset[str]] = frozenset({"initial_weight_decay"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = LORA_WEIGHT_DECAY
        check_positive("initial_weight_decay", self.initial_weight_decay)

    def variant(self) -> WeightDecayVariant:
        """Return LoRA's forward pass, with w."""
        return WeightDecayVariant(self.initial_weight_decay)


LORA_WEIGHT_DECAY = register("LORA_WEIGHT_DECAY", LoraWeightDecayConfig)


@dataclass(frozen=True)
class WeightDecay:
    """The penalty ``1/2 sum over layers of exp(w) (|A|_F^2 + |B|_F^2)``, part of the lower loss.

    Under a gradient-scaling optimizer such as AdamW it acts like any term of the loss, not like
    the optimizer's decoupled decay.

    Example:
        >>> from adapters import LoraWeightDecayConfig, WeightDecay
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraWeightDecayConfig(r=2, target_modules=["0"]))
        >>> WeightDecay()(model).shape
        torch.Size([])
    """

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of the active adapter, a scalar.

        Raises:
            ValueError: if the model has no active adapter with learned weight decay.
        """
        terms = []
        for _, adapter, layer, variant in _decayed(model):
            pair = factors(layer, adapter)
            dtype = widen(pair.A.dtype)
            squares = pair.A.to(dtype).square().sum() + pair.B.to(dtype).square().sum()
            terms.append(variant.parameters(layer, adapter).to(dtype).exp().sum() * squares / 2)
        return torch.stack(terms).sum()


def weight_decays(model: nn.Module) -> dict[str, float]:
    """Return the weight decay ``exp(w)`` of every layer of the active adapter, by module name.

    Raises:
        ValueError: if the model has no active adapter with learned weight decay.

    Example:
        >>> from adapters import LoraWeightDecayConfig, weight_decays
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> config = LoraWeightDecayConfig(r=2, target_modules=["0"], initial_weight_decay=1.0)
        >>> weight_decays(get_peft_model(net, config))
        {'base_model.model.0': 1.0}
    """
    return {
        name: variant.parameters(layer, adapter).detach().exp().item()
        for name, adapter, layer, variant in _decayed(model)
    }


def _decayed(model: nn.Module) -> list[tuple[str, str, BiLevelLinear, WeightDecayVariant]]:
    return at_least_one(
        adapted_layers(model, WeightDecayVariant),
        model,
        what="active adapter with learned weight decay",
        config="LoraWeightDecayConfig",
    )
