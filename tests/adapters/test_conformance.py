"""What a PEFT user expects of an adapter, for every method and kind of layer."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from adapters import BiDoraConfig, levels
from tests.adapters.models import (
    ALL,
    BASES,
    DIAGONAL,
    adapted,
    base_model,
    bert,
    config,
    inputs,
    move,
    output,
)

every = pytest.mark.parametrize("method", ALL)
everywhere = pytest.mark.parametrize("base", list(BASES))


@every
@everywhere
def test_initial_output_is_the_frozen_models_bit_for_bit(base: str, method: str) -> None:
    batch = inputs(base)
    before = output(base_model(base), batch)
    assert torch.equal(output(adapted(base, method), batch), before)


@every
@everywhere
def test_merged_and_unmerged_models_agree(base: str, method: str) -> None:
    batch = inputs(base, dtype=torch.float64)
    frozen = output(base_model(base, torch.float64), batch)
    model = adapted(base, method, dtype=torch.float64, moved=0.3)
    before = output(model, batch)
    assert (before - frozen).norm() > 1e-2 * frozen.norm()
    model.merge_adapter()
    torch.testing.assert_close(output(model, batch), before, rtol=1e-10, atol=1e-10)
    model.unmerge_adapter()
    torch.testing.assert_close(output(model, batch), before, rtol=1e-10, atol=1e-10)
    with model.disable_adapter():
        torch.testing.assert_close(output(model, batch), frozen, rtol=1e-10, atol=1e-10)


@every
@everywhere
def test_safe_merge_and_unload_leaves_a_plain_model(base: str, method: str) -> None:
    batch = inputs(base)
    model = adapted(base, method, moved=0.3)
    before = output(model, batch)
    plain = model.merge_and_unload(safe_merge=True)
    assert not any("lora" in name for name, _ in plain.named_modules())
    torch.testing.assert_close(output(plain, batch), before, rtol=1e-5, atol=1e-5)


@every
def test_safe_merge_refuses_a_broken_adapter(method: str) -> None:
    model = adapted("mlp", method)
    with torch.no_grad():
        levels(model).upper[0][0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)


@every
@everywhere
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_computes_the_same(
    base: str, method: str, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    batch = inputs(base)
    model = adapted(base, method, moved=0.3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        base_model(base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    torch.testing.assert_close(output(loaded, batch), output(model, batch), rtol=1e-5, atol=1e-5)


@every
def test_a_saved_adapter_can_be_trained_further(method: str, tmp_path: Path) -> None:
    model = adapted("bert", method, moved=0.3)
    model.save_pretrained(tmp_path)
    settings = BiDoraConfig.from_pretrained(tmp_path) if method == "bidora" else None
    loaded = PeftModel.from_pretrained(bert(), tmp_path, is_trainable=True, config=settings).eval()
    assert torch.equal(output(loaded, inputs("bert")), output(model, inputs("bert")))
    assert levels(loaded).upper_names == levels(model).upper_names
    for ours, theirs in zip(levels(loaded).lower, levels(model).lower, strict=True):
        assert torch.equal(ours, theirs)


@every
def test_a_saved_configuration_is_the_one_in_use(method: str, tmp_path: Path) -> None:
    model = adapted("bert", method, rank_pattern={"query": 2}, alpha_pattern={"query": 7})
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    loaded = PeftConfig.from_pretrained(tmp_path)
    own = {
        "bidora": "LORA",
        "autolora": "AUTOLORA",
        "sora": "SORA",
        "decay": "LORA_WEIGHT_DECAY",
        "dropout": "LORA_DROPOUT",
    }
    assert saved["peft_type"] == own.get(method, "BILORA")
    assert saved["inference_mode"]
    assert saved["rank_pattern"] == {"query": 2}
    if method == "bidora":
        assert type(loaded) is LoraConfig
        assert set(saved) == set(LoraConfig().to_dict()) - {"runtime_config"}
    else:
        loaded.inference_mode = False
        assert loaded == model.peft_config["default"]


@every
def test_several_adapters_keep_apart(method: str, tmp_path: Path) -> None:
    batch = inputs("bert")
    model = adapted("bert", method, moved=0.3)
    first = output(model, batch)
    model.add_adapter("second", config(method, **{**BASES["bert"][1], "r": 2}))
    assert torch.equal(output(model, batch), first)
    model.set_adapter("second")
    move(model, 0.2)
    second = output(model, batch)
    assert not torch.allclose(second, first)
    assert all(".second" in name for name in levels(model).upper_names)
    assert levels(model).upper[0].shape == {"bidora": (32,), "dropout": (1,), "tied": (1,)}.get(
        method, (2,)
    )
    model.save_pretrained(tmp_path)
    model.set_adapter("default")
    assert torch.equal(output(model, batch), first)
    model.delete_adapter("second")
    assert not [name for name, _ in model.named_parameters() if "second" in name.split(".")]
    assert torch.equal(output(model, batch), first)
    model.load_adapter(tmp_path / "second", "third")
    model.set_adapter("third")
    torch.testing.assert_close(output(model, batch), second, rtol=1e-5, atol=1e-5)


@every
def test_deleting_the_active_adapter_activates_the_other(method: str) -> None:
    model = adapted("mlp", method, moved=0.3)
    before = output(model, inputs("mlp"))
    model.add_adapter("second", config(method, **BASES["mlp"][1]))
    model.set_adapter("second")
    with pytest.warns(UserWarning, match="second was active"):
        model.delete_adapter("second")
    assert torch.equal(output(model, inputs("mlp")), before)
    assert all(".default" in name for name in levels(model).upper_names)


@every
def test_disabling_an_adapter_returns_the_frozen_model(method: str) -> None:
    batch = inputs("gpt2")
    model = adapted("gpt2", method, moved=0.3)
    before = output(model, batch)
    with model.disable_adapter():
        assert torch.equal(output(model, batch), output(base_model("gpt2"), batch))
    assert torch.equal(output(model, batch), before)


@every
def test_adapters_are_merged_one_after_the_other(method: str) -> None:
    batch = inputs("mlp")
    model = adapted("mlp", method, moved=0.3)
    frozen = output(base_model("mlp"), batch)
    model.add_adapter("second", config(method, **BASES["mlp"][1]))
    model.set_adapter("second")
    move(model, 0.2)
    model.base_model.set_adapter(["default", "second"])
    before = output(model, batch)
    model.merge_adapter()
    torch.testing.assert_close(output(model, batch), before, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(output(model, batch), frozen, rtol=1e-5, atol=1e-5)


def test_a_batch_may_mix_adapters() -> None:
    batch = inputs("mlp")
    model = adapted("mlp", "real", moved=0.3).eval()
    first = output(model, batch)
    model.add_adapter("second", config("real", **BASES["mlp"][1]))
    model.set_adapter("second")
    move(model, 0.2)
    second = output(model.eval(), batch)
    names = ["default", "second", "__base__"] * 2
    with torch.no_grad():
        mixed = model(**batch, adapter_names=names)
    frozen = output(base_model("mlp"), batch)
    expected = torch.stack([first, second, frozen])[torch.arange(6) % 3, torch.arange(6)]
    torch.testing.assert_close(mixed, expected, rtol=1e-6, atol=1e-6)


@every
def test_training_moves_the_adapter_and_nothing_else(method: str) -> None:
    model = adapted("bert", method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = levels(model)
    optimizer = torch.optim.SGD([*split.upper, *split.lower], lr=0.5)
    for seed in range(3):
        optimizer.zero_grad()
        model(**inputs("bert", seed)).loss.backward()
        optimizer.step()
    trained = {*split.upper_names, *split.lower_names}
    moved = {name for name, value in model.state_dict().items() if (value != before[name]).any()}
    assert moved == trained


@every
@pytest.mark.parametrize("base", ["bert", "gpt2"])
def test_gradient_checkpointing_changes_no_gradient(base: str, method: str) -> None:
    def gradients(checkpointing: bool) -> tuple[torch.Tensor, ...]:
        model = adapted(base, method, moved=0.3).train()
        if checkpointing:
            # The name before and since transformers 5.23.
            name = "activation_checkpointing_enable"
            enable = getattr(model, name, None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        split = levels(model)
        extra = {"use_cache": False} if base == "gpt2" else {}
        loss = model(**inputs(base), **extra).loss
        return torch.autograd.grad(loss, [*split.upper, *split.lower])

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-6, atol=1e-7)


@every
@everywhere
def test_a_bfloat16_model_gets_a_float32_adapter(base: str, method: str) -> None:
    batch = inputs(base, dtype=torch.bfloat16)
    frozen = output(base_model(base, torch.bfloat16), batch)
    model = adapted(base, method, dtype=torch.bfloat16)
    split = levels(model)
    adapter = [p for n, p in model.named_parameters() if "lora_" in n]
    assert {parameter.dtype for parameter in adapter} == {torch.float32}
    assert torch.equal(output(model, batch), frozen)
    loss = model(**batch)
    loss = loss.float().square().mean() if base == "mlp" else loss.loss
    gradients = torch.autograd.grad(loss, [*split.upper, *split.lower])
    assert all(gradient.isfinite().all() for gradient in gradients)


@every
def test_a_bfloat16_model_stays_close_to_the_float32_one(method: str) -> None:
    reference = output(adapted("bert", method, moved=0.3), inputs("bert"))
    half = output(adapted("bert", method, dtype=torch.bfloat16, moved=0.3), inputs("bert"))
    # 8 bits of mantissa, some ten rounded operations deep.
    assert (half.float() - reference).norm() < 3e-2 * reference.norm()


@every
def test_a_model_can_be_copied_and_pickled(method: str) -> None:
    model = adapted("mlp", method, moved=0.3)
    before = output(model, inputs("mlp"))
    assert torch.equal(output(copy.deepcopy(model), inputs("mlp")), before)
    assert torch.equal(output(pickle.loads(pickle.dumps(model)), inputs("mlp")), before)
    settings = pickle.loads(pickle.dumps(model.peft_config["default"]))
    assert settings == model.peft_config["default"]


@every
def test_the_same_seed_gives_the_same_adapter(method: str) -> None:
    first, second = adapted("bert", method), adapted("bert", method)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@every
def test_a_compiled_graph_of_a_model_computes_the_same_and_can_be_merged(method: str) -> None:
    torch.compiler.reset()  # every method compiles the same lines again, and there is a limit
    model = adapted("mlp", method, moved=0.3)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    before = output(model, inputs("mlp"))
    assert torch.equal(output(compiled, inputs("mlp")), before)
    model.merge_adapter()
    torch.testing.assert_close(output(compiled, inputs("mlp")), before, rtol=1e-5, atol=1e-5)


@every
def test_a_layer_of_two_layouts_is_transposed_where_needed(method: str) -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    net = torch.nn.Sequential(Conv1D(7, 5), torch.nn.Linear(7, 3))
    batch = torch.randn(4, 5)
    before = net(batch)
    model = get_peft_model(net, config(method, target_modules=["0", "1"])).eval()
    assert torch.equal(model(batch), before)
    move(model, 0.3)
    unmerged = model(batch)
    model.merge_adapter()
    torch.testing.assert_close(model(batch), unmerged, rtol=1e-5, atol=1e-5)


# BiDoRA is not here: transformers 5.23 does not load the magnitudes of PEFT's own DoRA either.
@pytest.mark.parametrize("method", DIAGONAL)
def test_a_transformers_model_loads_the_adapter_itself(method: str, tmp_path: Path) -> None:
    model = adapted("gpt2", method, moved=0.3)
    model.save_pretrained(tmp_path)
    loaded = base_model("gpt2")
    loaded.load_adapter(str(tmp_path))
    torch.testing.assert_close(
        output(loaded, inputs("gpt2")), output(model, inputs("gpt2")), rtol=1e-5, atol=1e-5
    )


def test_bilora_does_not_mix_with_other_methods() -> None:
    model = adapted("mlp", "real")
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("plain", LoraConfig(target_modules=["first"]))
