import math
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from adapters import Shrinkage, SoraConfig, levels, ranks, singular_values, two_level
from blo import Engine, unrolled
from tests.adapters.models import adapted, inputs, mlp, move, output


def sora(**options: object) -> PeftModel:
    """A network of 5, 7 and 3 units in float64, everything on one level."""
    torch.manual_seed(4)
    options = {"r": 3, "lora_alpha": 6, "target_modules": ["first", "second"], **options}
    return move(get_peft_model(mlp(torch.float64), SoraConfig(**options)), 0.3)


def trained(model: PeftModel) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def gates(model: PeftModel) -> list[Tensor]:
    return [p for name, p in model.named_parameters() if "lora_diagonal" in name]


def set_gradients(model: PeftModel) -> None:
    loss = model(inputs("mlp", dtype=torch.float64)["x"]).square().mean()
    for parameter, gradient in zip(
        trained(model), torch.autograd.grad(loss, trained(model)), strict=True
    ):
        parameter.grad = gradient


def adamw(w: list[Tensor], moments: list[list[Tensor]], step: int, lr: float) -> list[Tensor]:
    """AdamW without decay, written out; w holds (value, gradient) of one parameter."""
    value, gradient = w
    first, second = moments
    first.mul_(0.9).add_(0.1 * gradient)
    second.mul_(0.999).add_(0.001 * gradient**2)
    direction = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return value - lr * direction


@pytest.mark.parametrize("times_lr", [True, False])
def test_gates_take_an_adam_step_and_then_the_proximal_one(times_lr: bool) -> None:
    """Five steps against AdamW and the minimisation that defines the proximal map, by hand."""
    lr, weight = 0.02, 0.3 if times_lr else 0.006
    model = sora()
    optimizer = torch.optim.AdamW(trained(model), lr, weight_decay=0.0)
    Shrinkage(optimizer, model, weight=weight, times_lr=times_lr)
    mine = {id(p) for p in gates(model)}
    amount = lr * weight if times_lr else weight
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in trained(model)]
    for step in range(1, 6):
        set_gradients(model)
        expected = []
        for parameter, pair in zip(trained(model), moments, strict=True):
            assert parameter.grad is not None
            value = adamw([parameter.detach(), parameter.grad], pair, step, lr)
            if id(parameter) in mine:
                value = torch.sign(value) * torch.maximum(value.abs() - amount, torch.zeros(()))
            expected.append(value)
        optimizer.step()
        for parameter, value in zip(trained(model), expected, strict=True):
            torch.testing.assert_close(parameter.detach(), value, rtol=1e-10, atol=1e-12)


def test_the_proximal_step_minimises_the_objective_that_defines_it() -> None:
    """argmin_z (z - g)^2 / 2 + eta lambda |z| on a fine grid, for gates on both sides."""
    model = sora()
    start = torch.cat([g.detach() for g in gates(model)])
    optimizer = torch.optim.SGD(trained(model), 0.5)
    Shrinkage(optimizer, model, weight=1.2)
    optimizer.step()  # no gradients: the proximal step alone
    grid = torch.linspace(-4, 4, 800001, dtype=torch.float64)
    found = torch.cat([g.detach() for g in gates(model)])
    for before, after in zip(start, found, strict=True):
        objective = 0.5 * (grid - before) ** 2 + 0.6 * grid.abs()
        assert after.item() == pytest.approx(grid[objective.argmin()].item(), abs=1e-5)
    assert (found == 0).any()
    assert (found != 0).any()


def test_a_lasso_over_gates_has_its_closed_form_solution() -> None:
    """With orthonormal ranks the gates decouple: ``g = soft(correlation, lambda)``."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(6, 6, bias=False, dtype=torch.float64))
    model = get_peft_model(base, SoraConfig(r=6, lora_alpha=6, target_modules=["0"]))
    A, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    B, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(A)
        layer.lora_B["default"].weight.copy_(B)
    change = 2 * torch.randn(6, 6, dtype=torch.float64)
    (g,) = gates(model)
    optimizer = torch.optim.SGD([g], 0.4)
    Shrinkage(optimizer, model, weight=0.8)
    for _ in range(200):
        loss = 0.5 * (layer.get_delta_weight("default") - change).square().sum()
        (g.grad,) = torch.autograd.grad(loss, g)
        optimizer.step()
    correlation = (B.T @ change @ A.T).diagonal()
    expected = correlation.sign() * (correlation.abs() - 0.8).clamp(min=0)
    torch.testing.assert_close(g.detach(), expected, rtol=1e-10, atol=1e-12)
    assert ranks(model) == {"0": int((correlation.abs() > 0.8).sum())}
    assert 0 < ranks(model)["0"] < 6


def test_the_step_follows_the_learning_rate_of_the_gates_group() -> None:
    model = sora()
    others = [p for p in trained(model) if not any(p is g for g in gates(model))]
    groups = [{"params": others, "lr": 5.0}, {"params": gates(model), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    Shrinkage(optimizer, model, weight=1.0)
    start = torch.cat([g.detach().clone() for g in gates(model)])
    optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.2
    optimizer.step()
    expected = start.sign() * (start.abs() - 0.3).clamp(min=0)
    found = torch.cat([g.detach() for g in gates(model)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_schedule_is_read_at_every_step_and_resumed() -> None:
    def one(weight: Callable[[int], float], steps: list[int]) -> Tensor:
        model = sora()
        done = {"num_steps": 0}
        for count in steps:  # each a new optimizer, as after a restart
            optimizer = torch.optim.SGD(trained(model), 0.1)
            shrinkage = Shrinkage(optimizer, model, weight=weight)
            shrinkage.load_state_dict(done)
            for _ in range(count):
                optimizer.step()
            done = shrinkage.state_dict()
        return torch.cat([g.detach() for g in gates(model)])

    start = torch.cat([g.detach() for g in gates(sora())])
    expected = start.sign() * (start.abs() - 0.1 * (0.0 + 0.1 + 0.2 + 0.3)).clamp(min=0)
    straight = one(lambda step: 0.1 * step, [4])
    torch.testing.assert_close(straight, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(one(lambda step: 0.1 * step, [1, 3]), straight)


def test_the_step_touches_the_gates_of_the_active_adapter_only() -> None:
    model = sora()
    model.add_adapter("other", SoraConfig(r=2, target_modules=["first"]))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(list(model.parameters()), 0.1)
    Shrinkage(optimizer, model, weight=1.0)
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lora_diagonal.default" in n}


def test_a_removed_step_is_not_taken() -> None:
    model = sora()
    start = torch.cat([g.detach().clone() for g in gates(model)])
    optimizer = torch.optim.SGD(trained(model), 0.1)
    Shrinkage(optimizer, model, weight=1.0).remove()
    optimizer.step()
    assert torch.equal(torch.cat([g.detach() for g in gates(model)]), start)


def test_gates_are_standard_normal_at_the_start() -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4)
    model = get_peft_model(
        torch.nn.Sequential(net), SoraConfig(r=20000, init_lora_weights=True, target_modules=["0"])
    )
    (g,) = gates(model)
    # Three standard errors.
    assert abs(g.mean().item()) < 3 / math.sqrt(20000)
    assert abs(g.var().item() - 1) < 3 * math.sqrt(2 / 20000)


def test_the_initial_output_is_the_frozen_models() -> None:
    assert torch.equal(output(adapted("mlp", "sora"), inputs("mlp")), mlp()(**inputs("mlp")))


def test_one_level_is_the_default_and_levels_says_so() -> None:
    with pytest.raises(ValueError, match=r"on one level.*gate_level='upper'"):
        levels(sora())
    assert len(levels(sora(gate_level="upper")).upper) == 2


def test_gates_above_are_shrunk_after_the_upper_step() -> None:
    """One round of the engine: the hypergradient step by hand, then the threshold."""
    lr, weight = 0.2, 1.5

    def run(shrink: bool) -> Tensor:
        model = sora(gate_level="upper")
        split = levels(model)
        upper = torch.optim.SGD(split.upper, lr)
        if shrink:
            Shrinkage(upper, model, weight=weight)
        graph = two_level(
            model,
            loss=lambda x: model(x).square().mean(),
            upper_batches=[inputs("mlp", 1, torch.float64)["x"]],
            lower_batches=[inputs("mlp", 2, torch.float64)["x"]],
            upper_optimizer=upper,
            lower_optimizer=torch.optim.SGD(split.lower, 0.1),
            method=unrolled(),
        )
        next(iter(Engine(graph).rounds(1)))
        return torch.cat([g.detach() for g in split.upper])

    plain, shrunk = run(False), run(True)
    expected = plain.sign() * (plain.abs() - lr * weight).clamp(min=0)
    torch.testing.assert_close(shrunk, expected, rtol=1e-12, atol=1e-12)
    assert (shrunk == 0).any()


def test_singular_values_are_the_gates() -> None:
    model = sora()
    values = torch.cat(list(singular_values(model).values()))
    assert torch.equal(values, torch.cat([g.detach() for g in gates(model)]))


def test_misuse_names_the_argument() -> None:
    with pytest.raises(ValueError, match=r"gate_level must be one of .* got 'above'"):
        SoraConfig(gate_level="above")  # type: ignore[arg-type]
    model = sora()
    optimizer = torch.optim.SGD(trained(model), 0.1)
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0, got -1"):
        Shrinkage(optimizer, model, weight=-1)
    part = torch.optim.SGD([p for p in trained(model) if p.dim() > 1], 0.1)
    with pytest.raises(ValueError, match=r"optimizer must hold the gate '.*lora_diagonal.default'"):
        Shrinkage(part, model, weight=1.0)
    with pytest.raises(ValueError, match="no active SoRA adapter"):
        Shrinkage(optimizer, adapted("mlp", "real"), weight=1.0)
