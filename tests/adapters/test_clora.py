import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from adapters import NullSpace
from tests.adapters.models import BASES, METHODS, adapted, base_model, bert, mlp, move


def lora(base: str = "mlp", *, r: int = 2, **options: object) -> PeftModel:
    """Stock LoRA in float64, moved away from its start."""
    torch.manual_seed(4)
    settings = LoraConfig(r=r, lora_alpha=6, **{**BASES[base][1], **options})
    return move(get_peft_model(base_model(base, torch.float64), settings), 0.3)


def pairs(model: PeftModel) -> dict[str, tuple[Tensor, Tensor]]:
    named = dict(model.named_parameters())
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight"): (
            p,
            named[name.replace("lora_A", "lora_B")],
        )
        for name, p in named.items()
        if "lora_A" in name
    }


@pytest.mark.parametrize("base", list(BASES))
def test_the_penalty_is_the_dense_formula(base: str) -> None:
    model, penalty = lora(base, fan_in_fan_out=base == "gpt2"), NullSpace(0.3, num_directions=3)
    expected = torch.zeros((), dtype=torch.float64)
    for name, (A, B) in pairs(model).items():
        for side, columns in (("in", A.T), ("out", B)):
            P = penalty.directions(f"{name}:{side}", like=columns.T)
            cosines = torch.stack([(P[:, i] @ columns).square().sum() for i in range(3)])
            expected = expected + cosines.sum()
    torch.testing.assert_close(penalty(model), 0.3 * expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("features", [5, 32])
def test_directions_are_orthonormal(features: int) -> None:
    like = torch.zeros(2, features, dtype=torch.float64)
    P = NullSpace(1.0, num_directions=5).directions("layer:in", like=like)
    assert P.shape == (features, 5)
    torch.testing.assert_close(P.T @ P, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_all_directions_together_penalise_the_norms_of_the_factors() -> None:
    # With k = features P is a square orthogonal matrix, which changes no norm.
    net = torch.nn.Sequential(torch.nn.Linear(4, 4).double())
    square = move(get_peft_model(net, LoraConfig(r=2, target_modules=["0"])), 0.3)
    (pair,) = pairs(square).values()
    expected = sum(factor.square().sum() for factor in pair)
    torch.testing.assert_close(NullSpace(1.0, num_directions=4)(square), expected)


def test_a_minimised_penalty_leaves_the_directions_in_the_null_spaces() -> None:
    model, penalty = lora(), NullSpace(1.0, num_directions=2)
    factors = [factor for pair in pairs(model).values() for factor in pair]
    norms = [factor.norm().item() for factor in factors]
    for _ in range(200):
        gradients = torch.autograd.grad(penalty(model), factors)
        with torch.no_grad():
            for factor, gradient in zip(factors, gradients, strict=True):
                factor -= 0.25 * gradient
    for name, (A, B) in pairs(model).items():
        update = B @ A
        P = penalty.directions(f"{name}:in", like=A)
        Q = penalty.directions(f"{name}:out", like=B.T)
        assert (update @ P).norm() < 1e-12
        assert (Q.T @ update).norm() < 1e-12
    # Nothing else was moved: the factors keep what is orthogonal to the directions.
    assert all(f.norm() > 0.1 * norm for f, norm in zip(factors, norms, strict=True))


def test_directions_depend_on_seed_and_module_but_not_on_the_rest() -> None:
    first, again, other = (NullSpace(1.0, num_directions=2, seed=seed) for seed in (0, 0, 1))
    like = torch.zeros(1, 6)
    drawn = first.directions("a:in", like=like)
    torch.randn(3)
    again.directions("b:in", like=like)  # another order
    assert torch.equal(again.directions("a:in", like=like), drawn)
    assert not torch.equal(other.directions("a:in", like=like), drawn)
    assert not torch.equal(first.directions("b:in", like=like), drawn)
    assert not torch.equal(first.directions("a:out", like=like), drawn)


def test_a_penalty_is_the_same_on_every_call_and_draws_nothing() -> None:
    model, penalty = lora(), NullSpace(1.0, num_directions=2)
    state = torch.random.get_rng_state()
    assert torch.equal(penalty(model), penalty(model))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
def test_the_adapters_of_this_package_can_be_penalised(method: str) -> None:
    model = adapted("mlp", method, dtype=torch.float64, moved=0.3)
    plain = lora(r=3)
    with torch.no_grad():
        for (A, B), (from_A, from_B) in zip(
            pairs(plain).values(), pairs(model).values(), strict=True
        ):
            A.copy_(from_A)
            B.copy_(from_B)
    penalty = NullSpace(0.5, num_directions=2)
    torch.testing.assert_close(penalty(model), penalty(plain), rtol=1e-12, atol=1e-12)


def test_a_half_precision_adapter_is_penalised_in_float32() -> None:
    model = lora().to(torch.bfloat16)
    penalty = NullSpace(1.0, num_directions=2)(model)
    exact = NullSpace(1.0, num_directions=2)(lora().to(torch.bfloat16).to(torch.float64))
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty, exact.float(), rtol=1e-5, atol=1e-6)


def test_misuse_names_the_argument() -> None:
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0, got -1"):
        NullSpace(-1, num_directions=2)
    with pytest.raises(ValueError, match="num_directions must be at least 1, got 0"):
        NullSpace(1.0, num_directions=0)
    with pytest.raises(ValueError, match=r"at most 3, the features of 'second:out', got 4"):
        NullSpace(1.0, num_directions=4)(lora())
    for model in (mlp(), bert()):
        with pytest.raises(ValueError, match="no active LoRA adapter"):
            NullSpace(1.0, num_directions=2)(model)


def test_a_module_without_matrices_is_refused() -> None:
    net = torch.nn.Sequential(torch.nn.Embedding(5, 3))
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"]))
    with pytest.raises(TypeError, match="without matrices A and B"):
        NullSpace(1.0, num_directions=2)(model)
