"""BiLoRA and BiDoRA on Hugging Face PEFT.

Importing the package registers its types with PEFT, so that ``PeftModel.from_pretrained`` knows
them.
"""

from adapters.autolora import AutoLoraConfig
from adapters.bidora import BiDoraConfig, DirectionOrthogonality, retrain
from adapters.bilora import BiLoraConfig, Binarisation, Orthogonality
from adapters.diagonal import singular_values
from adapters.export import export_lora
from adapters.levels import Levels, levels
from adapters.lora_dropout import (
    LoraDropoutConfig,
    ensemble,
    mask_rates,
    masking,
    mean_loss,
)
from adapters.problems import two_level
from adapters.ranks import rank_pattern, ranks, retrain_config
from adapters.sora import Shrinkage, SoraConfig

__all__ = [
    "AutoLoraConfig",
    "BiDoraConfig",
    "BiLoraConfig",
    "Binarisation",
    "DirectionOrthogonality",
    "Levels",
    "LoraDropoutConfig",
    "Orthogonality",
    "Shrinkage",
    "SoraConfig",
    "ensemble",
    "export_lora",
    "levels",
    "mask_rates",
    "masking",
    "mean_loss",
    "rank_pattern",
    "ranks",
    "retrain",
    "retrain_config",
    "singular_values",
    "two_level",
]
