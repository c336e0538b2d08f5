"""The layers against PEFT's own, with copied parameters, in float64."""

import pytest
import torch
from peft import AdaLoraConfig, KasaConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from adapters import singular_values
from tests.adapters.models import BASES, DIAGONAL, adapted, base_model, inputs, mlp, output

TARGETS = {"target_modules": ["first", "second"]}


def stock(settings: LoraConfig, base: str = "mlp") -> PeftModel:
    return get_peft_model(base_model(base, torch.float64), settings)


def copy_into(model: PeftModel, values: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def parameters(model: PeftModel) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("form", DIAGONAL)
@pytest.mark.parametrize("base", list(BASES))
def test_diagonal_adapters_are_lora_with_folded_factors(base: str, form: str) -> None:
    ours = adapted(base, form, dtype=torch.float64, moved=0.3)
    fan = {"fan_in_fan_out": True} if base == "gpt2" else {}
    theirs = stock(LoraConfig(r=3, lora_alpha=6, **BASES[base][1], **fan), base)
    folded = parameters(ours)
    for module, values in singular_values(ours).items():
        folded[f"{module}.lora_B.default.weight"] = (
            folded[f"{module}.lora_B.default.weight"] * values
        )
        del folded[f"{module}.lora_diagonal.default"]
    copy_into(theirs, folded)
    heads = {
        name: p.detach()
        for name, p in ours.named_parameters()
        if p.requires_grad and "lora_" not in name
    }
    copy_into(theirs, heads)
    batch = inputs(base, dtype=torch.float64)
    torch.testing.assert_close(output(ours, batch), output(theirs, batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", [*DIAGONAL, "beam"])
def test_diagonal_adapters_are_adaloras_layer(form: str) -> None:
    ours = adapted("mlp", form, dtype=torch.float64, moved=0.3)
    settings = AdaLoraConfig(init_r=3, target_r=3, lora_alpha=6, total_step=10, **TARGETS)
    theirs = stock(settings)
    values = singular_values(ours)
    # AdaLoRA keeps the vectors as bare parameters and divides by r + 1e-5, not by r.
    copied = {}
    for module, diagonal in values.items():
        for factor in ("lora_A", "lora_B"):
            copied[f"{module}.{factor}.default"] = parameters(ours)[
                f"{module}.{factor}.default.weight"
            ]
        copied[f"{module}.lora_E.default"] = diagonal[:, None] * (3 + 1e-5) / 3
    copy_into(theirs, copied)
    batch = inputs("mlp", dtype=torch.float64)
    # AdaLoRA keeps the rank as a float32 parameter.
    torch.testing.assert_close(output(ours, batch), output(theirs, batch), rtol=1e-7, atol=1e-7)


def test_real_bilora_is_kasas_layer() -> None:
    ours = adapted("mlp", "real", dtype=torch.float64, moved=0.3, r=2)
    theirs = stock(LoraConfig(r=2, lora_alpha=6, kasa_config=KasaConfig(), **TARGETS))
    renamed = {
        name.replace("lora_diagonal", "lora_diag"): value
        for name, value in parameters(ours).items()
    }
    copy_into(theirs, renamed)
    original = mlp(torch.float64).state_dict()  # KaSA truncates the base weights
    copy_into(
        theirs,
        {
            f"base_model.model.{layer}.base_layer.weight": original[f"{layer}.weight"]
            for layer in ("first", "second")
        },
    )
    batch = inputs("mlp", dtype=torch.float64)
    torch.testing.assert_close(output(ours, batch), output(theirs, batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaling", [{}, {"use_rslora": True}, {"alpha_pattern": {"first": 1}}])
def test_the_scale_is_loras(scaling: dict[str, object]) -> None:
    ours = adapted("mlp", "real", dtype=torch.float64, moved=0.3, **scaling)
    theirs = stock(LoraConfig(r=3, lora_alpha=6, **TARGETS, **scaling))
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if "lora_diagonal" in name:
                p.fill_(1)
    copy_into(theirs, {n: v for n, v in parameters(ours).items() if "diagonal" not in n})
    batch = inputs("mlp", dtype=torch.float64)
    torch.testing.assert_close(output(ours, batch), output(theirs, batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("scaling", [{}, {"use_rslora": True}])
def test_bidora_computes_what_pefts_dora_computes(base: str, scaling: dict[str, bool]) -> None:
    ours = adapted(base, "bidora", dtype=torch.float64, moved=0.3, **scaling)
    fan = {"fan_in_fan_out": True} if base == "gpt2" else {}
    settings = LoraConfig(use_dora=True, r=3, lora_alpha=6, **BASES[base][1], **fan, **scaling)
    theirs = stock(settings, base)
    trained = {n: p.detach() for n, p in ours.named_parameters() if p.requires_grad}
    copy_into(theirs, trained)
    batch = inputs(base, dtype=torch.float64)
    torch.testing.assert_close(output(ours, batch), output(theirs, batch), rtol=1e-12, atol=1e-12)


def test_bidora_starts_at_the_norms_of_the_rows() -> None:
    model = adapted("mlp", "bidora", dtype=torch.float64)
    magnitudes = [p for name, p in model.named_parameters() if "magnitude" in name]
    base = mlp(torch.float64)
    for magnitude, layer in zip(magnitudes, [base.first, base.second], strict=True):
        assert torch.equal(magnitude, layer.weight.norm(dim=1))


def test_softmax_values_start_at_equal_shares_and_sum_to_one() -> None:
    starts = singular_values(adapted("mlp", "softmax", r=4))
    assert all(torch.equal(values, torch.full((4,), 0.25)) for values in starts.values())
    moved = singular_values(adapted("mlp", "softmax", r=4, moved=0.5))
    for values in moved.values():
        assert (values > 0).all()
        torch.testing.assert_close(values.sum(), torch.ones(()))


def test_other_values_start_where_they_should() -> None:
    for form, start in {"real": 1.0, "softmax-rank": 1.0, "binary": 0.5}.items():
        for values in singular_values(adapted("mlp", form, r=4)).values():
            assert torch.equal(values, torch.full((4,), start))
