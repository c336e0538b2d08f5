from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from adapters import Link, chain
from tests.adapters.models import BASES, adapted, base_model, inputs, mlp, output

X = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TARGET = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linear(*, r: int = 2, alpha: int = 3, **options: object) -> PeftModel:
    """One layer of 5 inputs and 4 outputs."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(5, 4, bias=False, dtype=torch.float64))
    settings = LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"], **options)
    return get_peft_model(net, settings)


def layer(model: PeftModel) -> nn.Module:
    return model.base_model.model[0]


def weight(model: PeftModel) -> Tensor:
    found: Tensor = layer(model).base_layer.weight.detach()
    return found


def train(links: Iterator[Link], model: PeftModel, *, lr: float, steps: int) -> None:
    for link in links:
        for _ in range(steps):
            loss = 0.5 * (model(X) - TARGET).square().sum()
            gradients = torch.autograd.grad(loss, link.parameters)
            with torch.no_grad():
                for parameter, gradient in zip(link.parameters, gradients, strict=True):
                    parameter -= lr * gradient


@pytest.mark.parametrize("trained", ["A", "B"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_chain_on_a_quadratic_is_the_recursion_by_hand(trained: str, steps: int) -> None:
    """``|X W^T - T|^2 / 2``: gradient descent on one factor, with the same random other one."""
    lr, scale, num_links = 0.01, 1.5, 4
    model = linear()
    W = weight(model).clone()
    links = chain(
        model, num_links=num_links, trained=trained, generator=torch.Generator().manual_seed(7)
    )
    train(links, model, lr=lr, steps=steps)

    generator = torch.Generator().manual_seed(7)
    for _ in range(num_links):
        if trained == "B":
            A = torch.randn(2, 5, generator=generator, dtype=torch.float64) / 5**0.5
            B = torch.zeros(4, 2, dtype=torch.float64)
        else:
            B = torch.randn(4, 2, generator=generator, dtype=torch.float64) / 4**0.5
            A = torch.zeros(2, 5, dtype=torch.float64)
        for _ in range(steps):
            G = (X @ (W + scale * B @ A).T - TARGET).T @ X
            if trained == "B":
                B = B - lr * scale * G @ A.T
            else:
                A = A - lr * scale * B.T @ G
        W = W + scale * B @ A
    torch.testing.assert_close(weight(model), W, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("base", list(BASES))
def test_merging_a_link_changes_no_output_and_leaves_no_trace(base: str) -> None:
    torch.manual_seed(0)
    fan = {"fan_in_fan_out": True} if base == "gpt2" else {}
    settings = LoraConfig(r=2, lora_alpha=4, **BASES[base][1], **fan)
    model = get_peft_model(base_model(base, torch.float64), settings).eval()
    batch = inputs(base, dtype=torch.float64)
    frozen = output(model, batch)
    before = frozen
    for link in chain(model, num_links=3):
        # The next link starts where the last one ended.
        torch.testing.assert_close(output(model, batch), before, rtol=1e-11, atol=1e-11)
        with torch.no_grad():
            for parameter in link.parameters:
                parameter += 0.2 * torch.randn_like(parameter)
        before = output(model, batch)
    torch.testing.assert_close(output(model, batch), before, rtol=1e-11, atol=1e-11)
    assert (before - frozen).norm() > 0.1 * frozen.norm()
    with model.disable_adapter():
        inside = output(model, batch)
    if base == "mlp":  # elsewhere a head was trained too
        torch.testing.assert_close(inside, before, rtol=1e-11, atol=1e-11)
    plain = model.merge_and_unload()
    torch.testing.assert_close(output(plain, batch), before, rtol=1e-11, atol=1e-11)


def test_a_chain_of_rank_one_reaches_the_full_solution_and_one_adapter_does_not() -> None:
    solution = torch.linalg.lstsq(X, TARGET).solution.T
    model = linear(r=1, alpha=1)
    start = (weight(model) - solution).norm()
    # A step of 1 / (largest eigenvalue of X^T X), times |a|^2 ~ 1 in the chain.
    lr = 0.5 / torch.linalg.eigvalsh(X.T @ X).max().item()
    train(chain(model, num_links=1500, trained="B"), model, lr=lr, steps=1)
    assert (weight(model) - solution).norm() < 1e-6 * start
    # The best change of rank one, for comparison: far from the solution.
    singular = torch.linalg.svdvals(solution - weight(linear(r=1, alpha=1)))
    assert singular[1:].norm() > 0.1 * singular.norm()


def test_the_fixed_factor_is_not_handed_out_and_all_else_is() -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        base_model("bert"), LoraConfig(r=2, bias="lora_only", **BASES["bert"][1])
    )
    for trained, fixed in (("A", "lora_B"), ("B", "lora_A")):
        link = next(chain(model, num_links=1, trained=trained))
        handed = {id(p) for p in link.parameters}
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert {n for n, p in named.items() if id(p) not in handed} == {
            n for n in named if fixed in n
        }


def test_every_link_draws_a_new_factor_of_about_orthonormal_rows() -> None:
    net = nn.Sequential(nn.Linear(4000, 300, bias=False))
    model = get_peft_model(net, LoraConfig(r=3, target_modules=["0"]))
    drawn = []
    for link in chain(model, num_links=2, generator=torch.Generator().manual_seed(0)):
        drawn.append(layer(model).lora_A["default"].weight.detach().clone())
        assert link.index == len(drawn) - 1
        assert (layer(model).lora_B["default"].weight == 0).all()
    assert not torch.equal(*drawn)
    for A in drawn:
        # Entries deviate by about 1 / sqrt(4000).
        torch.testing.assert_close(A @ A.T, torch.eye(3), rtol=0, atol=0.1)


def test_a_generator_makes_a_chain_repeatable() -> None:
    def run() -> Tensor:
        model = linear()
        torch.randn(3)
        links = chain(model, num_links=3, generator=torch.Generator().manual_seed(0))
        train(links, model, lr=0.01, steps=2)
        return weight(model)

    assert torch.equal(run(), run())


def test_an_abandoned_link_is_not_merged() -> None:
    model = linear()
    before = weight(model).clone()
    for link in chain(model, num_links=3):
        with torch.no_grad():
            link.parameters[0].add_(1.0)
        break
    assert torch.equal(weight(model), before)


def test_misuse_is_found_before_the_first_link() -> None:
    with pytest.raises(ValueError, match="num_links must be at least 1, got 0"):
        chain(linear(), num_links=0)
    with pytest.raises(ValueError, match=r"trained must be one of .* got 'C'"):
        chain(linear(), num_links=1, trained="C")  # type: ignore[arg-type]
    for model in (linear(use_dora=True), adapted("mlp", "real")):
        with pytest.raises(ValueError, match="must be plain LoRA"):
            chain(model, num_links=1)
    with pytest.raises(ValueError, match=r"one active LoRA adapter to be chained, got \[\]"):
        chain(mlp(), num_links=1)  # type: ignore[arg-type]
    merged = linear()
    merged.merge_adapter()
    with pytest.raises(ValueError, match="is merged"):
        chain(merged, num_links=1)
    several = linear()
    several.add_adapter("other", LoraConfig(r=1, target_modules=["0"]))
    several.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"got \['default', 'other'\]"):
        chain(several, num_links=1)
