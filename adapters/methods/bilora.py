"""BiLoRA: singular vectors at the lower level, singular values at the upper one.

``W = W0 + s P diag(g(d)) Q`` with P = lora_B, Q = lora_A and s = alpha / r. Training data fit P and
Q, held-out data fit d: ``min_d L2(P*(d), Q*(d), d)`` with ``P*, Q* = argmin L1 + R(P, Q)``.

Reference: Qiang, Zhang and Xie (2024), arXiv:2403.13037.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.factors import factors
from adapters.glue.layers import BiLevelLinear
from adapters.glue.norms import from_orthonormal, widen
from adapters.glue.penalties import check_weight
from adapters.glue.registry import register
from adapters.methods.diagonal import DiagonalVariant

__all__ = ["BiLoraConfig", "Binarisation", "Orthogonality"]

FORMS = ("real", "softmax", "binary")


def _real(d: Tensor) -> Tensor:
    return d


def _softmax(d: Tensor) -> Tensor:
    return torch.softmax(d, 0)


def _softmax_times_rank(d: Tensor) -> Tensor:
    return d.numel() * torch.softmax(d, 0)


def _sigmoid(d: Tensor) -> Tensor:
    return torch.sigmoid(d)


@dataclass
class BiLoraConfig(BiLevelConfig):
    """Configuration of BiLoRA, for ``peft.get_peft_model``; every option of ``LoraConfig`` and
    three.

    B starts at zero and the values do not: the model starts as the frozen one, and both levels
    receive a gradient (the upper one through the first lower step).

    Args:
        values: what the singular values are. ``"softmax"``, the paper's main form: positive, they
            sum to one and start at 1/r. ``"real"``: any sign, they start at 1. ``"binary"``: the
            sigmoid of logits, they start at 1/2; add `Binarisation` to the upper loss.
        scale_by_rank: multiply softmax values by r, so that they start at 1 and sum to r, and alpha
            means what it means for LoRA. ``Differs from the paper``, whose values sum to one.
        tied: with real values: one value for all directions of a layer, the scale of the layer's
            update. ``Differs from the paper``: a control, which has a scale to learn and no rank.

    Example:
        >>> from adapters import BiLoraConfig, singular_values
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> {name: values.tolist() for name, values in singular_values(model).items()}
        {'base_model.model.0': [0.5, 0.5]}

    Reference: Qiang, Zhang and Xie (2024), arXiv:2403.13037.
    """

    values: Literal["softmax", "real", "binary"] = field(
        default="softmax",
        metadata={
            "help": "The singular values: 'softmax', 'real' or 'binary'.",
            "is_lora_variant": True,
        },
    )
    scale_by_rank: bool = field(
        default=False, metadata={"help": "Multiply softmax singular values by the rank."}
    )
    tied: bool = field(
        default=False, metadata={"help": "Real singular values: one for all of a layer."}
    )
    own_variants: ClassVar[frozenset[str]] = frozenset({"values", "mask_rate"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BILORA
        if self.values not in FORMS:
            raise ValueError(f"values must be one of {FORMS}, got {self.values!r}")
        if self.scale_by_rank and self.values != "softmax":
            raise ValueError(
                f"scale_by_rank=True needs values='softmax', got values={self.values!r}"
            )
        if self.tied and self.values != "real":
            raise ValueError(f"tied=True needs values='real', got values={self.values!r}")
        ranks = {self.r, *(self.rank_pattern or {}).values()}
        if self.values == "softmax" and 1 in ranks:
            raise ValueError(
                "values='softmax' needs a rank of at least 2 everywhere, got 1 in r or "
                "rank_pattern: one softmax value is always 1; use values='real'"
            )

    def variant(self) -> DiagonalVariant:
        """Return the layer's map from d to the singular values."""
        if self.values == "real":
            return DiagonalVariant(_real, start=1.0, tied=self.tied)
        if self.values == "binary":
            return DiagonalVariant(_sigmoid, start=0.0)
        return DiagonalVariant(_softmax_times_rank if self.scale_by_rank else _softmax, start=0.0)


BILORA = register("BILORA", BiLoraConfig)


@dataclass(frozen=True)
class Orthogonality:
    """Penalty that keeps the singular vectors of every BiLoRA layer orthonormal.

    weight * sum over layers of ``|P^T P - I|_F^2 + |Q Q^T - I|_F^2``; with ``squared=False``, the
    norms instead of their squares, as in AdaLoRA's code. Part of the lower loss.

    Args:
        weight: the factor, at least 0.
        squared: square the norms.

    Example:
        >>> from adapters import BiLoraConfig, Orthogonality
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, target_modules=["0"]))
        >>> Orthogonality(0.1)(model).shape
        torch.Size([])

    Reference: Qiang, Zhang and Xie (2024), arXiv:2403.13037; Zhang et al. (2023), arXiv:2303.10512.
    """

    weight: float
    squared: bool = True

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of the active adapter, a scalar.

        Raises:
            ValueError: if the model has no active BiLoRA adapter.
        """
        terms: list[Tensor] = []
        for adapter, layer, _ in _diagonal(model, self):
            pair = factors(layer, adapter)
            terms += [from_orthonormal(rows, squared=self.squared) for rows in (pair.B.T, pair.A)]
        return self.weight * torch.stack(terms).sum()


@dataclass(frozen=True)
class Binarisation:
    """Penalty that pushes the values of a binary BiLoRA adapter to 0 or 1.

    weight * sum of the entropies ``H(p) = -p log p - (1-p) log(1-p)``, p = sigmoid(d), written on
    the logits, ``H = log(1 + e^d) - d p``, which is finite where p rounds to 0 or 1. Part of the
    upper loss.

    Args:
        weight: the factor, at least 0.

    Example:
        >>> from adapters import BiLoraConfig, Binarisation
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, BiLoraConfig(r=2, values="binary", target_modules=["0"]))
        >>> round(Binarisation(1.0)(model).item(), 4)  # two logits of 0: 2 log 2
        1.3863

    Reference: Qiang, Zhang and Xie (2024), arXiv:2403.13037.
    """

    weight: float

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of the active adapter, a scalar.

        Raises:
            ValueError: if the model has no active BiLoRA adapter with ``values="binary"``.
        """
        terms = []
        for adapter, layer, variant in _diagonal(model, self):
            if variant.values is not _sigmoid:
                raise ValueError(
                    f"Binarisation needs BiLoraConfig(values='binary'), adapter {adapter!r} has "
                    "another form"
                )
            d = variant.parameters(layer, adapter)
            d = d.to(widen(d.dtype))
            terms.append((F.softplus(d) - d * torch.sigmoid(d)).sum())
        return self.weight * torch.stack(terms).sum()


def _diagonal(
    model: nn.Module, penalty: object
) -> list[tuple[str, BiLevelLinear, DiagonalVariant]]:
    found = at_least_one(
        adapted_layers(model, DiagonalVariant),
        model,
        what=f"active BiLoRA adapter for {type(penalty).__name__}",
        config="BiLoraConfig",
    )
    return [(adapter, layer, variant) for _, adapter, layer, variant in found]
