import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor

from adapters import Alternation, average
from tests.adapters.models import BASES, adapted, base_model, inputs, mlp, move, output


def lora(base: str = "mlp", moved: float = 0.3) -> PeftModel:
    torch.manual_seed(4)
    settings = LoraConfig(r=2, lora_alpha=4, **BASES[base][1])
    return move(get_peft_model(base_model(base, torch.float64), settings), moved)


def trained(model: PeftModel) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def update(optimizer: torch.optim.Optimizer, model: PeftModel, seed: int = 0) -> None:
    optimizer.zero_grad()
    loss = model(inputs("mlp", seed, torch.float64)["x"]).square().mean()
    named = trained(model)
    for p, gradient in zip(named.values(), torch.autograd.grad(loss, named.values()), strict=True):
        p.grad = gradient
    optimizer.step()


@pytest.mark.parametrize("first", ["A", "B"])
@pytest.mark.parametrize("steps", [1, 2])
def test_alternating_gradient_descent_is_the_loop_by_hand(first: str, steps: int) -> None:
    model, reference = lora(), lora()
    optimizer = torch.optim.SGD(trained(model).values(), 0.1)
    Alternation(optimizer, model, steps=steps, first=first)
    for step in range(6):
        update(optimizer, model, seed=step)
        factor = ("AB" if first == "A" else "BA")[(step // steps) % 2]
        named = {n: p for n, p in trained(reference).items() if f"lora_{factor}" in n}
        loss = reference(inputs("mlp", step, torch.float64)["x"]).square().mean()
        with torch.no_grad():
            for p, g in zip(named.values(), torch.autograd.grad(loss, named.values()), strict=True):
                p -= 0.1 * g
    for name, p in trained(model).items():
        torch.testing.assert_close(p, trained(reference)[name], rtol=1e-12, atol=1e-12)


def test_a_fixed_factor_keeps_its_moments_and_is_not_decayed() -> None:
    """AdamW in turns is two AdamWs, each of which sees its own rounds only."""
    model, reference = lora(), lora()
    optimizer = torch.optim.AdamW(trained(model).values(), 0.05, weight_decay=0.3)
    Alternation(optimizer, model, steps=2)
    separate = {
        factor: torch.optim.AdamW(
            [p for n, p in trained(reference).items() if f"lora_{factor}" in n],
            0.05,
            weight_decay=0.3,
        )
        for factor in "AB"
    }
    for step in range(8):
        update(optimizer, model, seed=step)
        update(separate["BBAABBAA"[step]], reference, seed=step)
    for name, p in trained(model).items():
        torch.testing.assert_close(p, trained(reference)[name], rtol=1e-12, atol=1e-12)


def test_what_is_no_factor_is_trained_in_every_round() -> None:
    model = lora("bert")
    optimizer = torch.optim.SGD(trained(model).values(), 0.5)
    alternation = Alternation(optimizer, model, steps=1)
    for expected in ("B", "A"):
        assert alternation.trained == expected
        before = {name: p.detach().clone() for name, p in trained(model).items()}
        optimizer.zero_grad()
        model(**inputs("bert")).loss.backward()
        optimizer.step()
        moved = {n for n, p in trained(model).items() if not torch.equal(p, before[n])}
        still = "lora_A" if expected == "B" else "lora_B"
        assert moved == {name for name in before if still not in name}
        assert any("classifier" in name for name in moved)


def test_requires_grad_is_left_as_it_is() -> None:
    model = lora()
    optimizer = torch.optim.SGD(trained(model).values(), 0.1)
    names = set(trained(model))
    Alternation(optimizer, model, steps=1)
    update(optimizer, model)
    assert set(trained(model)) == names


def test_a_resumed_alternation_goes_on_in_its_round() -> None:
    model = lora()
    optimizer = torch.optim.SGD(trained(model).values(), 0.1)
    first = Alternation(optimizer, model, steps=3)
    for _ in range(4):
        optimizer.step()
    state = first.state_dict()
    first.remove()
    second = Alternation(optimizer, model, steps=3)
    second.load_state_dict(state)
    assert (second.round, second.trained) == (1, "A")
    optimizer.step()
    optimizer.step()
    assert (second.round, second.trained) == (2, "B")
    assert first.num_steps == 4


def clients(factor: str, number: int = 3) -> list[PeftModel]:
    """Copies of one adapter, in each of which one factor has moved."""
    start = lora()
    models = [copy.deepcopy(start) for _ in range(number)]
    for seed, model in enumerate(models):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if f"lora_{factor}" in name:
                    p += torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return models


def updates(model: PeftModel) -> list[Tensor]:
    return [
        getattr(model.base_model.model, n).get_delta_weight("default")
        for n in BASES["mlp"][1]["target_modules"]
    ]


@pytest.mark.parametrize("factor", ["A", "B"])
@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 2.0]])
def test_the_average_of_one_round_is_the_mean_of_the_updates(
    factor: str, weights: list[float] | None
) -> None:
    models = clients(factor)
    averaged = average([get_peft_model_state_dict(m) for m in models], weights=weights)
    server = lora(moved=0.0)
    named = dict(server.named_parameters())
    with torch.no_grad():
        for name, value in averaged.items():
            named[name.replace(".weight", ".default.weight")].copy_(value)
    shares = torch.tensor(weights or [1.0] * 3, dtype=torch.float64)
    shares = shares / shares.sum()
    for position, found in enumerate(updates(server)):
        expected = sum(
            share * updates(model)[position] for share, model in zip(shares, models, strict=True)
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_averages_of_both_factors_are_refused_because_they_are_wrong() -> None:
    models = clients("A")
    for model, other in zip(models, clients("B"), strict=True):
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.copy_(dict(other.named_parameters())[name])
    states = [get_peft_model_state_dict(model) for model in models]
    with pytest.raises(ValueError, match=r"must differ in one factor.*Alternation"):
        average(states)
    # What the naive mean would have computed.
    mean = {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}
    key = "base_model.model.first.lora_{}.weight"
    naive = 2 * mean[key.format("B")] @ mean[key.format("A")]
    exact = sum(updates(model)[0] for model in models) / 3
    assert (naive - exact).norm() > 0.1 * exact.norm()


def test_modules_may_differ_in_different_factors() -> None:
    A, B = torch.ones(1, 2), torch.ones(2, 1)
    first = {"x.lora_A.weight": A, "x.lora_B.weight": B, "y.lora_A.weight": A, "y.lora_B.weight": B}
    second = {**first, "x.lora_A.weight": 3 * A, "y.lora_B.weight": 5 * B}
    averaged = average([first, second])
    assert torch.equal(averaged["x.lora_A.weight"], 2 * A)
    assert torch.equal(averaged["y.lora_B.weight"], 3 * B)


def test_an_average_shares_no_memory_with_a_client() -> None:
    state = {"x.lora_A.weight": torch.ones(1, 2), "x.lora_B.weight": torch.ones(2, 1)}
    average([state, state])["x.lora_A.weight"].zero_()
    assert (state["x.lora_A.weight"] == 1).all()


def test_half_precision_is_averaged_in_float32() -> None:
    values = [torch.tensor([256.0, 1.0, 1.0], dtype=torch.bfloat16)[i : i + 1] for i in range(3)]
    mean = average([{"bias": value} for value in values])["bias"]
    assert mean.dtype == torch.bfloat16
    assert mean.item() == 86.0  # in bfloat16, 256 + 1 + 1 is 256


def test_misuse_of_an_average_names_the_argument() -> None:
    state = {"x.lora_A.weight": torch.ones(1, 2)}
    with pytest.raises(ValueError, match="adapters must not be empty"):
        average([])
    with pytest.raises(ValueError, match="weights must be 2, one an adapter, got 1"):
        average([state, state], weights=[1.0])
    for weights in ([-1.0, 2.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="weights must be at least 0 and not all zero"):
            average([state, state], weights=weights)
    with pytest.raises(ValueError, match=r"adapters\[1\] differs from the first in \['y'\]"):
        average([state, {**state, "y": torch.ones(1)}])


def test_misuse_of_an_alternation_names_the_argument() -> None:
    model = lora()
    optimizer = torch.optim.SGD(trained(model).values(), 0.1)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        Alternation(optimizer, model, steps=0)
    with pytest.raises(ValueError, match=r"first must be one of .* got 'C'"):
        Alternation(optimizer, model, steps=1, first="C")  # type: ignore[arg-type]
    part = torch.optim.SGD([p for n, p in trained(model).items() if "lora_A" in n], 0.1)
    with pytest.raises(ValueError, match="optimizer must hold factor B of 'first'"):
        Alternation(part, model, steps=1)
    with pytest.raises(ValueError, match="no active LoRA adapter"):
        Alternation(optimizer, mlp(), steps=1)


@pytest.mark.parametrize("method", ["softmax", "bidora"])
def test_the_adapters_of_this_package_alternate_too(method: str) -> None:
    model = adapted("mlp", method, dtype=torch.float64, moved=0.3)
    before = output(model, inputs("mlp", dtype=torch.float64))
    optimizer = torch.optim.SGD(trained(model).values(), 0.1)
    Alternation(optimizer, model, steps=1)
    A = [p.detach().clone() for n, p in trained(model).items() if "lora_A" in n]
    update(optimizer, model)
    after = [p for n, p in trained(model).items() if "lora_A" in n]
    assert all(torch.equal(x, y) for x, y in zip(A, after, strict=True))
    assert not torch.equal(output(model, inputs("mlp", dtype=torch.float64)), before)
