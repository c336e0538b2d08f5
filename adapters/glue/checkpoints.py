"""Folders of plain LoRA, read as factors."""

import math
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor

from adapters.glue.registry import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WRAPPER

__all__ = ["LoraFolder"]


class LoraFolder:
    """The factors of a plain LoRA adapter that PEFT has saved.

    Args:
        path: a folder that ``model.save_pretrained`` or `export_lora` has written.

    Raises:
        ValueError: if it is no such folder, or holds more than ``dW = s B A``.
    """

    def __init__(self, path: str) -> None:
        if not Path(path, CONFIG_NAME).is_file():
            raise ValueError(
                f"experts must be folders with an adapter that PEFT has saved, {path!r} has no "
                f"{CONFIG_NAME}"
            )
        config: Any = PeftConfig.from_pretrained(path)
        added = [option for option in ("use_dora", "lora_bias") if getattr(config, option, False)]
        if type(config) is not LoraConfig or added or config.bias != "none":
            what = added or [f"{type(config).__name__}, bias={getattr(config, 'bias', None)!r}"]
            raise ValueError(
                f"experts must be plain LoRA, got {what[0]} in {path!r}; write it with "
                "adapters.export_lora"
            )
        self.path = path
        self._config = config
        self._tensors = load_file(Path(path, SAFETENSORS_WEIGHTS_NAME))
        suffix = ".lora_A.weight"
        self.modules = [
            key.removeprefix(WRAPPER).removesuffix(suffix)
            for key in self._tensors
            if key.endswith(suffix)
        ]
        """The names of the modules that it adapts."""
        self.rank = max(self.factors(module)[0].shape[0] for module in self.modules)
        """Its largest rank."""

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Return A and ``s B`` of one module."""
        A, B = (self._tensors[f"{WRAPPER}{module}.lora_{name}.weight"] for name in "AB")
        patterns: dict[str, float] = self._config.alpha_pattern or {}
        alpha = patterns.get(get_pattern_key(list(patterns), module), self._config.lora_alpha)
        root = math.sqrt if self._config.use_rslora else float
        return A, B * (alpha / root(A.shape[0]))
