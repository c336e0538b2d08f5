"""Which adapters PEFT loads alone, and what is written for it."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from adapters import (
    BiDoraConfig,
    BiLoraConfig,
    LoraDropoutConfig,
    SoraConfig,
    export_stock,
    is_stock,
)

OPTIONS = {"r": 2, "target_modules": ["0"]}


def model(config: LoraConfig) -> PeftModel:
    torch.manual_seed(0)
    made = get_peft_model(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    assert isinstance(made, PeftModel)
    return made.eval()


@pytest.mark.parametrize(
    "config, stock",
    [
        (LoraConfig(**OPTIONS), True),
        (BiDoraConfig(**OPTIONS), True),
        (BiDoraConfig(mask_rate=0.5, **OPTIONS), False),
        (BiLoraConfig(**OPTIONS), False),
        (SoraConfig(**OPTIONS), False),
        (LoraDropoutConfig(**OPTIONS), False),
    ],
)
def test_what_is_written_is_peft_s_own_and_computes_the_same(
    config: LoraConfig, stock: bool, tmp_path: Path
) -> None:
    trained = model(config)
    assert is_stock(trained) is stock
    folder = export_stock(trained, tmp_path / "adapter")
    written = json.loads((folder / "adapter_config.json").read_text())
    assert written["peft_type"] == "LORA"
    assert not {*written} - {*LoraConfig().to_dict()}
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    found = PeftModel.from_pretrained(base, str(folder)).eval()(x)
    torch.testing.assert_close(found, trained(x))


def test_a_named_adapter_is_written_into_the_folder_itself(tmp_path: Path) -> None:
    trained = model(LoraConfig(**OPTIONS))
    trained.add_adapter("second", LoraConfig(**OPTIONS))
    folder = export_stock(trained, tmp_path, "second")
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json"}
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_what_peft_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"norm_axis='in'.*merge_and_unload"):
        export_stock(model(BiDoraConfig(norm_axis="in", **OPTIONS)), tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []
