import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from adapters import export_lora, levels, rank_pattern, ranks, retrain_config
from tests.adapters.models import BASES, adapted, base_model, bert, config, inputs, mlp, output


def set_values(model: PeftModel, rows: list[list[float]]) -> None:
    with torch.no_grad():
        for d, row in zip(levels(model).upper, rows, strict=True):
            d.copy_(torch.tensor(row))


def lora_ranks(model: PeftModel) -> dict[str, int]:
    """The ranks of a stock LoRA model, read off its matrices."""
    prefix, suffix = "base_model.model.", ".lora_A.default.weight"
    return {
        name.removeprefix(prefix).removesuffix(suffix): p.shape[0]
        for name, p in model.named_parameters()
        if name.endswith(suffix)
    }


def scales(model: PeftModel) -> dict[str, float]:
    return {
        name: module.scaling["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def test_ranks_of_gates_are_the_numbers_of_values_other_than_zero() -> None:
    model = adapted("mlp", "sora")
    set_values(model, [[0.0, 1e-30, -1.0], [0.0, 0.0, 0.0]])
    assert ranks(model) == {"first": 2, "second": 0}


def test_a_rank_of_zero_becomes_pefts_lowest() -> None:
    model = adapted("mlp", "sora")
    set_values(model, [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert rank_pattern(model) == {"^first": 1, "^second": 1}


@pytest.mark.parametrize("scaling", [{}, {"use_rslora": True}, {"alpha_pattern": {"value": 5}}])
def test_stock_lora_has_the_selected_ranks_and_the_scale_of_the_search(
    scaling: dict[str, object],
) -> None:
    searched = adapted("bert", "autolora", **scaling)
    set_values(searched, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    plain = get_peft_model(bert(), retrain_config(searched))
    assert list(lora_ranks(plain).values()) == [3, 1, 2, 1]
    assert lora_ranks(plain) == ranks(searched)
    assert scales(plain) == pytest.approx(scales(searched), rel=1e-15)


def test_a_key_of_the_pattern_matches_one_module() -> None:
    # The name of one module ends the other's; PEFT matches keys from any dot to the end.
    net = nn.ModuleDict({"0": nn.Linear(4, 4), "a": nn.ModuleDict({"0": nn.Linear(4, 4)})})
    model = get_peft_model(net, config("autolora", target_modules=["0"]))
    set_values(model, [[1, 0, 0], [1, 1, 0]])
    again = get_peft_model(
        nn.ModuleDict({"0": nn.Linear(4, 4), "a": nn.ModuleDict({"0": nn.Linear(4, 4)})}),
        retrain_config(model),
    )
    assert lora_ranks(again) == {"0": 1, "a.0": 2}


def test_a_retrained_model_starts_as_the_frozen_one_and_trains_what_the_search_trained() -> None:
    searched = adapted("bert", "autolora", moved=0.3, bias="lora_only", lora_dropout=0.1)
    settings = retrain_config(searched)
    assert type(settings) is LoraConfig
    assert settings.peft_type == "LORA"
    plain = get_peft_model(bert(), settings).eval()
    assert torch.equal(output(plain, inputs("bert")), output(bert(), inputs("bert")))
    below = set(levels(searched).lower_names)
    assert {name for name, p in plain.named_parameters() if p.requires_grad} == below
    assert settings.lora_dropout == 0.1


def test_a_retrain_config_shares_nothing_with_the_search() -> None:
    searched = adapted("mlp", "autolora")
    retrain_config(searched).target_modules.clear()
    assert searched.peft_config["default"].target_modules == {"first", "second"}
    assert not searched.peft_config["default"].rank_pattern


def test_a_pruned_checkpoint_holds_the_selected_ranks_only(tmp_path: Path) -> None:
    model = adapted("mlp", "sora", moved=0.3)
    set_values(model, [[0.0, 2.0, -1.0], [0.0, 0.0, 0.0]])
    export_lora(model, tmp_path, prune=True)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    named = {n: p.detach() for n, p in model.named_parameters()}
    prefix = "base_model.model.first."
    A, B = (saved[f"{prefix}lora_{x}.weight"] for x in "AB")
    assert torch.equal(A, named[f"{prefix}lora_A.default.weight"][1:])
    assert torch.equal(
        B, named[f"{prefix}lora_B.default.weight"][:, 1:] * torch.tensor([2.0, -1.0])
    )
    assert (saved["base_model.model.second.lora_B.weight"] == 0).all()
    assert saved["base_model.model.second.lora_B.weight"].shape == (3, 1)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["rank_pattern"] == {"^first": 2, "^second": 1}
    assert settings["alpha_pattern"] == {"^first": 4, "^second": 2}


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("scaling", [{}, {"use_rslora": True}])
def test_pruning_zeros_changes_no_output(
    base: str, scaling: dict[str, bool], tmp_path: Path
) -> None:
    model = adapted(base, "sora", dtype=torch.float64, moved=0.3, **scaling)
    with torch.no_grad():
        for position, gates in enumerate(levels(model).upper):
            gates[: position % 4] = 0
    export_lora(model, tmp_path, prune=True)
    # autocast_adapter_dtype concerns half precision only: the factors are read as float64.
    plain = PeftModel.from_pretrained(base_model(base, torch.float64), tmp_path)
    batch = inputs(base, dtype=torch.float64)
    torch.testing.assert_close(output(plain, batch), output(model, batch), rtol=1e-12, atol=1e-12)


def test_equal_scale_of_a_pruned_rank_stabilised_adapter(tmp_path: Path) -> None:
    model = adapted("mlp", "sora", use_rslora=True)
    set_values(model, [[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    export_lora(model, tmp_path, prune=True)
    alphas = json.loads((tmp_path / "adapter_config.json").read_text())["alpha_pattern"]
    assert alphas["^first"] == pytest.approx(6 / math.sqrt(3))
    assert alphas["^second"] == pytest.approx(6 * math.sqrt(2) / math.sqrt(3))


def test_models_without_ranks_to_select_are_refused() -> None:
    plain = get_peft_model(mlp(), LoraConfig(target_modules=["first"]))
    for model in (plain, adapted("mlp", "bidora")):
        for function in (ranks, rank_pattern, retrain_config):
            with pytest.raises(ValueError, match="no active adapter that selects ranks"):
                function(model)
    with pytest.raises(ValueError, match="no adapter 'other'"):
        ranks(adapted("mlp", "autolora"), "other")


def test_the_config_of_several_active_adapters_needs_a_name() -> None:
    model = adapted("mlp", "autolora")
    model.add_adapter("other", config("autolora", r=2, **BASES["mlp"][1]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"adapter_name must be given.*default.*other"):
        retrain_config(model)
    assert retrain_config(model, "other").rank_pattern == {"^first": 2, "^second": 2}
