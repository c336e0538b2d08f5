"""BiLoRA, BiDoRA, LoRA Dropout and their relatives on Hugging Face PEFT.

Importing the package registers its types with PEFT, so that ``PeftModel.from_pretrained`` knows
them.
"""

from adapters.adalora import Allocation
from adapters.analysis import analyse, changes
from adapters.autolora import AutoLoraConfig
from adapters.bidora import BiDoraConfig, DirectionOrthogonality
from adapters.bilora import BiLoraConfig, Binarisation, Orthogonality
from adapters.clora import NullSpace
from adapters.diagonal import singular_values
from adapters.export import export_lora
from adapters.lora_dropout import (
    LoraDropoutConfig,
    ensemble,
    mask_rates,
    masking,
    mean_loss,
)
from adapters.lora_rite import LoraRite, lora_pairs
from adapters.model_card import write_model_card
from adapters.partition import Levels, levels
from adapters.problems import penalised, two_level
from adapters.rac_lora import Link, chain
from adapters.rank_selection import rank_pattern, ranks, retrain_config
from adapters.retraining import retrain
from adapters.rolora import Alternation, average
from adapters.sora import Shrinkage, SoraConfig
from adapters.weight_decay import LoraWeightDecayConfig, WeightDecay, weight_decays

__all__ = [
    "Allocation",
    "Alternation",
    "AutoLoraConfig",
    "BiDoraConfig",
    "BiLoraConfig",
    "Binarisation",
    "DirectionOrthogonality",
    "Levels",
    "Link",
    "LoraDropoutConfig",
    "LoraRite",
    "LoraWeightDecayConfig",
    "NullSpace",
    "Orthogonality",
    "Shrinkage",
    "SoraConfig",
    "WeightDecay",
    "analyse",
    "average",
    "chain",
    "changes",
    "ensemble",
    "export_lora",
    "levels",
    "lora_pairs",
    "mask_rates",
    "masking",
    "mean_loss",
    "penalised",
    "rank_pattern",
    "ranks",
    "retrain",
    "retrain_config",
    "singular_values",
    "two_level",
    "weight_decays",
    "write_model_card",
]
