"""What is trained on a sequence of tasks: SD-LoRA, its form on two levels, and their controls."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from peft import LoraConfig, PeftConfig, TaskType

from adapters import SdLoraConfig
from applications.options.sequences import SequenceOptions

Magnitudes = Literal["none", "joint", "frozen", "afterwards", "upper"]


@dataclass(frozen=True)
class Variant:
    """One way to learn tasks one after the other.

    Attributes:
        name: what ``--variants`` calls it.
        magnitudes: ``"none"``: plain LoRA, one direction for all tasks. Else SD-LoRA, whose
            magnitudes are trained with the direction (``"joint"``, the paper), stay as they are
            (``"frozen"``), are fitted to the memory when a task's direction is trained
            (``"afterwards"``), or above it (``"upper"``).
        replay: whether the memory of earlier tasks is trained on beside a task's own examples.
    """

    name: str
    magnitudes: Magnitudes
    replay: bool = False

    @property
    def decoupled(self) -> bool:
        """Whether it is SD-LoRA."""
        return self.magnitudes != "none"

    @property
    def fitted(self) -> bool:
        """Whether data that the direction does not see fit the magnitudes."""
        return self.magnitudes in ("afterwards", "upper")

    @property
    def memory(self) -> bool:
        """Whether it needs examples of earlier tasks."""
        return self.replay or self.fitted

    def config(self, options: SequenceOptions) -> PeftConfig:
        """The adapter of the first task."""
        settings: dict[str, Any] = {
            "task_type": TaskType.SEQ_CLS,
            "r": options.lora_r,
            "lora_alpha": options.lora_alpha,
            "target_modules": options.lora_target_modules,
        }
        if not self.decoupled:
            return LoraConfig(**settings)
        level: Literal["lower", "upper"] = "lower" if self.magnitudes == "joint" else "upper"
        return SdLoraConfig(share=options.share, magnitude_level=level, **settings)


ROWS: Mapping[str, Variant] = {
    each.name: each
    for each in (
        Variant("lora", "none"),
        Variant("lora_replay", "none", replay=True),
        Variant("sd_lora", "joint"),
        Variant("sd_lora_frozen", "frozen"),
        Variant("sd_lora_replay", "joint", replay=True),
        Variant("sd_lora_afterwards", "afterwards"),
        Variant("sd_lora_two_level", "upper"),
    )
}
