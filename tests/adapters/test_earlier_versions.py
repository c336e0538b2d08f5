"""What version 0.1.0 wrote is read: adapters, and states of engines of two levels."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from adapters import BiDoraConfig, BiLoraConfig, export_lora, levels
from tests.data.version_0_1_0 import write

FOLDER = Path(write.__file__).parent
EXPECTED = load_file(FOLDER / "expected.safetensors")


def network() -> nn.Module:
    """The frozen model of the files."""
    made = write.network()
    prefix = "base."
    made.load_state_dict({n[len(prefix) :]: t for n, t in EXPECTED.items() if n.startswith(prefix)})
    return made


@pytest.mark.parametrize("name", write.CONFIGS)
def test_an_adapter_computes_what_it_did(name: str) -> None:
    model = PeftModel.from_pretrained(network(), FOLDER / name).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(EXPECTED["x"]), EXPECTED[f"output.{name}"])
    kind = LoraConfig if name == "bidora" else type(write.CONFIGS[name])
    assert type(model.peft_config["default"]) is kind


def test_bidora_is_trained_further() -> None:
    config = BiDoraConfig.from_pretrained(FOLDER / "bidora")
    model = PeftModel.from_pretrained(
        network(), FOLDER / "bidora", config=config, is_trainable=True
    )
    with torch.no_grad():
        torch.testing.assert_close(model(EXPECTED["x"]), EXPECTED["output.bidora"])
    assert len(levels(model).upper) == 2


def test_an_adapter_is_exported(tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(network(), FOLDER / "bilora_masked")
    plain = PeftModel.from_pretrained(network(), export_lora(model, tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(plain(EXPECTED["x"]), EXPECTED["output.bilora_masked"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_engine_goes_on_where_it_was(optimizer: str) -> None:
    options = {"values": "real", "r": 2, "lora_alpha": 6, "target_modules": ["0", "2"]}
    model = get_peft_model(network(), BiLoraConfig(**options))
    engine = write.engine(model, optimizer, EXPECTED["batches"])
    engine.load_state_dict(torch.load(FOLDER / f"engine_{optimizer}.pt", weights_only=True))
    assert engine.round == 3
    told = json.loads((FOLDER / f"engine_{optimizer}.json").read_text())
    for record, losses in zip(engine.rounds(2), told, strict=True):
        assert record.losses == pytest.approx(losses, rel=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.detach(), EXPECTED[f"{optimizer}.{name}"])
