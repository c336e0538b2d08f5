"""Which adapters PEFT loads alone, and what is written for it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
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


@pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("pruned", [0.0, 0.7])
def test_ranks_of_adalora_that_are_not_zero_are_saved(pruned: float, tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(4, 3))
    config: Any = AdaLoraConfig(init_r=3, target_r=2, total_step=9, target_modules=["0"])
    trained = get_peft_model(copy.deepcopy(base), config)
    parameters = dict(trained.named_parameters())
    with torch.no_grad():
        parameters["base_model.model.0.lora_E.default"].copy_(torch.tensor([[2.0], [pruned], [3]]))
    config.rank_pattern = {"0.lora_E.default": [True, False, True]}
    export_stock(trained, tmp_path / "adapter")
    assert [*(config.rank_pattern or {}).values()] == [[True, False, True]]
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(x), trained(x))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved["base_model.model.0.lora_E"].shape[0] == (3 if pruned else 2)
