"""BiDoRA: directions at the lower level, magnitudes at the upper one.

``W' = diag(m / n) (W0 + s B A)`` with ``n = |W0 + s B A|`` row by row. Training data fit A and B,
held-out data fit m: ``min_m L2(A*(m), B*(m), m)`` with ``A*, B* = argmin L1 + R``.

PEFT's DoRA holds n constant in the backward pass. Its gradients with respect to A and B, and every
hypergradient through them, are then those of another function; here n stays in the graph. The
values are DoRA's, and so is the checkpoint.

Differs from the authors' code: m has one entry for each output of a layer, as in PEFT and in DoRA's
own release, not one for each input, so that a checkpoint can be loaded elsewhere. Theirs is
``norm_axis="in"``, ``W' = (W0 + s B A) diag(m / n)`` with n the norms of the columns.

After the search, `retrain` freezes the magnitudes for a second phase on all the data.

References: Qin, Zhang and Xie (2025), arXiv:2410.09758; Liu et al. (2024), arXiv:2402.09353.
"""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor, nn

from adapters.glue.adapted import adapted_layers, at_least_one
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.factors import Factors, LoraLayer, factors
from adapters.glue.layers import BiLevelLinear
from adapters.glue.masks import factors_in_use
from adapters.glue.norms import from_orthonormal, row_norms, widen
from adapters.glue.penalties import check_weight
from adapters.glue.registry import register
from adapters.glue.variants import BiLevelVariant, DoraLinearVariant, magnitude_layer

__all__ = ["BiDoraConfig", "DirectionOrthogonality"]

AXES = ("out", "in")


class BiDoraVariant(DoraLinearVariant, BiLevelVariant):
    """One adapter of one layer, ``W' = diag(m / n) (W0 + s B A)``, m in the upper level.

    Merging is PEFT's: it uses values alone.
    """

    container = "lora_magnitude_vector"

    def __init__(self, *, detach_norm: bool) -> None:
        self.detach_norm = detach_norm

    def supports_lora_conversion(self) -> bool:
        """Return False: ``W' - W0`` has full rank (PEFT says yes for DoRA and drops m)."""
        return False

    def norms(self, used: Factors) -> Tensor:
        """Return n, the norms of the rows, ``(out,)``."""
        norms = row_norms(used.weight, used.A, used.B, used.scale)
        return norms.detach() if self.detach_norm else norms

    def directions(self, used: Factors) -> Tensor:
        """Return the vectors of ``W0 + s B A`` that have a magnitude each, as rows."""
        return used.weight + used.scale * (used.B @ used.A)

    def num_magnitudes(self, used: Factors) -> int:
        """Return the length of m."""
        return used.B.shape[0]

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Add m to the layer, the norms as a forward pass without masks computes them."""
        if module.merged:
            raise ValueError(
                f"adapter {adapter_name!r} cannot start from merged weights: call "
                "model.unmerge_adapter() first"
            )
        start = factors(module, adapter_name)
        variant = _variant(module, adapter_name)
        with torch.no_grad():
            if not start.A.is_meta:
                norms = variant.norms(start)
            else:  # low_cpu_mem_usage: the values come from the checkpoint
                size = variant.num_magnitudes(start)
                norms = torch.empty(size, dtype=widen(start.weight.dtype), device="meta")
        module.lora_magnitude_vector[adapter_name] = magnitude_layer(module, norms)

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return ``bias + (m / n) (W0 + s B A) x``.

        Written as ``(m / n) y + (1 - m / n) bias`` with ``y = bias + (W0 + s B A) x``: exactly
        ``result`` at the start, and y is the only activation kept for the backward pass.
        """
        used = factors_in_use(module, active_adapter)
        used = used._replace(A=used.A * used.scale, scale=1.0)
        ratio = _ratio(module, active_adapter, used)
        y = result + F.linear(F.linear(x, used.A), used.B)
        if used.bias is None:
            return ratio * y
        return torch.addcmul((1 - ratio) * used.bias, ratio, y)


class ColumnVariant(BiDoraVariant):
    """One adapter of one layer, ``W' = (W0 + s B A) diag(m / n)``, n the norms of the columns."""

    unexportable = (
        "has norm_axis='in', one magnitude for each input, which no PEFT checkpoint can hold; save "
        "model.merge_and_unload()"
    )

    def norms(self, used: Factors) -> Tensor:
        """Return n, the norms of the columns, ``(in,)``."""
        return super().norms(used._replace(weight=used.weight.T, A=used.B.T, B=used.A.T))

    def directions(self, used: Factors) -> Tensor:
        """Return the columns of ``W0 + s B A``, as rows."""
        return super().directions(used).T

    def num_magnitudes(self, used: Factors) -> int:
        """Return the length of m."""
        return used.A.shape[1]

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Return ``bias + (W0 + s B A) (m / n) x``, with a second product with W0."""
        used = factors_in_use(module, active_adapter)
        ratio = _ratio(module, active_adapter, used)
        stretch = F.linear(((ratio - 1) * x).to(used.weight.dtype), used.weight)
        return result + stretch + F.linear(F.linear(ratio * x, used.A) * used.scale, used.B)

    @staticmethod
    @torch.no_grad()
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the base weight with the adapter merged into it, in a new tensor."""
        assert isinstance(module, BiLevelLinear)
        if module.merged_adapters:
            raise ValueError(
                f"adapter {active_adapter!r} with norm_axis='in' cannot be merged into weights "
                f"that hold {module.merged_adapters}: call model.unmerge_adapter() first"
            )
        used = factors_in_use(module, active_adapter)  # masks are off
        ratio = _ratio(module, active_adapter, used)
        module.keep_for_unmerging(active_adapter, ratio)
        ratio = ratio[:, None] if module.fan_in_fan_out else ratio
        delta = module.get_delta_weight(active_adapter)
        return (ratio * (orig_weight + delta)).to(orig_weight.dtype)

    @staticmethod
    @torch.no_grad()
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Merge the adapter into the base weight in place."""
        orig_weight.copy_(ColumnVariant.merge_safe(module, active_adapter, orig_weight))

    @staticmethod
    @torch.no_grad()
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the base weight with the adapter taken out."""
        assert isinstance(module, BiLevelLinear)
        ratio = module.kept_for_unmerging(active_adapter)
        ratio = ratio[:, None] if module.fan_in_fan_out else ratio
        delta = module.get_delta_weight(active_adapter)
        weight: Tensor = (orig_weight / ratio - delta).to(orig_weight.dtype)
        return weight


def _variant(module: LoraLayer, adapter: str) -> BiDoraVariant:
    variant = module.lora_variant[adapter]
    assert isinstance(variant, BiDoraVariant)
    return variant


def _ratio(module: LoraLayer, adapter: str, used: Factors) -> Tensor:
    """Return ``m / n``."""
    magnitude = module.lora_magnitude_vector[adapter].weight
    assert isinstance(magnitude, Tensor)
    return magnitude / _variant(module, adapter).norms(used)


@dataclass
class BiDoraConfig(BiLevelConfig):
    """Configuration of BiDoRA for ``peft.get_peft_model``; every option of ``LoraConfig``, the mask
    options of `LoraDropoutConfig`, and two.

    The checkpoint is a plain PEFT DoRA checkpoint: ``PeftModel.from_pretrained`` loads it, without
    this package too, as DoRA. To go on training with BiDoRA, pass the config:
    ``PeftModel.from_pretrained(base, path, config=BiDoraConfig.from_pretrained(path),
    is_trainable=True)``. With ``norm_axis="in"`` or masks it is no DoRA checkpoint: it gets the
    type BIDORA, which PEFT loads where this package is imported.

    Args:
        detach_norm: hold n constant in the backward pass, as PEFT's DoRA does. The hypergradient is
            then wrong; for comparisons.
        norm_axis: ``"out"``, one magnitude for each output, the norms of the rows. ``"in"``, the
            authors' code's: one for each input, the norms of the columns. No PEFT checkpoint can
            hold those; ``model.merge_and_unload()`` gives plain weights.

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
    norm_axis: Literal["out", "in"] = field(
        default="out", metadata={"help": "One magnitude for each 'out'put or each 'in'put."}
    )
    # Makes a layer of PEFT's own, which would detach the norm, refuse the config.
    bidora: bool = field(default=True, init=False, repr=False, metadata={"is_lora_variant": True})
    own_variants: ClassVar[frozenset[str]] = frozenset({"use_dora", "bidora", "mask_rate"})

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
        if self.norm_axis not in AXES:
            raise ValueError(f"norm_axis must be one of {AXES}, got {self.norm_axis!r}")
        if not self.is_dora:
            self.peft_type = BIDORA

    @property
    def is_dora(self) -> bool:
        """Whether PEFT's DoRA computes the same from the same checkpoint."""
        return self.norm_axis == "out" and self.mask_rate == 0

    def variant(self) -> BiDoraVariant:
        """Return the layer's forward pass."""
        kind = BiDoraVariant if self.norm_axis == "out" else ColumnVariant
        return kind(detach_norm=self.detach_norm)

    def to_dict(self) -> dict[str, Any]:
        """Return the config as PEFT saves it: that of a plain DoRA adapter if it is one."""
        saved: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        own = {option.name for option in fields(self)} if self.is_dora else {"bidora"}
        own -= {option.name for option in fields(LoraConfig)}
        return {name: value for name, value in saved.items() if name not in own}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> "BiDoraConfig":
        """Return the config of a DoRA checkpoint, whose type says LORA, or of one of our own."""
        if kwargs.get("peft_type") == BIDORA:
            own: BiDoraConfig = super().from_peft_type(**kwargs)  # type: ignore[no-untyped-call]
            return own
        plain = LoraConfig.from_peft_type(**kwargs)
        return cls(**{field.name: getattr(plain, field.name) for field in fields(plain)})


BIDORA = register("BIDORA", BiDoraConfig)


@dataclass(frozen=True)
class DirectionOrthogonality:
    """Penalty that pushes the rows of every BiDoRA direction matrix apart.

    weight * mean over layers of ``|D D^T - I|_F^2`` with ``D = (W0 + s B A) / n``, whose rows have
    norm one; with ``squared=False``, the norms instead of their squares, as in the authors' code.
    With ``norm_axis="in"``, the columns have, and it is ``D^T D``. Part of the lower loss. Forms
    matrices of the size of a weight, and of ``(out, out)``. Masks play no part.

    Args:
        weight: the factor, at least 0; 1e-5 in the authors' scripts.
        squared: square the norms.

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
        check_weight(self.weight)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the penalty of the active adapter, a scalar.

        Raises:
            ValueError: if the model has no active BiDoRA adapter.
        """
        found = at_least_one(
            adapted_layers(model, BiDoraVariant),
            model,
            what="active BiDoRA adapter for DirectionOrthogonality",
            config="BiDoraConfig",
        )
        terms = []
        for _, adapter, layer, variant in found:
            held = factors(layer, adapter)
            with torch.autocast(held.weight.device.type, enabled=False):
                directions = F.normalize(variant.directions(held), dim=1)
            terms.append(from_orthonormal(directions, squared=self.squared))
        return self.weight * torch.stack(terms).mean()
