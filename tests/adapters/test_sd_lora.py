"""SD-LoRA against plain LoRA, dense matrices and its own past."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from adapters import SdLoraConfig, export_lora, levels, next_task
from tests.adapters.models import BASES, Batch, bert, gpt2, inputs, mlp, move, output

TARGETS = {"target_modules": ["first", "second"]}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"share": "layer", "normalise": "factors", "use_rslora": True},
]


def adapted(**options: Any) -> PeftModel:
    torch.manual_seed(4)
    settings = {"r": 3, "lora_alpha": 6, **TARGETS, **options}
    return get_peft_model(mlp(), SdLoraConfig(**settings))


def trained(model: PeftModel, seed: int, batch: Batch | None = None, steps: int = 5) -> PeftModel:
    """The model after a few steps of Adam towards targets of its own."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.05)
    batch = inputs("mlp", seed) if batch is None else batch
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(**batch)
        loss = (out - seed).square().mean() if isinstance(out, Tensor) else out.loss
        loss.backward()
        optimizer.step()
    return model


def magnitudes(model: PeftModel) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if "lora_task_magnitudes" in name]


def old(model: PeftModel) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_old" in n}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_next_task_changes_no_output_and_old_directions_stay(options: dict[str, Any]) -> None:
    x, model = inputs("mlp"), adapted(**options)
    for task in (2, 3, 4):
        trained(model, task)
        before, directions = output(model, x), old(model)
        assert next_task(model, rank=5 - task) == task
        assert (output(model, x) - before).abs().max() < 1e-6 * before.abs().max()
        kept = old(model)
        for name, direction in directions.items():  # earlier tasks come first, bit for bit
            rows = kept[name][: len(direction)] if "old_A" in name else kept[name]
            assert torch.equal(rows[:, : direction.shape[1]], direction)
        trained(model, 10 * task)
        assert all(torch.equal(now, kept[name]) for name, now in old(model).items())
        assert not torch.allclose(output(model, x), before, atol=1e-2)
    for values in magnitudes(model):
        assert values.shape == (4,)
        assert values.grad is not None
        assert (values.grad != 0).all()
    assert len(magnitudes(model)) == (2 if options else 1)


@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_next_task_changes_no_output_of_a_transformer(build: Any) -> None:
    base, batch = build.__name__, inputs(build.__name__)
    model = trained(get_peft_model(build(), SdLoraConfig(r=2, **BASES[base][1])), 0, batch)
    before = output(model, batch)
    assert (before - output(build(), batch)).norm() > 1e-2 * before.norm()
    next_task(model)
    assert (output(model, batch) - before).abs().max() < 1e-6 * before.abs().max()


def test_the_first_task_is_lora_times_its_magnitude() -> None:
    x, model = inputs("mlp"), trained(adapted(), 1)
    reference = get_peft_model(mlp(), LoraConfig(r=3, lora_alpha=6, **TARGETS))
    (magnitude,) = magnitudes(model)
    named = dict(model.named_parameters())
    for name, parameter in reference.named_parameters():
        if parameter.requires_grad:
            factor = magnitude if "lora_B" in name else 1
            parameter.data.copy_(factor * named[name])
    torch.testing.assert_close(output(model, x), output(reference, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalise", ["product", "factors"])
def test_the_gradient_of_a_magnitude_is_that_of_the_dense_direction(normalise: str) -> None:
    model = adapted(normalise=normalise).double()
    trained(model, 2, inputs("mlp", 2, torch.float64))
    layers = [model.base_model.model.first, model.base_model.model.second]
    products = [
        tuple(one["default"].weight.detach().clone() for one in (layer.lora_B, layer.lora_A))
        for layer in layers
    ]
    if normalise == "product":
        norm = torch.cat([(B @ A).flatten() for B, A in products]).norm()
    else:
        norm = torch.tensor([B.norm() * A.norm() for B, A in products]).norm()
    before = magnitudes(model)[0].item()
    next_task(model)
    assert magnitudes(model)[0][0].item() == pytest.approx(before * float(norm), rel=1e-12)
    trained(model, 3, inputs("mlp", 3, torch.float64))
    scale = 2.0  # alpha / r
    weights = [layer.get_base_layer().weight.requires_grad_() for layer in layers]
    loss = model(**inputs("mlp", 5, torch.float64)).square().mean()
    (found, *dense) = torch.autograd.grad(loss, [*magnitudes(model), *weights])
    pairs = list(zip(products, dense, strict=True))
    expected = [scale * sum(((B @ A / norm) * g).sum() for (B, A), g in pairs)]
    current = [layer.lora_B["default"].weight @ layer.lora_A["default"].weight for layer in layers]
    expected.append(scale * sum((D * g).sum() for D, g in zip(current, dense, strict=True)))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_a_direction_that_old_ones_span_is_dropped() -> None:
    x, model = inputs("mlp"), trained(adapted(), 2)
    next_task(model)
    layers = [model.base_model.model.first, model.base_model.model.second]
    with torch.no_grad():  # the same direction again, thrice as long, through other factors
        for layer in layers:
            layer.lora_A["default"].weight.copy_(2 * layer.lora_old_A["default"].flip(0))
            layer.lora_B["default"].weight.copy_(1.5 * layer.lora_old_B["default"].flip(1))
        magnitudes(model)[0].copy_(torch.tensor([0.7, 0.4]))
    before = output(model, x)
    assert next_task(model, tolerance=1e-9) == 2
    torch.testing.assert_close(output(model, x), before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(magnitudes(model)[0], torch.tensor([0.7 + 0.4 * 3, 1.0]))
    trained(model, 3)
    assert next_task(model, tolerance=9e-4) == 3  # another direction is kept


def test_a_direction_that_is_mostly_spanned_leaves_what_the_gram_matrix_says() -> None:
    model = trained(adapted(), 2)
    next_task(model)
    trained(model, 3)
    layers = [model.base_model.model.first, model.base_model.model.second]
    flat = []
    for layer in layers:
        old_B, old_A = layer.lora_old_B["default"], layer.lora_old_A["default"]
        B, A = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        flat.append(torch.stack([(old_B @ old_A).flatten(), (B @ A).flatten()]))
    one, two = torch.cat(flat, 1).detach().double()
    rest = 1 - float(one @ two / (one.norm() * two.norm())) ** 2
    assert 1e-3 < rest < 1
    c = magnitudes(model)[0].detach().double()
    assert next_task(model, tolerance=1.001 * rest) == 2
    expected = float(c[0] + c[1] * (one @ two) / (one @ one))
    assert magnitudes(model)[0][0].item() == pytest.approx(expected, rel=1e-4)


def test_tasks_are_saved_loaded_and_folded(tmp_path: Path) -> None:
    x, model = (
        inputs("mlp"),
        trained(adapted(magnitude_level="upper", use_rslora=True, joint=True), 2),
    )
    next_task(model, rank=2)
    trained(model, 3)
    expected = output(model, x)
    model.save_pretrained(tmp_path / "own")
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(mlp(), tmp_path / "own", is_trainable=True, **options)
        torch.testing.assert_close(output(loaded, x), expected)
        assert not any(p.requires_grad for n, p in loaded.named_parameters() if "lora_old" in n)
        assert levels(loaded).upper_names == levels(model).upper_names
    trained(loaded, 4)
    before = output(loaded, x)
    assert next_task(loaded) == 3
    torch.testing.assert_close(output(loaded, x), before, rtol=1e-6, atol=1e-6)
    plain = PeftModel.from_pretrained(mlp(), export_lora(model, tmp_path / "plain"))
    assert plain.peft_config["default"].peft_type == "LORA"
    assert plain.base_model.model.first.r["default"] == 5
    torch.testing.assert_close(output(plain, x), expected, rtol=1e-5, atol=1e-6)
    model.merge_adapter()
    torch.testing.assert_close(output(model, x), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="unmerge_adapter"):
        next_task(model)
    model.unmerge_adapter()
    torch.testing.assert_close(output(model, x), expected, rtol=1e-5, atol=1e-6)


def test_other_adapters_are_left_alone() -> None:
    model = move(adapted(), 0.3)
    first = output(model, inputs("mlp"))
    model.add_adapter("second", SdLoraConfig(r=2, **TARGETS))
    model.set_adapter("second")
    move(model, 0.3)
    assert next_task(model) == 2
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(output(model, inputs("mlp")), first)


def test_a_bfloat16_model_keeps_old_directions_frozen(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = get_peft_model(mlp(torch.bfloat16), SdLoraConfig(r=2, **TARGETS))
    next_task(move(model, 0.3))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(mlp(torch.bfloat16), tmp_path, is_trainable=True)
    frozen = {n: p for n, p in loaded.named_parameters() if "lora_old" in n}
    assert {p.dtype for p in frozen.values()} == {torch.float32}
    assert not any(p.requires_grad for p in frozen.values())


def test_misuse_is_refused() -> None:
    for options, message in (
        ({"share": "all"}, "share must be one of"),
        ({"rank_pattern": {"first": 2}}, "hand it to next_task"),
    ):
        with pytest.raises(ValueError, match=message):
            adapted(**options)
    with pytest.raises(ValueError, match="B = 0 everywhere"):
        next_task(adapted())
    with pytest.raises(ValueError, match="rank must be an integer of at least 1, got 0"):
        next_task(trained(adapted(), 1), rank=0)
    with pytest.raises(ValueError, match="no active SD-LoRA adapter"):
        next_task(mlp())
    with pytest.raises(ValueError, match="SdLoraConfig\\(magnitude_level='upper'\\)"):
        levels(adapted())


def test_a_direction_is_dropped_where_every_group_spans_it() -> None:
    x, model = inputs("mlp"), trained(adapted(share="layer"), 2)
    next_task(model)
    trained(model, 3)
    first = model.base_model.model.first
    with torch.no_grad():  # of one layer the same direction again, of the other one of its own
        first.lora_A["default"].weight.copy_(2 * first.lora_old_A["default"])
        first.lora_B["default"].weight.copy_(first.lora_old_B["default"])
    before = output(model, x)
    assert next_task(model, tolerance=1e-6) == 3
    torch.testing.assert_close(output(model, x), before, rtol=1e-5, atol=1e-6)


def test_another_rank_leaves_scales_of_their_own_as_they_are(tmp_path: Path) -> None:
    x, model = inputs("mlp"), trained(adapted(alpha_pattern={"first": 12}), 2)
    next_task(model, rank=1)
    trained(model, 3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(mlp(), tmp_path)
    torch.testing.assert_close(output(loaded, x), output(model, x))


def test_magnitudes_that_are_frozen_stay_so() -> None:
    model = trained(adapted(), 2)
    magnitudes(model)[0].requires_grad_(False)
    next_task(model)
    assert not magnitudes(model)[0].requires_grad


@pytest.mark.parametrize("rank", [3, 2])
def test_joint_training_is_noticed_in_every_task(rank: int) -> None:
    model = move(adapted(magnitude_level="upper"), 0.3)
    next_task(model, rank=rank)
    with pytest.warns(UserWarning, match="reached both levels"):
        model(**inputs("mlp")).square().mean().backward()
