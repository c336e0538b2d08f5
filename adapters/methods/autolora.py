"""AutoLoRA: factors at the lower level, a share for every rank at the upper one.

``W = W0 + s sum_j softmax(alpha)_j b_j a_j^T``. Training data fit the factors, held-out data fit
alpha: ``min_alpha L2(A*(alpha), B*(alpha), alpha)`` with ``A*, B* = argmin L1``. A rank whose share
is at least 1/r is kept; stock LoRA of the ranks that are left is then trained anew on all the data.

Reference: Zhang, Qiang, Somayajula and Xie (2024), arXiv:2403.09113.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adapters.glue.configuration import BiLevelConfig
from adapters.glue.layers import LoraLayer
from adapters.glue.registry import register
from adapters.methods.diagonal import DiagonalVariant

__all__ = ["AutoLoraConfig"]

THRESHOLDS = ("shares", "logits")


def _shares(alpha: Tensor) -> Tensor:
    return torch.softmax(alpha, 0)


class AutoLoraVariant(DiagonalVariant):
    """One adapter of one layer, ``dW = s B diag(softmax(alpha)) A``, alpha in the upper level."""

    def __init__(self, *, threshold: str) -> None:
        super().__init__(_shares, start=0.0)
        self.threshold = threshold

    def kept(self, layer: LoraLayer, adapter: str) -> Tensor:
        """Return which ranks reach their equal share, 1/r, shape ``(rank,)``; at least one does.

        Written for ``alpha - max(alpha)``, so that equal shares compare equal.
        """
        alpha = self.parameters(layer, adapter).detach().double()
        below = alpha - alpha.max()
        weights = below.exp() if self.threshold == "shares" else below
        return len(weights) * weights >= weights.sum()


@dataclass
class AutoLoraConfig(BiLevelConfig):
    """Configuration of AutoLoRA, for ``peft.get_peft_model``; every option of ``LoraConfig``, one
    more.

    B starts at zero and the shares at 1/r. After the search, `ranks` tells what was selected,
    `retrain_config` the plain LoRA to train with it; ``export_lora(..., prune=True)`` truncates
    what the search itself has found.

    Args:
        threshold: which ranks are kept. ``"shares"``, the paper's: ``softmax(alpha)_j >= 1/r``.
            ``"logits"``, the authors' code's: ``alpha_j >= mean(alpha)``, which keeps at least as
            many.

    Example:
        >>> from adapters import AutoLoraConfig, ranks
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> ranks(get_peft_model(net, AutoLoraConfig(r=2, target_modules=["0"])))
        {'0': 2}

    Reference: Zhang, Qiang, Somayajula and Xie (2024), arXiv:2403.09113.
    """

    threshold: Literal["shares", "logits"] = field(
        default="shares",
        metadata={
            "help": "Which ranks are kept: by 'shares' or 'logits'.",
            "is_lora_variant": True,
        },
    )
    own_variants: ClassVar[frozenset[str]] = frozenset({"threshold"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = AUTOLORA
        if self.threshold not in THRESHOLDS:
            raise ValueError(f"threshold must be one of {THRESHOLDS}, got {self.threshold!r}")
        if 1 in {self.r, *(self.rank_pattern or {}).values()}:
            raise ValueError(
                "r and rank_pattern must be at least 2 for AutoLoraConfig, got 1: a single rank "
                "has nothing to share"
            )

    def variant(self) -> AutoLoraVariant:
        """Return what the method adds to a layer."""
        return AutoLoraVariant(threshold=self.threshold)


AUTOLORA = register("AUTOLORA", AutoLoraConfig)
