import dataclasses

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from adapters import Binarisation, DirectionOrthogonality, Orthogonality, levels
from tests.adapters.models import METHODS, adapted

LAYERS = ("first", "second")


def factor(model: PeftModel, layer: str, name: str) -> Tensor:
    return dict(model.named_parameters())[f"base_model.model.{layer}.{name}"].detach()


def orthonormal(model: PeftModel) -> None:
    """Sets every P and Q to exactly orthonormal columns and rows: parts of the identity."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                p.copy_(torch.eye(*p.shape))


@pytest.mark.parametrize("squared", [True, False])
def test_orthogonality_is_the_dense_formula(squared: bool) -> None:
    model = adapted("mlp", "real", dtype=torch.float64, moved=0.3, r=2)
    expected = torch.zeros((), dtype=torch.float64)
    for layer in LAYERS:
        P = factor(model, layer, "lora_B.default.weight")
        Q = factor(model, layer, "lora_A.default.weight")
        for gram in (P.T @ P, Q @ Q.T):
            distance = (gram - torch.eye(2)).pow(2).sum()
            expected += distance if squared else distance.sqrt()
    torch.testing.assert_close(Orthogonality(0.3, squared=squared)(model), 0.3 * expected)


@pytest.mark.parametrize("squared", [True, False])
def test_orthogonality_is_twice_differentiable_at_orthonormal_factors(squared: bool) -> None:
    model = adapted("mlp", "real", r=2)
    orthonormal(model)
    lower = levels(model).lower
    value = Orthogonality(1.0, squared=squared)(model)
    gradient = torch.autograd.grad(value, lower, create_graph=True)
    products = torch.autograd.grad(gradient, lower, [torch.randn_like(g) for g in gradient])
    assert value == 0
    assert all((g == 0).all() for g in gradient)
    assert all(p.isfinite().all() for p in products)


@pytest.mark.parametrize("squared", [True, False])
def test_direction_orthogonality_is_the_dense_formula(squared: bool) -> None:
    model = adapted("mlp", "bidora", dtype=torch.float64, moved=0.3, r=2)
    terms = []
    for layer in LAYERS:
        W = factor(model, layer, "base_layer.weight")
        B = factor(model, layer, "lora_B.default.weight")
        A = factor(model, layer, "lora_A.default.weight")
        D = W + 3 * B @ A  # alpha / r = 6 / 2
        D = D / D.norm(dim=1, keepdim=True)
        distance = (D @ D.T - torch.eye(len(D))).pow(2).sum()
        terms.append(distance if squared else distance.sqrt())
    penalty = DirectionOrthogonality(0.3, squared=squared)(model)
    torch.testing.assert_close(penalty, 0.3 * torch.stack(terms).mean())


def test_direction_orthogonality_does_not_depend_on_magnitudes() -> None:
    model = adapted("mlp", "bidora", moved=0.3)
    before = DirectionOrthogonality(1.0)(model)
    with torch.no_grad():
        for magnitude in levels(model).upper:
            magnitude.mul_(3)
    assert torch.equal(DirectionOrthogonality(1.0)(model), before)


@pytest.mark.parametrize("squared", [True, False])
def test_direction_orthogonality_is_twice_differentiable_at_orthonormal_rows(
    squared: bool,
) -> None:
    model = adapted("mlp", "bidora", target_modules=["second"])
    with torch.no_grad():
        weight = model.base_model.model.second.base_layer.weight
        weight.copy_(torch.eye(*weight.shape))
    lower = levels(model).lower
    value = DirectionOrthogonality(1.0, squared=squared)(model)
    gradient = torch.autograd.grad(value, lower, create_graph=True)
    products = torch.autograd.grad(gradient, lower, [torch.randn_like(g) for g in gradient])
    assert value == 0
    assert all(p.isfinite().all() for p in products)


def test_binarisation_is_the_entropy_of_the_values() -> None:
    model = adapted("mlp", "binary", dtype=torch.float64, moved=1.0)
    p = torch.cat([torch.sigmoid(d.detach()) for d in levels(model).upper])
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    torch.testing.assert_close(Binarisation(0.3)(model), 0.3 * entropy)


def test_binarisation_is_finite_where_the_values_are_binary() -> None:
    model = adapted("mlp", "binary")
    upper = levels(model).upper
    with torch.no_grad():
        for d in upper:
            d.copy_(torch.tensor([200.0, -200.0, 20.0]))
    value = Binarisation(1.0)(model)
    gradient = torch.autograd.grad(value, upper, create_graph=True)
    products = torch.autograd.grad(gradient, upper, [torch.ones_like(g) for g in gradient])
    assert value.isfinite()
    assert all(t.isfinite().all() for t in [*gradient, *products])


def test_binarisation_refuses_values_that_are_not_gates() -> None:
    with pytest.raises(ValueError, match="needs BiLoraConfig"):
        Binarisation(1.0)(adapted("mlp", "softmax"))


@pytest.mark.parametrize("penalty", [Orthogonality, DirectionOrthogonality, Binarisation])
def test_a_penalty_refuses_a_model_it_cannot_see(penalty: type) -> None:
    other = "real" if penalty is DirectionOrthogonality else "bidora"
    with pytest.raises(ValueError, match=penalty.__name__):
        penalty(1.0)(adapted("mlp", other))


@pytest.mark.parametrize("penalty", [Orthogonality, DirectionOrthogonality, Binarisation])
def test_a_penalty_is_frozen_and_not_negative(penalty: type) -> None:
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0"):
        penalty(-1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty(1.0).weight = 2.0


@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_is_not_rounded_by_autocast(method: str) -> None:
    model = adapted("mlp", method, moved=0.3)
    penalty = DirectionOrthogonality(1.0) if method == "bidora" else Orthogonality(1.0)
    before = penalty(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(penalty(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_counts_the_active_adapter_alone(method: str) -> None:
    model = adapted("mlp", method, moved=0.3)
    penalty = DirectionOrthogonality(1.0) if method == "bidora" else Orthogonality(1.0)
    before = penalty(model)
    model.add_adapter("second", model.peft_config["default"])
    assert torch.equal(penalty(model), before)
    model.set_adapter("second")
    assert not torch.equal(penalty(model), before)
