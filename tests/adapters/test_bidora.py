"""BiDoRA's second phase, and magnitudes of columns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call

from adapters import BiDoraConfig, DirectionOrthogonality, levels, retrain
from blo import Engine, Problem, ProblemGraph
from tests.adapters.models import BASES, adapted, base_model, inputs, move, output

IN = {"norm_axis": "in"}


def columns(base: str, *, moved: float = 0.3, **options: Any) -> PeftModel:
    return adapted(base, "bidora", moved=moved, **IN, **options)


def named(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# Retraining


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("axis", ["out", "in"])
def test_retraining_leaves_every_magnitude_as_it_was(restart: bool, axis: str) -> None:
    model = adapted("bert", "bidora", moved=0.3, norm_axis=axis)
    split, before = levels(model), named(model)
    batch = inputs("bert")
    optimizer = torch.optim.AdamW(retrain(model, restart=restart), 0.1)
    problem = Problem("train", lambda batch: model(**batch).loss, model, optimizer, [batch])
    list(Engine(ProblemGraph([problem])).rounds(3))
    after = named(model)
    assert all(torch.equal(after[name], before[name]) for name in split.upper_names)
    assert not any(torch.equal(after[name], before[name]) for name in split.lower_names)
    frozen = after.keys() - {*split.upper_names, *split.lower_names}
    assert all(torch.equal(after[name], before[name]) for name in frozen)


def test_retraining_returns_the_lower_parameters_and_nothing_else_is_trainable() -> None:
    model = adapted("bert", "bidora", moved=0.3)
    lower = levels(model).lower
    found = retrain(model)
    assert [id(p) for p in found] == [id(p) for p in lower]
    assert {id(p) for p in found} == {id(p) for p in model.parameters() if p.requires_grad}


def test_directions_that_go_on_keep_their_values() -> None:
    model = adapted("bert", "bidora", moved=0.3)
    before = named(model)
    retrain(model, restart=False)
    assert all(torch.equal(value, before[name]) for name, value in named(model).items())


def test_directions_that_restart_are_those_of_a_new_adapter() -> None:
    model = adapted("bert", "bidora", moved=0.3)
    before, start = named(model), named(base_model("bert"))
    retrain(model)
    for name, value in named(model).items():
        if "lora_A" in name:
            assert not torch.equal(value, before[name])
            assert value.abs().max() <= 1 / 32**0.5  # Kaiming's bound for 32 inputs
            assert value.std() == pytest.approx((3 * 32) ** -0.5, rel=0.2)
        elif "lora_B" in name:
            assert (value == 0).all()
        elif "modules_to_save" in name:
            assert torch.equal(value, start[f"classifier.{name.rpartition('.')[2]}"])
        else:
            assert torch.equal(value, before[name])


def test_a_restarted_layer_has_the_frozen_direction_and_the_magnitude_found() -> None:
    model = adapted("mlp", "bidora", moved=0.3, dtype=torch.float64)
    retrain(model)
    layer = model.base_model.model.first
    W0, m = layer.base_layer.weight, layer.lora_magnitude_vector["default"].weight
    x = torch.randn(4, 5, dtype=torch.float64)
    expected = x @ (m[:, None] * W0 / W0.norm(dim=1, keepdim=True)).T + layer.base_layer.bias
    torch.testing.assert_close(layer(x), expected)


def test_a_gaussian_start_is_repeated() -> None:
    model = adapted("bert", "bidora", moved=0.3, init_lora_weights="gaussian")
    retrain(model)
    A = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "lora_A" in n])
    assert A.std() == pytest.approx(1 / 3, rel=0.15)


def test_retraining_refuses_what_it_cannot_restart() -> None:
    with pytest.raises(ValueError, match=r"bias='none', got 'lora_only'.*restart=False"):
        retrain(adapted("bert", "bidora", bias="lora_only"))
    assert retrain(adapted("bert", "bidora", bias="lora_only"), restart=False)
    with pytest.raises(ValueError, match="init_lora_weights, got False"):
        retrain(adapted("bert", "bidora", init_lora_weights=False))
    with pytest.raises(ValueError, match="no active bi-level adapter"):
        retrain(base_model("bert"))


def test_a_refusal_changes_nothing() -> None:
    model = adapted("bert", "bidora", bias="lora_only", moved=0.3)
    before = named(model)
    with pytest.raises(ValueError, match="restart=False"):
        retrain(model)
    assert all(torch.equal(value, before[name]) for name, value in named(model).items())
    assert len(levels(model).upper) == 4


# Magnitudes of columns


@pytest.mark.parametrize("base", list(BASES))
def test_a_model_with_magnitudes_of_columns_starts_as_the_frozen_one(base: str) -> None:
    batch = inputs(base)
    before = output(base_model(base), batch)
    assert torch.equal(output(columns(base, moved=0.0), batch), before)


def test_magnitudes_of_columns_are_one_for_each_input() -> None:
    model = columns("mlp", moved=0.0, dtype=torch.float64)
    base = base_model("mlp", torch.float64)
    for m, layer in zip(levels(model).upper, [base.first, base.second], strict=True):
        torch.testing.assert_close(m.detach(), layer.weight.norm(dim=0))


def test_a_layer_with_magnitudes_of_columns_is_the_authors_equation() -> None:
    model = columns("mlp", dtype=torch.float64)
    layer = model.base_model.model.first
    W0, A, B = (
        layer.base_layer.weight,
        layer.lora_A["default"].weight,
        layer.lora_B["default"].weight,
    )
    m = layer.lora_magnitude_vector["default"].weight
    V = W0 + 2 * B @ A
    W = V / V.norm(p=2, dim=0, keepdim=True) * m
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ W.T + layer.base_layer.bias)


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("safe", [False, True])
def test_magnitudes_of_columns_merge_and_come_out(base: str, safe: bool) -> None:
    model = columns(base, dtype=torch.float64)
    batch = inputs(base, dtype=torch.float64)
    before, frozen = output(model, batch), output(base_model(base, torch.float64), batch)
    assert (before - frozen).norm() > 1e-2 * frozen.norm()
    model.merge_adapter(safe_merge=safe)
    torch.testing.assert_close(output(model, batch), before)
    model.unmerge_adapter()
    torch.testing.assert_close(output(model, batch), before)
    with model.disable_adapter():
        torch.testing.assert_close(output(model, batch), frozen)
    torch.testing.assert_close(output(model.merge_and_unload(safe_merge=safe), batch), before)


def test_magnitudes_of_columns_do_not_merge_onto_another_adapter() -> None:
    model = columns("mlp")
    model.add_adapter("second", BiDoraConfig(target_modules=["first"], **IN))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"hold \['default'\]"):
        model.merge_adapter()


def test_first_and_second_derivatives_with_respect_to_columns_are_right() -> None:
    model = columns("mlp", dtype=torch.float64, moved=0.5, r=2)
    split = levels(model)
    names = [*split.upper_names, *split.lower_names]
    x = inputs("mlp", dtype=torch.float64)["x"].requires_grad_()

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = functional_call(model, dict(zip(names, values, strict=True)), (x,))
        return out

    arguments = (x, *(p.detach().requires_grad_() for p in [*split.upper, *split.lower]))
    assert torch.autograd.gradcheck(forward, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(forward, arguments, fast_mode=True)


def test_a_detached_norm_of_columns_changes_gradients_and_no_value() -> None:
    free, held = (columns("mlp", dtype=torch.float64, detach_norm=d) for d in (False, True))
    batch = inputs("mlp", dtype=torch.float64)
    assert torch.equal(output(free, batch), output(held, batch))
    gradients = []
    for model in (free, held):
        split = levels(model)
        trained = [*split.upper, *split.lower]
        gradients.append(torch.autograd.grad(model(**batch).square().sum(), trained))
    names = [*split.upper_names, *split.lower_names]
    for name, ours, theirs in zip(names, *gradients, strict=True):
        assert torch.allclose(ours, theirs) == ("magnitude" in name), name


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_magnitudes_of_columns_are_saved_under_a_type_of_their_own(
    low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    # The layers are square: under PEFT's type, a DoRA layer would take columns for rows silently.
    model = columns("bert")
    model.save_pretrained(tmp_path)
    settings = PeftConfig.from_pretrained(tmp_path)
    assert settings.peft_type == "BIDORA"
    assert settings.norm_axis == "in"
    loaded = PeftModel.from_pretrained(
        base_model("bert"), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
    )
    batch = inputs("bert")
    torch.testing.assert_close(output(loaded, batch), output(model, batch), rtol=1e-6, atol=1e-6)
    assert levels(loaded).upper_names == levels(model).upper_names


def test_a_plain_bidora_checkpoint_stays_one_of_dora(tmp_path: Path) -> None:
    adapted("bert", "bidora", moved=0.3).save_pretrained(tmp_path)
    assert type(PeftConfig.from_pretrained(tmp_path)) is LoraConfig


def test_direction_orthogonality_of_columns_is_the_authors_formula() -> None:
    model = columns("mlp", dtype=torch.float64)
    terms = []
    for layer in (model.base_model.model.first, model.base_model.model.second):
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        V = layer.base_layer.weight + 2 * B @ A
        D = V / V.norm(dim=0, keepdim=True)
        terms.append((D.T @ D - torch.eye(D.shape[1], dtype=torch.float64)).norm())
    found = DirectionOrthogonality(0.3, squared=False)(model)
    torch.testing.assert_close(found, 0.3 * torch.stack(terms).mean())


def test_an_unknown_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm_axis must be one of .* got 'rows'"):
        BiDoraConfig(norm_axis="rows")


def test_columns_and_rows_do_not_mix_in_one_model() -> None:
    model = columns("mlp")
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("rows", BiDoraConfig(target_modules=["first"]))


def test_a_bfloat16_weight_stays_close_to_a_float32_one() -> None:
    reference = output(columns("bert"), inputs("bert"))
    half = output(columns("bert", dtype=torch.bfloat16), inputs("bert"))
    # 8 bits of mantissa, some ten rounded operations deep.
    assert (half.float() - reference).norm() < 3e-2 * reference.norm()


def test_a_wide_rank_pattern_is_followed_in_the_second_phase() -> None:
    base, targets = base_model("bert"), BASES["bert"][1]
    config = BiDoraConfig(r=3, rank_pattern={"query": 2}, **targets)
    model = move(get_peft_model(base, config), 0.3)
    retrain(model)
    shapes = {tuple(p.shape) for n, p in model.named_parameters() if "lora_A" in n}
    assert shapes == {(2, 32), (3, 32)}
