"""RepLoRA against stock LoRA with the factors that its network makes, and the chain rule."""

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from adapters import RepLoraConfig, levels
from adapters.glue.factors import factors
from tests.adapters.models import BASES, bert, gpt2, inputs, mlp, move, output

TARGETS = {"target_modules": ["first", "second"]}
GENERATORS = pytest.mark.parametrize("generator", ["rows", "seed"])


def adapted(**options: Any) -> PeftModel:
    torch.manual_seed(4)
    settings = {"r": 3, "lora_alpha": 6, "width": 8, **TARGETS, **options}
    return get_peft_model(mlp(torch.float64), RepLoraConfig(**settings))


def made(model: PeftModel, name: str, side: str, matrix: Tensor) -> Tensor:
    """What the network makes of one factor, written entry by entry from nn.Linear's formula."""
    layer = getattr(model.base_model.model, name)
    keeper = model.base_model.model.first

    def apply(weight: Tensor, x: Tensor) -> Tensor:
        return weight[:, :-1] @ x + weight[:, -1]

    trunk = getattr(keeper, f"lora_trunk_{side}")["default"]
    head = getattr(layer, f"lora_head_{side}")["default"]
    if model.peft_config["default"].generator == "rows":
        vectors = matrix.T if side == "A" else matrix
        new = torch.stack([apply(head, apply(trunk, vector).clamp(min=0)) for vector in vectors])
        return new.T if side == "A" else new
    seed = getattr(keeper, f"lora_seed_{side}")["default"]
    second = getattr(keeper, f"lora_second_{side}")["default"]
    hidden = apply(second, apply(trunk, seed).clamp(min=0)).clamp(min=0)
    return matrix + (head @ hidden).view(matrix.shape)


@GENERATORS
def test_it_is_lora_with_the_factors_made(generator: str) -> None:
    model = move(adapted(generator=generator), 0.3)
    reference = get_peft_model(mlp(torch.float64), LoraConfig(r=3, lora_alpha=6, **TARGETS))
    plain: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for name in ("first", "second"):
        for side in "AB":
            key = f"base_model.model.{name}.lora_{side}.default.weight"
            own[key] = dict(model.named_parameters())[key]
            plain[key] = dict(reference.named_parameters())[key]
            plain[key].data.copy_(made(model, name, side, own[key].detach()))
    batch = inputs("mlp", dtype=torch.float64)
    ours, theirs = model(**batch), reference(**batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(ours.square().sum(), list(own.values()))
    dense = torch.autograd.grad(theirs.square().sum(), list(plain.values()))
    for (key, matrix), found, outer in zip(own.items(), gradients, dense, strict=True):
        name, side = key.split(".")[2], key.split("lora_")[1][0]
        jacobian = torch.autograd.functional.jacobian(
            lambda m, name=name, side=side: made(model, name, side, m), matrix.detach()
        )
        expected = torch.einsum("ij,ijkl->kl", outer, jacobian)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_network_that_is_the_identity_is_lora_bit_for_bit() -> None:
    model = move(adapted(width=3, activation="identity"), 0.3)
    reference = get_peft_model(mlp(torch.float64), LoraConfig(r=3, lora_alpha=6, **TARGETS))
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if "trunk" in name or "head" in name:
            parameter.data.copy_(torch.eye(3, 4))
    for name, parameter in reference.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(named[name])
    batch = inputs("mlp", dtype=torch.float64)
    assert torch.equal(output(model, batch), output(reference, batch))


def test_query_and_value_share_all_but_the_last_map() -> None:
    model = get_peft_model(bert(), RepLoraConfig(r=2, **BASES["bert"][1]))
    trunks = [n for n, _ in model.named_parameters() if "lora_trunk_A" in n]
    assert [n.split("layer.")[1][0] for n in trunks] == ["0", "1"]
    assert len([n for n, _ in model.named_parameters() if "lora_head_A" in n]) == 4
    whole = get_peft_model(bert(), RepLoraConfig(r=2, share="model", **BASES["bert"][1]))
    assert len([n for n, _ in whole.named_parameters() if "lora_trunk_A" in n]) == 1
    alone = get_peft_model(gpt2(), RepLoraConfig(r=2, target_modules=["c_attn"]))
    assert len([n for n, _ in alone.named_parameters() if "lora_trunk_A" in n]) == 2
    mixed = get_peft_model(
        bert(), RepLoraConfig(r=2, rank_pattern={"query": 3}, **BASES["bert"][1])
    )
    assert len([n for n, _ in mixed.named_parameters() if "lora_trunk_A" in n]) == 4


@pytest.mark.parametrize("generator, size", [("rows", 3_232), ("seed", 1_606_928)])
def test_the_network_of_one_layer_has_the_size_it_is_said_to_have(
    generator: str, size: int
) -> None:
    layer = torch.nn.Module()
    layer.query, layer.value = torch.nn.Linear(768, 768), torch.nn.Linear(768, 768)
    config = RepLoraConfig(r=8, generator=generator, target_modules=["query", "value"])  # type: ignore[arg-type]
    model = get_peft_model(layer, config)
    factors = 4 * 768 * 8  # "seed" has them for biases
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == size + (factors if generator == "rows" else 0)


@GENERATORS
def test_the_rows_of_a_start_apart(generator: str) -> None:
    """With biases A started almost as a matrix of rank one: 5.2 above 0.2 at this size."""
    torch.manual_seed(0)
    settings = RepLoraConfig(r=8, target_modules=["0"], generator=generator)  # type: ignore[arg-type]
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(384, 384)), settings)
    layer = model.base_model.model[0]
    variant = layer.lora_variant["default"]
    made = variant.side_by_side(layer, "default", factors(layer, "default"))
    values = torch.linalg.svdvals(made.A.detach())
    assert values[0] < 6 * values[-1]
    assert made.B.count_nonzero() == 0 or generator == "seed"


@GENERATORS
def test_the_last_map_is_the_first_to_get_a_gradient(generator: str) -> None:
    model = adapted(generator=generator, generator_level="upper")
    split = levels(model)
    loss = model(**inputs("mlp", dtype=torch.float64)).square().sum()
    named = dict(zip(split.upper_names, torch.autograd.grad(loss, split.upper), strict=True))
    for name, gradient in named.items():
        assert (gradient.norm() > 1e-6) == ("lora_head_B" in name), name
    inputs_of_B = [p for n, p in model.named_parameters() if "lora_B" in n]
    assert all(bool(B.any()) == (generator == "rows") for B in inputs_of_B)
    lower = {name.split(".")[-3] for name in split.lower_names}
    assert lower == {"lora_A", "lora_B"}
    assert all(math.isfinite(float(g.norm())) for g in named.values())


@GENERATORS
def test_a_random_start_is_random_as_stock_loras(generator: str) -> None:
    batch = inputs("mlp", dtype=torch.float64)
    frozen = output(mlp(torch.float64), batch)
    assert torch.equal(output(adapted(generator=generator), batch), frozen)
    random = adapted(generator=generator, init_lora_weights=False)
    assert not torch.allclose(output(random, batch), frozen)


def test_misuse_is_refused() -> None:
    for options, message in (
        ({"generator": "columns"}, "generator must be one of"),
        ({"width": 0}, "width must be an integer of at least 1, got 0"),
        ({"activation": "tanh"}, "activation must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            RepLoraConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="RepLoraConfig\\(generator_level='upper'\\)"):
        levels(adapted())


@GENERATORS
def test_inputs_are_dropped_as_loras_are(generator: str) -> None:
    model = move(adapted(generator=generator, lora_dropout=0.5), 0.3).train()
    layer = model.base_model.model.first
    pair = [
        made(model, "first", side, getattr(layer, f"lora_{side}")["default"].weight.detach())
        for side in "AB"
    ]
    x = torch.randn(6, 5, dtype=torch.float64)
    torch.manual_seed(1)
    found = layer(x)
    torch.manual_seed(1)
    expected = layer.base_layer(x) + 2 * torch.nn.functional.dropout(x, 0.5) @ pair[0].T @ pair[1].T
    torch.testing.assert_close(found, expected)


@GENERATORS
def test_a_merged_model_computes_the_same(generator: str) -> None:
    model, batch = move(adapted(generator=generator), 0.3), inputs("mlp", dtype=torch.float64)
    before = output(model, batch)
    model.merge_adapter()
    torch.testing.assert_close(output(model, batch), before)


def test_maps_start_within_the_bounds_of_linear_layers() -> None:
    model = adapted(r=4, width=400, generator="rows")
    layer = model.base_model.model.first
    for side in "AB":
        trunk = getattr(layer, f"lora_trunk_{side}")["default"][:, :-1]
        assert 0.49 < trunk.abs().max().item() <= 0.5  # of four columns
    head = layer.lora_head_A["default"][:, :-1]
    assert 0.049 < head.abs().max().item() <= 0.05  # of 400
