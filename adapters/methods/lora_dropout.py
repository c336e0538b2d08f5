"""LoRA Dropout: random masks on the factors, many small models in one.

``W = W0 + s diag(m_B) B A diag(m_A)``, new masks for every layer and batch. Training minimises the
mean of the losses under N masks; the prediction is the mean of the predictions under N masks.
With the masks off, the factors are multiplied by the masks' mean, so that the weight is the mean
weight.

On plain LoRA through `LoraDropoutConfig`, on BiLoRA and BiDoRA through the same options of their
configs: ``BiLoraConfig(mask_rate=0.3)`` masks P and Q, never the singular values;
``BiDoraConfig(mask_rate=0.3)`` masks B and A inside ``W0 + s B A``.

Ours, not the paper's: ``learn_mask_rate=True`` draws relaxed masks and makes the rate of each layer
a parameter of the upper level, which held-out data fit.

Reference: Lin et al. (2024), arXiv:2404.09610.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.layers import BiLevelLinear
from adapters.glue.masks import Masks, mask_logit
from adapters.glue.penalties import Loss
from adapters.glue.registry import register
from adapters.glue.variants import BiLevelVariant, PlainVariant

__all__ = ["LoraDropoutConfig", "ensemble", "mask_rates", "masking", "mean_loss"]

AVERAGES = ("probabilities", "logits")


class LoraDropoutVariant(PlainVariant):
    """One adapter of one layer, ``dW = s B' A'`` with masked factors; the layer itself holds the
    rate where it is learned.
    """

    level: Literal["upper", "lower"] = "lower"
    two_levels = "LoraDropoutConfig(learn_mask_rate=True)"


@dataclass
class LoraDropoutConfig(BiLevelConfig):
    """Configuration of LoRA Dropout on plain LoRA, for ``peft.get_peft_model``; every option of
    ``LoraConfig`` and four.

    Masks are on while the model is in training mode, and inside `masking`. Train on `mean_loss`,
    predict with `ensemble`, or simply in evaluation mode, with the mean weight. ``lora_dropout`` is
    something else: it drops entries of the layer's input, token by token.

    Args:
        mask_rate: p, the probability that a mask drops an input of A or an output of B. Which p
            the paper's tables use we could not read.
        mask_inverted: divide each mask by 1 - p. ``Differs from the paper``, which does not
            rescale; a layer then learns factors that are larger by 1 / (1 - p)^2.
        learn_mask_rate: learn one rate a layer at the upper level, from `mask_rate` on, with
            relaxed masks. ``Differs from the paper``, whose rate is fixed.
        mask_temperature: of the relaxed masks.

    Example:
        >>> from adapters import LoraDropoutConfig, levels, mask_rates
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> config = LoraDropoutConfig(r=2, target_modules=["0"], learn_mask_rate=True)
        >>> model = get_peft_model(net, config)
        >>> mask_rates(model)
        {'base_model.model.0': 0.5}
        >>> levels(model).upper_names
        ['base_model.model.0.lora_mask_logit.default']

    Reference: Lin et al. (2024), arXiv:2404.09610.
    """

    mask_rate: float = field(
        default=0.5,
        metadata={
            "help": "The probability that a mask drops an input of A or an output of B.",
            "is_lora_variant": True,
        },
    )
    own_variants: ClassVar[frozenset[str]] = frozenset({"mask_rate"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = LORA_DROPOUT
        if self.mask_rate == 0:
            raise ValueError(
                "mask_rate must be above 0 for LoraDropoutConfig, got 0: use peft.LoraConfig"
            )

    def variant(self) -> LoraDropoutVariant:
        """Return the layer's forward pass."""
        return LoraDropoutVariant()


LORA_DROPOUT = register("LORA_DROPOUT", LoraDropoutConfig)


def mean_loss(model: nn.Module, loss: Loss, *, num_masks: int) -> Loss:
    """Return the loss ``batch -> mean of loss(batch) under num_masks masks``, LoRA Dropout's
    objective.

        L = 1/N sum_n l(x; W0 + dW(m_n))

    The one place where several masks are drawn for one batch. A loss that returns a dict gives
    that of the first mask with the mean under "loss". While the masks are off, one evaluation.

    Args:
        model: a model with an active adapter that masks its factors.
        loss: ``loss(batch)``, a closure over `model`; a scalar or a dict with one under "loss".
        num_masks: N, at least 1. The cost is N times that of the loss.

    Raises:
        ValueError: if the model has no masks, or `num_masks` is below 1.

    Example:
        >>> from adapters import LoraDropoutConfig, mean_loss
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraDropoutConfig(r=2, target_modules=["0"]))
        >>> loss = mean_loss(model, lambda x: model(x).square().mean(), num_masks=4)
        >>> loss(torch.ones(8, 4)).shape
        torch.Size([])

    Reference: Lin et al. (2024), arXiv:2404.09610.
    """
    _check_num_masks(num_masks)
    _masked_layers(model)

    def averaged(batch: Any) -> Any:
        drawn = any(
            masks.on(training=layer.training) for _, _, layer, masks in _masked_layers(model)
        )
        values = [loss(batch) for _ in range(num_masks if drawn else 1)]
        if isinstance(values[0], Tensor):
            return torch.stack(values).mean(0)
        mean = torch.stack([value["loss"] for value in values]).mean(0)
        return {**values[0], "loss": mean}

    return averaged


def ensemble(
    model: nn.Module,
    logits: Callable[[], Tensor],
    *,
    num_masks: int,
    average: Literal["probabilities", "logits"] = "probabilities",
) -> Tensor:
    """Return the mean prediction under `num_masks` masks, which are on for it whatever the mode.

    Args:
        model: a model with an active adapter that masks its factors; in evaluation mode, unless
            other dropout is wanted too.
        logits: the prediction of the model, a closure over it; classes in the last dimension.
        num_masks: N, at least 1.
        average: ``"probabilities"``, the mean of ``softmax(logits)``; ``"logits"``, the mean of
            what `logits` returns, for regression too.

    Returns:
        A tensor of the shape of the logits.

    Raises:
        ValueError: if the model has no masks, `num_masks` is below 1, or `average` is neither.

    Example:
        >>> from adapters import LoraDropoutConfig, ensemble
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraDropoutConfig(r=2, target_modules=["0"])).eval()
        >>> with torch.no_grad():
        ...     p = ensemble(model, lambda: model(torch.ones(8, 4)), num_masks=5)
        >>> torch.allclose(p.sum(-1), torch.ones(8))
        True

    Reference: Lin et al. (2024), arXiv:2404.09610.
    """
    _check_num_masks(num_masks)
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {AVERAGES}, got {average!r}")
    with masking(model, on=True):
        drawn = [logits() for _ in range(num_masks)]
    if average == "probabilities":
        drawn = [torch.softmax(values, -1) for values in drawn]
    return torch.stack(drawn).mean(0)


@contextmanager
def masking(model: nn.Module, *, on: bool) -> Iterator[None]:
    """Turn the masks of the active adapter on or off for a block, whatever the model's mode.

    Raises:
        ValueError: if the model has no masks.

    Example:
        >>> from adapters import LoraDropoutConfig, masking
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, LoraDropoutConfig(r=2, target_modules=["0"]))
        >>> with masking(model, on=False):
        ...     y = model(torch.ones(8, 4))
    """
    masks = [each for _, _, _, each in _masked_layers(model)]
    before = [mask.switch for mask in masks]
    for mask in masks:
        mask.switch = on
    try:
        yield
    finally:
        for mask, switch in zip(masks, before, strict=True):
            mask.switch = switch


def mask_rates(model: nn.Module) -> dict[str, float]:
    """Return the mask rate p of every layer of the active adapter, by module name.

    Raises:
        ValueError: if the model has no masks.

    Example:
        >>> import torch
        >>> from adapters import LoraDropoutConfig, mask_rates
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> config = LoraDropoutConfig(r=2, mask_rate=0.25, target_modules=["0"])
        >>> mask_rates(get_peft_model(net, config))
        {'base_model.model.0': 0.25}
    """
    rates = {}
    for name, adapter, layer, masks in _masked_layers(model):
        logit = mask_logit(layer, adapter)
        rates[name] = masks.rate if logit is None else torch.sigmoid(logit).item()
    return rates


def _masked_layers(model: nn.Module) -> list[tuple[str, str, BiLevelLinear, Masks]]:
    found = (
        (name, adapter, layer, variant.masks)
        for name, adapter, layer, variant in adapted_layers(model, BiLevelVariant)
        if variant.masks is not None
    )
    return at_least_one(
        found,
        model,
        what="active adapter with masks",
        config="LoraDropoutConfig",
        otherwise=", or give BiLoraConfig or BiDoraConfig a mask_rate",
    )


def _check_num_masks(num_masks: int) -> None:
    if num_masks < 1:
        raise ValueError(f"num_masks must be at least 1, got {num_masks!r}")
