"""Gradients and hypergradients through the layers, with nothing of the engine.

The oracle of a hypergradient is the whole one-step-unrolled objective, evaluated at displaced upper
parameters: ``F(x) = L2(x, y - lr dL1/dy(x, y))``.
"""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call

from adapters import BiDoraConfig, levels
from tests.adapters.models import BASES, METHODS, adapted, bert, config, inputs, mlp, move

LR = 0.5
Tensors = tuple[Tensor, ...]
Objective = Callable[[Tensors], Tensor]


def names(model: PeftModel) -> tuple[list[str], list[str]]:
    """The names of both levels; PEFT's DoRA, which `levels` refuses, has magnitudes above."""
    settings = model.peft_config["default"]
    if isinstance(settings, BiDoraConfig) or not settings.use_dora:
        split = levels(model)
        return split.upper_names, split.lower_names
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    upper = [name for name in trained if "magnitude" in name]
    return upper, [name for name in trained if name not in upper]


def unrolled(model: PeftModel, lr: float = LR, *, steps: int = 1) -> tuple[Objective, Tensors]:
    """The objective of the upper parameters after steps of the lower ones, and where they are."""
    upper_names, lower_names = names(model)
    parameters = dict(model.named_parameters())
    start = tuple(parameters[name].detach().requires_grad_() for name in lower_names)
    train, held_out = inputs("bert", 10), inputs("bert", 11)

    def loss(upper: Tensors, lower: Tensors, batch: dict[str, Tensor]) -> Tensor:
        values = zip([*upper_names, *lower_names], [*upper, *lower], strict=True)
        value: Tensor = functional_call(model, dict(values), kwargs=batch).loss
        return value

    def objective(upper: Tensors) -> Tensor:
        lower = start
        for _ in range(steps):
            gradient = torch.autograd.grad(loss(upper, lower, train), lower, create_graph=True)
            lower = tuple(y - lr * g for y, g in zip(lower, gradient, strict=True))
        return loss(upper, lower, held_out)

    return objective, tuple(parameters[name].detach() for name in upper_names)


def relative_errors(model: PeftModel) -> list[float]:
    """Automatic against central differences along random directions, each of norm one."""
    objective, at = unrolled(model)
    upper = tuple(x.clone().requires_grad_() for x in at)
    return against_differences(torch.autograd.grad(objective(upper), upper), objective, at)


def against_differences(
    hypergradient: Tensors, objective: Objective, at: Tensors, *, directions: int = 6
) -> list[float]:
    """A hypergradient against central differences of the objective, relative to its length."""
    scale = torch.cat([g.flatten() for g in hypergradient]).norm().item()
    errors = []
    for _ in range(directions):
        direction = tuple(torch.randn_like(x) for x in at)
        size = torch.cat([d.flatten() for d in direction]).norm()
        direction = tuple(d / size for d in direction)

        def value(step: float, direction: Tensors = direction) -> float:
            points = zip(at, direction, strict=True)
            return objective(tuple(x + step * d for x, d in points)).item()

        # Fourth order, so that the difference itself is good to 1e-10.
        h = 1e-4
        difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
        pairs = zip(hypergradient, direction, strict=True)
        exact = sum((g * d).sum().item() for g, d in pairs)
        errors.append(abs(exact - difference) / scale)
    return errors


def unrolled_model(method: str, **options: object) -> PeftModel:
    return adapted("bert", method, dtype=torch.float64, moved=0.3, **options)


@pytest.mark.parametrize("method", METHODS)
def test_the_hypergradient_is_that_of_the_unrolled_objective(method: str) -> None:
    assert max(relative_errors(unrolled_model(method))) < 1e-6


def dora(**options: object) -> PeftModel:
    torch.manual_seed(4)
    settings = LoraConfig(use_dora=True, r=3, lora_alpha=6, **BASES["bert"][1], **options)
    return move(get_peft_model(bert(torch.float64), settings), 0.3)


def test_pefts_dora_has_another_hypergradient() -> None:
    # Its norm is a constant of the backward pass: this test says why BiDoRA has layers of its own.
    assert max(relative_errors(dora())) > 1e-2


def test_bidora_with_a_detached_norm_is_pefts_dora() -> None:
    ours = unrolled_model("bidora", detach_norm=True)
    (left, at), (right, _) = unrolled(ours), unrolled(dora())
    first, second = (tuple(x.clone().requires_grad_() for x in at) for _ in range(2))
    hypergradients = zip(
        torch.autograd.grad(left(first), first),
        torch.autograd.grad(right(second), second),
        strict=True,
    )
    for mine, theirs in hypergradients:
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_both_levels_receive_a_gradient_at_the_start(method: str) -> None:
    model = adapted("bert", method, dtype=torch.float64)
    split = levels(model)
    loss = model(**inputs("bert", 10)).loss
    lower = dict(zip(split.lower_names, torch.autograd.grad(loss, split.lower), strict=True))
    assert all(g.norm() > 1e-6 for name, g in lower.items() if "lora_B" in name)
    objective, at = unrolled(model)
    upper = tuple(x.clone().requires_grad_() for x in at)
    assert all(g.norm() > 1e-6 for g in torch.autograd.grad(objective(upper), upper))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "bidora"])
def test_at_the_start_singular_values_have_a_gradient_through_the_lower_step_only(
    method: str,
) -> None:
    objective, at = unrolled(adapted("bert", method, dtype=torch.float64), lr=0.0)
    upper = tuple(x.clone().requires_grad_() for x in at)
    assert all((g == 0).all() for g in torch.autograd.grad(objective(upper), upper))


@pytest.mark.parametrize("method", METHODS)
def test_first_and_second_derivatives_of_a_network_are_right(method: str) -> None:
    torch.manual_seed(4)
    settings = config(method, target_modules=["first", "second"], r=2)
    model = move(get_peft_model(mlp(torch.float64), settings), 0.5)
    upper_names, lower_names = names(model)
    trained = [*upper_names, *lower_names]
    parameters = dict(model.named_parameters())
    x = inputs("mlp", dtype=torch.float64)["x"].requires_grad_()

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        out: Tensor = functional_call(model, dict(zip(trained, values, strict=True)), (x,))
        return out

    arguments = (x, *(parameters[name].detach().requires_grad_() for name in trained))
    assert torch.autograd.gradcheck(forward, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(forward, arguments, fast_mode=True)


@pytest.mark.parametrize("layout", ["linear", "conv1d"])
def test_a_zero_row_of_the_weight_gives_no_nan(layout: str) -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    layer = nn.Linear(5, 4) if layout == "linear" else Conv1D(4, 5)
    with torch.no_grad():
        (layer.weight if layout == "linear" else layer.weight.T)[1] = 0
    x = torch.randn(6, 5)
    before = layer(x)
    model = get_peft_model(nn.Sequential(layer), config("bidora", target_modules=["0"]))
    assert torch.equal(model(x), before)
    split = levels(model)
    trained = [*split.upper, *split.lower]
    gradients = torch.autograd.grad(model(x).square().sum(), trained, create_graph=True)
    again = torch.autograd.grad(sum(g.square().sum() for g in gradients), trained)
    assert all(g.isfinite().all() for g in [*gradients, *again])
