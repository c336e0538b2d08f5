"""BiDoRA: directions at the lower level, magnitudes at the upper one.

``W' = diag(m / n) (W0 + s B A)`` with ``n = |W0 + s B A|`` row by row. Training data fit A and B,
held-out data fit m: ``min_m L2(A*(m), B*(m), m)`` with ``A*, B* = argmin L1 + R``.

PEFT's DoRA holds n constant in the backward pass. Its gradients with respect to A and B, and every
hypergradient through them, are then those of another function; here n stays in the graph. The
values are DoRA's, and so is the checkpoint.

Differs from the authors' code: m has one entry for each output of a layer, as in PEFT and in DoRA's
own release, not one for each input, so that a checkpoint can be loaded elsewhere.

References: Qin, Zhang and Xie (2025), arXiv:2410.09758; Liu et al. (2024), arXiv:2402.09353.
"""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor, nn

from adapters.norms import from_orthonormal, row_norms, widen
from adapters.peft_glue import (
    BiLevelConfig,
    BiLevelVariant,
    DoraLinearVariant,
    LoraLayer,
    adapted_layers,
    factors,
    magnitude_layer,
)

__all__ = ["BiDoraConfig", "DirectionOrthogonality"]

OWN_FIELDS = ("bidora", "detach_norm")


class BiDoraVariant(DoraLinearVariant, BiLevelVariant):
    """One adapter of one layer, ``W' = diag(m / n) (W0 + s B A)``, m in the upper level.

    Merging is PEFT's: it uses values alone.
    """

    upper = "lora_magnitude_vector"

    def __init__(self, *, detach_norm: bool) -> None:
        self.detach_norm = detach_norm

    def supports_lora_conversion(self) -> bool:
        """No: ``W' - W0`` has full rank in general (PEFT says yes for DoRA and drops m)."""
        return False

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Adds m to the layer, the norms of the rows as the forward pass computes them."""
        if module.merged:
            raise ValueError(
                f"adapter {adapter_name!r} cannot start from merged weights: call "
                "model.unmerge_adapter() first"
            )
        weight, _, A, B, scale = factors(module, adapter_name)
        if A.is_meta:  # low_cpu_mem_usage: the values come from the checkpoint
            norms = torch.empty(B.shape[0], dtype=widen(weight.dtype), device="meta")
        else:
            norms = row_norms(weight.detach(), A.detach(), B.detach(), scale)
        module.lora_magnitude_vector[adapter_name] = magnitude_layer(module, norms)

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """``bias + (m / n) (W0 + s B A) x``.

        Written as ``result + update + (m / n - 1) y`` with ``y = (W0 + s B A) x``: exactly
        ``result`` at the start, and y is the only activation kept for the backward pass.
        """
        weight, bias, A, B, scale = factors(module, active_adapter)
        variant = module.lora_variant[active_adapter]
        assert isinstance(variant, BiDoraVariant)
        norms = row_norms(weight, A, B, scale)
        if variant.detach_norm:
            norms = norms.detach()
        magnitude = module.lora_magnitude_vector[active_adapter].weight
        assert isinstance(magnitude, Tensor)
        update = F.linear(F.linear(x, A) * scale, B)
        y = result + update if bias is None else result - bias + update
        return result + update + (magnitude / norms - 1) * y


@dataclass
class BiDoraConfig(BiLevelConfig):
    """Configuration of BiDoRA, for ``peft.get_peft_model``; every option of ``LoraConfig`` and one.

    The checkpoint is a plain PEFT DoRA checkpoint: ``PeftModel.from_pretrained`` loads it, without
    this package too, as DoRA. To go on training with BiDoRA, pass the config:
    ``PeftModel.from_pretrained(base, path, config=BiDoraConfig.from_pretrained(path),
    is_trainable=True)``.

    Args:
        detach_norm: Hold n constant in the backward pass, as PEFT's DoRA does. The hypergradient is
            then wrong; for comparisons.

    Example:
        >>> from adapters import BiDoraConfig, levels
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = get_peft_model(net, BiDoraConfig(r=2, target_modules=["0"]))
        >>> levels(model).upper_names
        ['base_model.model.0.lora_magnitude_vector.default.weight']

    Reference: Qin, Zhang and Xie (2025), arXiv:2410.09758.
    """

    use_dora: bool = field(
        default=True, metadata={"help": "Always true for BiDoRA.", "is_lora_variant": True}
    )
    detach_norm: bool = field(
        default=False, metadata={"help": "Hold the norm constant in the backward pass."}
    )
    # Makes a layer of PEFT's own, which would detach the norm, refuse the config.
    bidora: bool = field(default=True, init=False, repr=False, metadata={"is_lora_variant": True})
    own_variants: ClassVar[frozenset[str]] = frozenset({"use_dora", "bidora"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_dora:
            raise ValueError("use_dora must be True for BiDoraConfig, got False; use LoraConfig")
        if self.lora_dropout > 0:
            raise ValueError(
                f"lora_dropout must be 0 for BiDoraConfig, got {self.lora_dropout}: with DoRA the "
                "frozen weight sees the dropped input too, so the model would not start as the "
                "frozen one; use the base model's dropout"
            )

    def variant(self) -> BiDoraVariant:
        """The layer's forward pass."""
        return BiDoraVariant(detach_norm=self.detach_norm)

    def to_dict(self) -> dict[str, Any]:
        """The config as PEFT saves it: that of a plain DoRA adapter."""
        saved: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        return {name: value for name, value in saved.items() if name not in OWN_FIELDS}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> "BiDoraConfig":
        """The config read from a DoRA checkpoint, whose type says LORA."""
        plain = LoraConfig.from_peft_type(**kwargs)
        return cls(**{field.name: getattr(plain, field.name) for field in fields(plain)})


@dataclass(frozen=True)
class DirectionOrthogonality:
    """Penalty that pushes the rows of every BiDoRA direction matrix apart.

    weight * mean over layers of ``|D D^T - I|_F^2`` with ``D = (W0 + s B A) / n``, whose rows have
    norm one; with ``squared=False``, the norms instead of their squares, as in the authors' code
    (which has unit columns and takes ``D^T D``, see the module). Part of the lower loss. Forms
    matrices of the size of a weight, and of ``(out, out)``.

    Args:
        weight: The factor, at least 0; 1e-5 in the authors' scripts.
        squared: Square the norms.

    Example:
        >>> from adapters import BiDoraConfig, DirectionOrthogonality
        >>> from peft import get_peft_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3))
        >>> model = get_peft_model(net, BiDoraConfig(r=2, target_modules=["0"]))
        >>> DirectionOrthogonality(1e-5)(model).shape
        torch.Size([])

    Reference: Qin, Zhang and Xie (2025), arXiv:2410.09758.
    """

    weight: float
    squared: bool = True

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight must be at least 0, got {self.weight!r}")

    def __call__(self, model: nn.Module) -> Tensor:
        """The penalty of the active adapter, a scalar.

        Raises:
            ValueError: The model has no active BiDoRA adapter.
        """
        terms = []
        for _, adapter, layer, _ in adapted_layers(model, BiDoraVariant):
            weight, _, A, B, scale = factors(layer, adapter)
            with torch.autocast(weight.device.type, enabled=False):
                directions = F.normalize(weight + scale * (B @ A), dim=1)
            terms.append(from_orthonormal(directions, squared=self.squared))
        if not terms:
            raise ValueError(
                f"DirectionOrthogonality found no active BiDoRA adapter in model "
                f"({type(model).__name__}); wrap it with get_peft_model(model, BiDoraConfig(...))"
            )
        return self.weight * torch.stack(terms).mean()
