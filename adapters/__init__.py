"""BiLoRA, BiDoRA, LoRA Dropout and their relatives on Hugging Face PEFT.

Importing the package registers its types with PEFT, so that ``PeftModel.from_pretrained`` knows
them.
"""

from adapters.methods.adalora import Allocation
from adapters.methods.autolora import AutoLoraConfig
from adapters.methods.beam_lora import BeamLoraConfig, BeamSearch
from adapters.methods.bidora import BiDoraConfig, DirectionOrthogonality
from adapters.methods.bilora import BiLoraConfig, Binarisation, Orthogonality
from adapters.methods.clora import NullSpace
from adapters.methods.diagonal import singular_values
from adapters.methods.lora_dropout import (
    LoraDropoutConfig,
    ensemble,
    mask_rates,
    masking,
    mean_loss,
)
from adapters.methods.lora_rite import LoraRite, lora_pairs
from adapters.methods.mole import Balance, MoleConfig, keep_experts
from adapters.methods.rac_lora import Link, chain
from adapters.methods.rep_lora import RepLoraConfig
from adapters.methods.rolora import Alternation, average
from adapters.methods.sd_lora import SdLoraConfig, next_task
from adapters.methods.sora import Shrinkage, SoraConfig
from adapters.methods.weight_decay import LoraWeightDecayConfig, WeightDecay, weight_decays
from adapters.results.analysis import analyse, changes
from adapters.results.export import export_lora
from adapters.results.model_card import write_model_card
from adapters.results.stock import export_stock, is_stock
from adapters.training.partition import Levels, levels
from adapters.training.problems import penalised, two_level
from adapters.training.rank_selection import rank_pattern, ranks, retrain_config
from adapters.training.retraining import retrain

__all__ = [
    "Allocation",
    "Alternation",
    "AutoLoraConfig",
    "Balance",
    "BeamLoraConfig",
    "BeamSearch",
    "BiDoraConfig",
    "BiLoraConfig",
    "Binarisation",
    "DirectionOrthogonality",
    "Levels",
    "Link",
    "LoraDropoutConfig",
    "LoraRite",
    "LoraWeightDecayConfig",
    "MoleConfig",
    "NullSpace",
    "Orthogonality",
    "RepLoraConfig",
    "SdLoraConfig",
    "Shrinkage",
    "SoraConfig",
    "WeightDecay",
    "analyse",
    "average",
    "chain",
    "changes",
    "ensemble",
    "export_lora",
    "export_stock",
    "is_stock",
    "keep_experts",
    "levels",
    "lora_pairs",
    "mask_rates",
    "masking",
    "mean_loss",
    "next_task",
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
