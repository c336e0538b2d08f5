"""The options of ``applications.continual``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from applications.methods import HYPERGRADIENTS
from applications.options.arguments import (
    DataOptions,
    ModelOptions,
    option,
    require,
    require_all,
    separated,
)

VARIANTS = (
    "lora",
    "lora_replay",
    "sd_lora",
    "sd_lora_frozen",
    "sd_lora_replay",
    "sd_lora_afterwards",
    "sd_lora_two_level",
)


@dataclass(frozen=True)
class SequenceOptions:
    """How the classes come one after the other, and how each task is trained."""

    _argument_group_name: ClassVar[str] = "sequence"

    num_tasks: int = option(7, "the classes are dealt to this many tasks, as equally as can be")
    num_orders: int = option(5, "orders of the classes, each drawn with its number as the seed")
    first_order: int = option(0, "the number of the first order")
    variants: list[str] | None = option(
        None, f"what is trained: {', '.join(VARIANTS)}; default: all of them", "--methods"
    )
    memory_per_class: int = option(
        5,
        "examples of each class that are kept: replayed, or seen by the magnitudes alone, which "
        "then hold those of the current task out of training",
    )
    share: Literal["model", "layer"] = option(
        "model", "sd_lora: magnitudes of the whole model, as in the paper, or of each layer"
    )
    lora_r: int = option(8, "rank of every direction, and of the plain LoRA")
    lora_alpha: float = option(16.0, "the update is scaled by lora_alpha / lora_r")
    lora_target_modules: list[str] | None = option(
        None, "names of the adapted modules; default: PEFT's for the architecture"
    )
    learning_rate: float = option(1e-3, "learning rate of AdamW, falling to 0 within a task")
    upper_learning_rate: float = option(
        1e-2, "learning rate of magnitudes that other data fit, falling to 0 within a task"
    )
    num_train_epochs: float = option(5.0, "passes over the examples of a task")
    lower_steps: int = option(
        5, "updates of the direction for each of magnitudes above it, or fitted afterwards"
    )
    per_device_train_batch_size: int = option(16, "examples in a batch of either level")
    per_device_eval_batch_size: int = option(128, "examples in a batch of an evaluation")
    hypergradient: str = option(
        "darts",
        "how the direction's response to the magnitudes is computed; unrolled goes through all "
        "--lower_steps, alternating leaves the response out",
        choices=HYPERGRADIENTS.keys(),
    )
    test_on: Literal["test", "validation"] = option(
        "test", "what accuracies are measured on; validation for choosing settings"
    )
    output_dir: str | None = option(
        None, "folder of the results, which go on where they are; default: runs/continual/TASK"
    )

    def __post_init__(self) -> None:
        require_all(self, ("num_tasks",), 2, "must be at least 2")
        names = (
            "num_orders memory_per_class lora_r lower_steps per_device_train_batch_size "
            "per_device_eval_batch_size"
        )
        require_all(self, names.split(), 1, "must be at least 1")
        require_all(self, ("first_order",), 0, "must be at least 0")
        for name in ("lora_alpha", "learning_rate", "upper_learning_rate", "num_train_epochs"):
            value = getattr(self, name)
            require(0 < value < float("inf"), name, value, "must be greater than 0")
        for name in ("variants", "lora_target_modules"):
            object.__setattr__(self, name, separated(getattr(self, name)))
        once = self.variants is None or len(set(self.variants)) == len(self.variants)
        require(once, "variants", self.variants, "must name each once")
        for name in self.variants or ():
            known = f"must be among {', '.join(VARIANTS)}"
            require(name in VARIANTS, "variants", name, known)


SEQUENCE_GROUPS: Mapping[str, type] = {
    "model": ModelOptions,
    "data": DataOptions,
    "sequence": SequenceOptions,
}
