"""Types of adapters that PEFT knows, beside its own.

PEFT has no entry point for methods from outside: a type is entered in the three dictionaries behind
``get_peft_model``, none of them public. Written for peft 0.21.
"""

import warnings
from typing import Any, NoReturn

from peft import LoraConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.lora import LoraModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn

from adapters.glue.soundness import unmatched

__all__ = [
    "CONFIG_NAME",
    "SAFETENSORS_WEIGHTS_NAME",
    "WRAPPER",
    "ExternalPeftType",
    "FactorsOnlyModel",
    "register",
]

WRAPPER = "base_model.model."
"""What PEFT puts before the names of the modules of the model that it wraps."""


class ExternalPeftType(str):
    """A PEFT type defined outside PEFT.

    Where PEFT and transformers handle a ``peft.PeftType``, they compare it with strings, hash it
    or read its ``value``; this class answers all three. The enumeration cannot be extended.
    """

    __slots__ = ()

    @property
    def name(self) -> str:
        """The type as a plain string."""
        return str.__str__(self)

    @property
    def value(self) -> str:
        """The type as a plain string."""
        return str.__str__(self)


class FactorsOnlyModel(LoraModel):
    """PEFT's LoRA model, less what would combine A and B and drop the rest without a word."""

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Adapt the model, and warn of names that none of its modules has."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config: Any = self.peft_config[adapter_name]
        names = unmatched(config.target_modules, self.targeted_module_names)
        if names:
            warnings.warn(
                f"target_modules names {names}, which no module that can be adapted is called; "
                "they are left out",
                UserWarning,
                stacklevel=2,
            )

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: PEFT combines A and B alone."""
        raise NotImplementedError(
            "add_weighted_adapter would ignore all but A and B; write each adapter as a plain PEFT "
            "checkpoint with adapters.export_lora and combine those"
        )


def register(
    peft_type: str, config: type[LoraConfig], model: type[LoraModel] = FactorsOnlyModel
) -> ExternalPeftType:
    """Return the type under which PEFT saves, loads and injects adapters with this config."""
    known = ExternalPeftType(peft_type)
    PEFT_TYPE_TO_CONFIG_MAPPING[known] = config  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[known] = model  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[known] = "lora_"  # type: ignore[index]
    return known
