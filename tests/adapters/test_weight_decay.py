"""LoRA with learned weight decay: LoRA's forward pass, the penalty, and its hypergradient."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from adapters import (
    LoraWeightDecayConfig,
    WeightDecay,
    export_lora,
    levels,
    retrain,
    two_level,
    weight_decays,
)
from blo import Engine, alternating, darts, unrolled
from tests.adapters.models import BASES, adapted, base_model, inputs, output

everywhere = pytest.mark.parametrize("base", list(BASES))


def stock(base: str, ours: PeftModel) -> PeftModel:
    """PEFT's LoRA with the same factors and heads."""
    settings = LoraConfig(r=3, lora_alpha=6, fan_in_fan_out=base == "gpt2", **BASES[base][1])
    model = get_peft_model(base_model(base, torch.float64), settings).eval()
    mine = {n: p for n, p in ours.state_dict().items() if "lora_log_decay" not in n}
    model.load_state_dict(mine)
    return model


@everywhere
def test_it_computes_and_merges_as_stock_lora(base: str) -> None:
    ours = adapted(base, "decay", dtype=torch.float64, moved=0.3)
    batch = inputs(base, dtype=torch.float64)
    theirs = stock(base, ours)
    assert (output(ours, batch) - output(base_model(base, torch.float64), batch)).norm() > 1e-2
    torch.testing.assert_close(output(ours, batch), output(theirs, batch), rtol=1e-12, atol=1e-12)
    ours.merge_adapter()
    torch.testing.assert_close(output(ours, batch), output(theirs, batch), rtol=1e-10, atol=1e-10)


@everywhere
def test_one_decay_for_each_layer_is_above_and_all_else_below(base: str) -> None:
    model = adapted(base, "decay", initial_weight_decay=0.5)
    split = levels(model)
    assert split.upper_names == [n for n, _ in model.named_parameters() if "lora_log_decay" in n]
    assert [p.tolist() for p in split.upper] == [[pytest.approx(math.log(0.5))]] * len(split.upper)
    assert list(weight_decays(model).values()) == [pytest.approx(0.5)] * len(split.upper)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(split.lower_names) == trained - set(split.upper_names)


def test_the_penalty_is_half_the_decayed_squares() -> None:
    model = adapted("mlp", "decay", dtype=torch.float64, moved=0.3)
    named = {n: p.detach() for n, p in model.named_parameters()}
    expected = 0.0
    for layer in ("first", "second"):
        at = f"base_model.model.{layer}."
        w = named[at + "lora_log_decay.default"].item()
        for factor in ("lora_A", "lora_B"):
            entries = named[f"{at}{factor}.default.weight"].flatten().tolist()
            expected += math.exp(w) / 2 * sum(entry**2 for entry in entries)
    assert WeightDecay()(model).item() == pytest.approx(expected, rel=1e-12)


def test_a_half_precision_adapter_is_penalised_in_float32() -> None:
    model = adapted("mlp", "decay", moved=0.3)
    expected = WeightDecay()(model)
    model.to(torch.bfloat16)
    assert WeightDecay()(model).dtype == torch.float32
    torch.testing.assert_close(WeightDecay()(model), expected, rtol=1e-2, atol=0)


def test_a_saved_adapter_keeps_its_decays(tmp_path: Path) -> None:
    model = adapted("bert", "decay", moved=0.3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model("bert"), tmp_path).eval()
    assert weight_decays(loaded) == weight_decays(model)
    assert len(set(weight_decays(model).values())) == 4
    assert torch.equal(output(loaded, inputs("bert")), output(model, inputs("bert")))


def test_two_adapters_have_decays_of_their_own() -> None:
    model = adapted("mlp", "decay", initial_weight_decay=0.1)
    settings = LoraWeightDecayConfig(initial_weight_decay=0.3, **BASES["mlp"][1])
    model.add_adapter("second", settings)
    assert list(weight_decays(model).values()) == [pytest.approx(0.1)] * 2
    model.set_adapter("second")
    assert list(weight_decays(model).values()) == [pytest.approx(0.3)] * 2


def test_the_exported_adapter_is_stock_lora(tmp_path: Path) -> None:
    model = adapted("bert", "decay", moved=0.3)
    loaded = PeftModel.from_pretrained(base_model("bert"), export_lora(model, tmp_path)).eval()
    assert type(loaded.peft_config["default"]) is LoraConfig
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert not [name for name in saved if "decay" in name]
    assert sum("lora_" in name for name in saved) == 2 * 4
    torch.testing.assert_close(output(loaded, inputs("bert")), output(model, inputs("bert")))


def test_retraining_keeps_the_decays_and_starts_the_factors_anew() -> None:
    model = adapted("bert", "decay", moved=0.3)
    before = weight_decays(model)
    parameters = retrain(model)
    assert weight_decays(model) == before
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters}
    assert torch.equal(output(model, inputs("bert")), output(base_model("bert"), inputs("bert")))


# The hypergradient.

TRAIN, HELD_OUT = inputs("bert", 20), inputs("bert", 21)
LR, STEPS = 0.1, 3


def moved_model() -> PeftModel:
    return adapted("bert", "decay", dtype=torch.float64, moved=0.3, initial_weight_decay=0.2)


def hypergradient(model: PeftModel, method: Any, steps: int = STEPS) -> list[float]:
    """What one round with a learning rate of 1 takes off the decays."""
    split = levels(model)
    before = [p.item() for p in split.upper]
    graph = two_level(
        model,
        loss=lambda batch: model(**batch).loss,
        penalty=WeightDecay(),
        upper_batches=[HELD_OUT],
        lower_batches=[TRAIN],
        upper_optimizer=torch.optim.SGD(split.upper, 1.0),
        lower_optimizer=torch.optim.SGD(split.lower, LR),
        method=method,
        steps=steps,
    )
    next(Engine(graph).rounds(1))
    return [old - p.item() for old, p in zip(before, split.upper, strict=True)]


def held_out_loss(model: PeftModel, steps: int) -> float:
    """The whole objective: gradient descent written out, then the held-out loss."""
    split = levels(model)
    penalty = WeightDecay()
    for _ in range(steps):
        loss: Tensor = model(**TRAIN).loss + penalty(model)
        gradient = torch.autograd.grad(loss, split.lower)
        with torch.no_grad():
            for p, g in zip(split.lower, gradient, strict=True):
                p.sub_(LR * g)
    with torch.no_grad():
        value: float = model(**HELD_OUT).loss.item()
    return value


def differences(steps: int) -> list[float]:
    """The gradient of the whole objective by central differences of fourth order."""
    start, found, h = moved_model(), [], 1e-2

    def at(k: int, step: float) -> float:
        model = copy.deepcopy(start)
        with torch.no_grad():
            levels(model).upper[k].add_(step)
        return held_out_loss(model, steps)

    for k in range(len(levels(start).upper)):
        near, far = at(k, h) - at(k, -h), at(k, 2 * h) - at(k, -2 * h)
        found.append((8 * near - far) / (12 * h))
    return found


@pytest.mark.parametrize(
    "method, steps", [(unrolled(), STEPS), (unrolled(), 1), (darts(), 1)], ids=str
)
def test_the_hypergradient_is_that_of_the_whole_objective(method: Any, steps: int) -> None:
    expected = differences(steps)
    assert max(map(abs, expected)) > 1e-4
    assert hypergradient(moved_model(), method, steps) == pytest.approx(expected, rel=1e-6)


def test_without_the_response_nothing_is_learned() -> None:
    assert hypergradient(moved_model(), alternating()) == [0.0] * 4


# Refusals.


@pytest.mark.parametrize("start", [0.0, -1.0, math.inf, math.nan])
def test_a_decay_that_has_no_logarithm_is_refused(start: float) -> None:
    with pytest.raises(ValueError, match="initial_weight_decay must be a finite number above 0"):
        LoraWeightDecayConfig(initial_weight_decay=start)


def test_masks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_rate cannot be combined .* got 0\.5"):
        LoraWeightDecayConfig(mask_rate=0.5)


@pytest.mark.parametrize("function", [WeightDecay(), weight_decays])
def test_a_model_without_decays_is_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="no active adapter with learned weight decay"):
        function(adapted("mlp", "real"))
