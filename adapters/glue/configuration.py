"""The configuration that all methods share: every option of LoRA that fits them, and masks."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

from adapters.glue.checks import check_flag, check_fraction, check_positive, check_whole
from adapters.glue.joint import JointWatch
from adapters.glue.layers import LayerConfig
from adapters.glue.masks import Masks

__all__ = ["BiLevelConfig"]

INITS = (True, False, "gaussian")
BIASES = ("none", "all", "lora_only")


@dataclass
class BiLevelConfig(LayerConfig):
    """A ``LoraConfig`` whose layers are `BiLevelLinear`: the base of BiLoRA's and BiDoRA's.

    Adapts ``torch.nn.Linear`` and GPT-2's ``Conv1D``; which of the two decides ``fan_in_fan_out``.
    """

    mask_rate: float = field(
        default=0.0,
        metadata={
            "help": "LoRA Dropout: the probability that a mask drops an input of A or an output "
            "of B.",
            "is_lora_variant": True,
        },
    )
    mask_inverted: bool = field(
        default=False, metadata={"help": "LoRA Dropout: divide each mask by 1 - mask_rate."}
    )
    learn_mask_rate: bool = field(
        default=False,
        metadata={"help": "LoRA Dropout: learn one rate a layer at the upper level."},
    )
    mask_temperature: float = field(
        default=0.1, metadata={"help": "LoRA Dropout: temperature of masks with learned rates."}
    )
    joint: bool = field(
        default=False,
        metadata={"help": "Both levels are trained by one backward pass on purpose: no warning."},
    )
    own_variants: ClassVar[frozenset[str]] = frozenset()
    """The LoRA variants, as PEFT calls them, that the method itself turns on; "mask_rate" where the
    factors may be masked."""

    def masks(self) -> Masks | None:
        """Return the masks on a layer's factors, or None without LoRA Dropout."""
        if self.mask_rate == 0:
            return None
        return Masks(
            rate=self.mask_rate,
            inverted=self.mask_inverted,
            learned=self.learn_mask_rate,
            temperature=self.mask_temperature,
        )

    def joint_watch(self) -> JointWatch | None:
        """Return what notices joint training of both levels, or None where that is meant."""
        if self.joint:
            return None
        watch: JointWatch = self.__dict__.setdefault("_watch", JointWatch(type(self).__name__))
        return watch

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self._check_values()
        self._check_lora_options()
        self._check_masks()
        self.adapt_modules()

    def _check_values(self) -> None:
        check_whole("r", self.r)
        check_positive("lora_alpha", self.lora_alpha)
        for name, rank in (self.rank_pattern or {}).items():
            check_whole(f"rank_pattern[{name!r}]", rank)
        for name, alpha in (self.alpha_pattern or {}).items():
            check_positive(f"alpha_pattern[{name!r}]", alpha)
        check_fraction("lora_dropout", self.lora_dropout)
        check_fraction("mask_rate", self.mask_rate)
        check_positive("mask_temperature", self.mask_temperature)
        if self.bias not in BIASES:
            raise ValueError(f"bias must be one of {BIASES}, got {self.bias!r}")
        for item in fields(self):
            if isinstance(item.default, bool) and item.name != "init_lora_weights":
                check_flag(item.name, getattr(self, item.name))

    def _check_lora_options(self) -> None:
        method = type(self).__name__
        if self.init_lora_weights not in INITS:
            raise ValueError(
                f"init_lora_weights must be one of {INITS} for {method}, got "
                f"{self.init_lora_weights!r}: the others change the base weights"
            )
        for option in ("target_parameters", "megatron_config", "use_qalora", "lora_bias"):
            if getattr(self, option):
                raise ValueError(
                    f"{option} is not supported by {method}, got {getattr(self, option)!r}; adapt "
                    "whole torch.nn.Linear or Conv1D modules through target_modules"
                )
        variants = {item.name for item in fields(self) if item.metadata.get("is_lora_variant")}
        for option in sorted(variants - self.own_variants):
            if getattr(self, option):
                raise ValueError(
                    f"{option} cannot be combined with {method}, got {getattr(self, option)!r}; "
                    "leave it at its default"
                )

    def _check_masks(self) -> None:
        method = type(self).__name__
        if self.learn_mask_rate and not self.mask_rate > 0:
            raise ValueError(
                f"learn_mask_rate=True needs a mask_rate above 0 to start from for {method}, got "
                f"{self.mask_rate!r}"
            )
