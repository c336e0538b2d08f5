import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import KasaConfig, LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from torch import nn

from adapters import BiDoraConfig, BiLoraConfig
from adapters.glue.registry import ExternalPeftType
from adapters.methods.bilora import BILORA
from tests.adapters.models import METHODS, adapted, config, mlp

every = pytest.mark.parametrize("method", METHODS)


def test_the_type_behaves_as_one_of_pefts() -> None:
    assert BILORA == "BILORA"
    assert hash(BILORA) == hash("BILORA")
    assert (BILORA.value, BILORA.name) == ("BILORA", "BILORA")
    assert type(BILORA.value) is str
    assert BILORA not in list(PeftType)
    for copied in (copy.deepcopy(BILORA), pickle.loads(pickle.dumps(BILORA))):
        assert copied == BILORA
        assert isinstance(copied, ExternalPeftType)


def test_importing_the_package_registers_the_type(tmp_path: Path) -> None:
    settings = BiLoraConfig(values="binary", r=4, target_modules=["a", "b"])
    settings.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert loaded == settings
    assert BiLoraConfig.from_pretrained(tmp_path) == settings


class Int8Linear(nn.Linear):
    """As bitsandbytes does it: a subclass of nn.Linear with integer weights."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        weight = torch.zeros(3, 5, dtype=torch.int8)
        self.weight = nn.Parameter(weight, requires_grad=False)


class PackedLinear(nn.Linear):
    """Four bits packed into bfloat16 storage: floating point, but not the weight."""

    def __init__(self) -> None:
        super().__init__(6, 4)
        self.weight = nn.Parameter(torch.zeros(12, 1, dtype=torch.bfloat16))


class Quantised(nn.Parameter):
    """A parameter of a class from elsewhere."""

    __module__ = "bitsandbytes.nn.modules"


class WrappedLinear(nn.Linear):
    """A weight that only looks like a tensor of floats."""

    def __init__(self) -> None:
        super().__init__(5, 3)
        self.weight = Quantised(torch.zeros(3, 5))


@every
@pytest.mark.parametrize("layer", [Int8Linear, PackedLinear, WrappedLinear])
def test_quantised_layers_are_refused(method: str, layer: type[nn.Module]) -> None:
    net = nn.Sequential(layer())
    with pytest.raises(TypeError, match=rf"{layer.__name__}.*without quantisation"):
        get_peft_model(net, config(method, target_modules=["0"]))


@every
@pytest.mark.parametrize("layer", [nn.Embedding(5, 3), nn.Conv2d(2, 3, 1), nn.Conv1d(2, 3, 1)])
def test_layers_of_other_kinds_are_refused(method: str, layer: nn.Module) -> None:
    with pytest.raises(TypeError, match=rf"{type(layer).__name__}; the bi-level adapters support"):
        get_peft_model(nn.Sequential(layer), config(method, target_modules=["0"]))


@every
@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"kasa_config": KasaConfig()},
        {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"},
        {"target_parameters": ["weight"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_change_the_layer_are_refused(method: str, options: dict[str, object]) -> None:
    with pytest.raises(
        ValueError, match=f"{next(iter(options))}.* {type(config(method)).__name__}"
    ):
        config(method, **options)


def test_bidora_refuses_dropout_and_says_why() -> None:
    with pytest.raises(ValueError, match=r"lora_dropout must be 0 .* got 0.1.*dropped input"):
        BiDoraConfig(lora_dropout=0.1)


def test_bidora_without_dora_is_refused() -> None:
    with pytest.raises(ValueError, match="use_dora must be True"):
        BiDoraConfig(use_dora=False)


def test_bidora_reads_the_config_of_a_newer_peft(tmp_path: Path) -> None:
    settings = BiDoraConfig(r=4, target_modules=["a", "b"], use_rslora=True)
    settings.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    assert BiDoraConfig.from_pretrained(tmp_path) == settings
    path.write_text(json.dumps({**saved, "of_the_future": 1}))
    with pytest.warns(UserWarning, match="of_the_future"):
        assert BiDoraConfig.from_pretrained(tmp_path) == settings
    path.write_text(json.dumps({**saved, "use_dora": False}))
    with pytest.raises(ValueError, match="use_dora must be True"):
        BiDoraConfig.from_pretrained(tmp_path)


def test_bilora_with_dora_is_refused() -> None:
    with pytest.raises(ValueError, match="use_dora cannot be combined with BiLoraConfig"):
        BiLoraConfig(use_dora=True)


def test_unknown_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"values must be one of .* got 'sigmoid'"):
        BiLoraConfig(values="sigmoid")


def test_a_softmax_of_one_value_is_refused() -> None:
    with pytest.raises(ValueError, match="always 1"):
        BiLoraConfig(r=1)
    with pytest.raises(ValueError, match="always 1"):
        BiLoraConfig(r=4, rank_pattern={"query": 1})
    assert BiLoraConfig(r=1, values="real").r == 1


def test_scaling_by_rank_needs_a_softmax() -> None:
    with pytest.raises(ValueError, match="scale_by_rank=True needs values='softmax'"):
        BiLoraConfig(values="real", scale_by_rank=True)


def test_bidora_never_falls_back_to_pefts_layer() -> None:
    # A layer that PEFT made first would detach the norm.
    model = get_peft_model(mlp(), LoraConfig(target_modules=["first"]))
    with pytest.raises(ValueError, match="unsupported variant combination"):
        model.add_adapter("second", BiDoraConfig(target_modules=["first"]))


def test_a_plain_adapter_may_join_bidora() -> None:
    model = adapted("mlp", "bidora", moved=0.3)
    x = torch.randn(4, 5)
    model.add_adapter("plain", LoraConfig(target_modules=["first"], init_lora_weights=False))
    model.set_adapter("plain")
    W, A, B = (
        dict(model.named_parameters())[f"base_model.model.first.{name}.weight"]
        for name in ("base_layer", "lora_A.plain", "lora_B.plain")
    )
    layer = model.base_model.model.first
    torch.testing.assert_close(layer(x), x @ (W + B @ A).T + layer.bias)


def test_bidora_cannot_start_from_merged_weights() -> None:
    model = adapted("mlp", "bidora", moved=0.3)
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        model.add_adapter("second", config("bidora", target_modules=["first"]))


def test_weighted_sums_of_bilora_adapters_are_refused() -> None:
    model = adapted("mlp", "real")
    with pytest.raises(NotImplementedError, match="export_lora"):
        model.add_weighted_adapter(["default"], [1.0], "sum")


CONTRADICTIONS = {
    "rank": ({}, {"r": 3}, r"lora_A.* has the shape \(2, .* it has the shape \(3, "),
    "form": ({}, {"values": "real", "tied": True}, r"lora_diagonal.* \(2,\) .* \(1,\)"),
    "masks": ({}, {"mask_rate": 0.3, "learn_mask_rate": True}, "lora_mask_logit.* is not there in"),
    "no masks": (
        {"mask_rate": 0.3, "learn_mask_rate": True},
        {"learn_mask_rate": False},
        "lora_mask_logit.* by the configuration it is not there",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_configuration_that_contradicts_its_checkpoint_is_refused(tmp_path, case):
    options, change, sentence = CONTRADICTIONS[case]
    net = lambda: torch.nn.Sequential(torch.nn.Linear(4, 3))
    model = get_peft_model(net(), BiLoraConfig(r=2, target_modules=["0"], **options))
    model.save_pretrained(str(tmp_path))
    PeftModel.from_pretrained(net(), str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=f"'default' contradicts its configuration: .*{sentence}"):
        PeftModel.from_pretrained(net(), str(tmp_path))
