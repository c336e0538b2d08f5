"""A method that this file alone defines: ``dW = exp(w) s B A``, w in the upper level."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from adapters import export_lora, levels, retrain
from adapters.glue.configuration import BiLevelConfig
from adapters.glue.factors import LoraLayer, factors
from adapters.glue.masks import factors_in_use
from adapters.glue.registry import register
from adapters.glue.variants import AdditiveVariant, add_parameter
from tests.adapters.models import inputs, mlp, move, output


class GainVariant(AdditiveVariant):
    container = "lora_gain"

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        add_parameter(module, "lora_gain", adapter_name, torch.zeros(1))

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        used = factors_in_use(module, active_adapter)
        gain = module.lora_gain[active_adapter].exp() * used.scale
        return result + gain * (x @ used.A.T @ used.B.T)

    def folded_scale(self, layer: LoraLayer, adapter: str) -> Tensor:
        gain: Tensor = layer.lora_gain[adapter].exp()
        return gain

    def delta_weight(self, layer: LoraLayer, adapter: str) -> Tensor:
        pair = factors(layer, adapter)
        return self.folded_scale(layer, adapter) * pair.scale * (pair.B @ pair.A)


@dataclass
class GainConfig(BiLevelConfig):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = register("GAIN", GainConfig)

    def variant(self) -> GainVariant:
        return GainVariant()


def test_a_new_method_is_one_file(tmp_path: Path) -> None:
    model = move(get_peft_model(mlp(), GainConfig(r=3, target_modules=["first", "second"])), 0.3)
    x, expected = inputs("mlp"), output(model.eval(), inputs("mlp"))
    assert [name.split(".")[-2] for name in levels(model).upper_names] == ["lora_gain"] * 2
    model.save_pretrained(tmp_path / "own")
    loaded = PeftModel.from_pretrained(mlp(), tmp_path / "own")
    torch.testing.assert_close(output(loaded, x), expected)
    plain = PeftModel.from_pretrained(mlp(), export_lora(model, tmp_path / "plain"))
    assert plain.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(output(plain, x), expected)
    torch.testing.assert_close(output(loaded.merge_and_unload(), x), expected)
    assert len(retrain(model)) == 4
