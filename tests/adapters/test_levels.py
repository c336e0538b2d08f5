import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model

from adapters import levels
from tests.adapters.models import BASES, METHODS, adapted, base_model, bert, config, mlp


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", list(BASES))
def test_levels_are_a_partition_of_the_trainable_parameters(base: str, method: str) -> None:
    model = adapted(base, method, bias="lora_only")
    split = levels(model)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    upper, lower = {id(p) for p in split.upper}, {id(p) for p in split.lower}
    assert not upper & lower
    assert upper | lower == trainable
    assert len(split.upper) + len(split.lower) == len(trainable)
    named = dict(model.named_parameters())
    assert [id(named[n]) for n in split.upper_names] == [id(p) for p in split.upper]
    assert [id(named[n]) for n in split.lower_names] == [id(p) for p in split.lower]


@pytest.mark.parametrize("method", METHODS)
def test_the_upper_level_holds_one_vector_a_layer(method: str) -> None:
    split = levels(adapted("bert", method))
    size = {"bidora": 32, "tied": 1}.get(method, 3)
    name = "magnitude" if method == "bidora" else "diagonal"
    assert [tuple(p.shape) for p in split.upper] == [(size,)] * 4
    assert all(name in n for n in split.upper_names)


@pytest.mark.parametrize("method", METHODS)
def test_heads_and_biases_are_lower(method: str) -> None:
    split = levels(adapted("bert", method, bias="lora_only"))
    assert any("classifier.modules_to_save" in name for name in split.lower_names)
    assert any("query.base_layer.bias" in name for name in split.lower_names)


@pytest.mark.parametrize("method", METHODS)
def test_levels_follow_the_active_adapter(method: str) -> None:
    model = adapted("bert", method)
    first = levels(model, "default")
    model.add_adapter("second", config(method, **BASES["bert"][1]))
    assert [id(p) for p in levels(model).upper] == [id(p) for p in first.upper]
    with pytest.raises(ValueError, match=r"call model\.set_adapter"):
        levels(model, "second")
    model.set_adapter("second")
    second = levels(model, "second")
    assert not {id(p) for p in [*first.upper, *first.lower]} & {
        id(p) for p in [*second.upper, *second.lower]
    }
    assert {id(p) for p in [*second.upper, *second.lower]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


def test_levels_of_several_active_adapters_need_a_name() -> None:
    model = adapted("mlp", "real")
    model.add_adapter("second", config("real", **BASES["mlp"][1]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"adapter_name must be given.*default.*second"):
        levels(model)
    split = levels(model, "second")
    assert all("second" in name for name in [*split.upper_names, *split.lower_names])


def test_a_module_called_as_another_adapter_keeps_its_parameters() -> None:
    model = adapted("mlp", "real")
    before = levels(model)
    model.add_adapter("second", config("real", **BASES["mlp"][1]))
    assert any(".second." in name for name in before.lower_names)
    assert levels(model).lower_names == before.lower_names
    assert levels(model).upper_names == before.upper_names


def test_levels_of_an_injected_adapter_are_found() -> None:
    model = inject_adapter_in_model(config("real", target_modules=["first"]), mlp())
    assert levels(model).upper_names == ["first.lora_diagonal.default"]


def test_levels_of_a_bare_layer_are_found() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 2))
    model = inject_adapter_in_model(config("bidora", target_modules=["0"]), net)
    assert levels(model[0]).upper_names == ["lora_magnitude_vector.default.weight"]


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_stock_adapters_have_no_levels(settings: dict[str, bool]) -> None:
    model = get_peft_model(bert(), LoraConfig(**BASES["bert"][1], **settings))
    with pytest.raises(ValueError, match="no active bi-level adapter"):
        levels(model)


def test_a_plain_model_has_no_levels() -> None:
    with pytest.raises(ValueError, match=r"BertForSequenceClassification.*get_peft_model"):
        levels(bert())


@pytest.mark.parametrize("method", ["real", "bidora"])
def test_a_frozen_adapter_has_no_levels(method: str, tmp_path) -> None:
    adapted("bert", method).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model("bert"), tmp_path)
    remedy = "from_pretrained" if method == "bidora" else "is_trainable=True"
    with pytest.raises(ValueError, match=remedy):
        levels(loaded)
