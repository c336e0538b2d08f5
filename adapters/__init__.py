"""BiLoRA and BiDoRA on Hugging Face PEFT.

Importing the package registers its types with PEFT, so that ``PeftModel.from_pretrained`` knows
them.
"""

from adapters.bidora import BiDoraConfig, DirectionOrthogonality
from adapters.bilora import BiLoraConfig, Binarisation, Orthogonality
from adapters.diagonal import singular_values
from adapters.export import export_lora
from adapters.levels import Levels, levels
from adapters.problems import two_level

__all__ = [
    "BiDoraConfig",
    "BiLoraConfig",
    "Binarisation",
    "DirectionOrthogonality",
    "Levels",
    "Orthogonality",
    "export_lora",
    "levels",
    "singular_values",
    "two_level",
]
