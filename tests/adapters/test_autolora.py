import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.func import functional_call

from adapters import AutoLoraConfig, levels, ranks, singular_values, two_level
from blo import Engine, unrolled
from tests.adapters.models import adapted, config, inputs, mlp, output


def with_logits(logits: list[float], **options: object) -> PeftModel:
    model = get_peft_model(
        mlp(torch.float64), config("autolora", r=len(logits), target_modules=["first"], **options)
    )
    with torch.no_grad():
        levels(model).upper[0].copy_(torch.tensor(logits, dtype=torch.float64))
    return model


def test_the_update_is_a_sum_of_rank_one_matrices_weighted_by_shares() -> None:
    model = adapted("mlp", "autolora", dtype=torch.float64, moved=0.3)
    layer = model.base_model.model.first
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    alpha = layer.lora_diagonal["default"]
    shares = alpha.exp() / alpha.exp().sum()
    update = sum(2 * shares[j] * torch.outer(B[:, j], A[j]) for j in range(3))
    x = inputs("mlp", dtype=torch.float64)["x"]
    expected = x @ (layer.base_layer.weight + update).T + layer.base_layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.get_delta_weight("default"), update, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", range(2, 40))
@pytest.mark.parametrize("threshold", ["shares", "logits"])
def test_equal_shares_keep_every_rank(rank: int, threshold: str) -> None:
    # 1 / rank and the softmax round differently; nothing is decided by that.
    assert ranks(with_logits([0.1] * rank, threshold=threshold)) == {"first": rank}


@pytest.mark.parametrize("threshold", ["shares", "logits"])
def test_a_rank_is_kept_if_its_share_is_large_enough(threshold: str) -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        alpha = 3 * torch.randn(8, dtype=torch.float64)
        if threshold == "shares":
            expected = int((alpha.exp() / alpha.exp().sum() >= 1 / 8).sum())
        else:
            expected = int((alpha >= alpha.mean()).sum())
        found = ranks(with_logits(alpha.tolist(), threshold=threshold))
        assert found == {"first": expected}
        assert expected >= 1


def test_logits_keep_at_least_as_many_as_shares() -> None:
    # Jensen: log mean exp(alpha) >= mean(alpha).
    differ = 0
    for seed in range(50):
        torch.manual_seed(seed)
        alpha = (3 * torch.randn(8)).tolist()
        by_shares, by_logits = (
            ranks(with_logits(alpha, threshold=threshold))["first"]
            for threshold in ("shares", "logits")
        )
        assert by_logits >= by_shares
        differ += by_logits > by_shares
    assert differ


def test_selection_survives_extreme_logits() -> None:
    assert ranks(with_logits([1000.0, -1000.0, 1000.0])) == {"first": 2}


def test_a_search_updates_alpha_by_the_gradient_of_the_unrolled_loss() -> None:
    """One round with one lower step, against the step written by hand."""
    lr = 0.3
    model = adapted("mlp", "autolora", dtype=torch.float64, moved=0.3)
    train, held_out = (inputs("mlp", seed, torch.float64)["x"] for seed in (1, 2))
    split = levels(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = [start[name].clone().requires_grad_() for name in split.upper_names]
    y = [start[name].clone().requires_grad_() for name in split.lower_names]

    def loss_at(upper: list[Tensor], lower: list[Tensor], batch: Tensor) -> Tensor:
        names = [*split.upper_names, *split.lower_names]
        values = dict(zip(names, [*upper, *lower], strict=True))
        value: Tensor = functional_call(model, values, (batch,)).square().mean()
        return value

    gradient = torch.autograd.grad(loss_at(x, y, train), y, create_graph=True)
    stepped = [w - lr * g for w, g in zip(y, gradient, strict=True)]
    expected = torch.autograd.grad(loss_at(x, stepped, held_out), x)

    graph = two_level(
        model,
        loss=lambda batch: model(batch).square().mean(),
        upper_batches=[held_out],
        lower_batches=[train],
        upper_optimizer=torch.optim.SGD(split.upper, 1.0),
        lower_optimizer=torch.optim.SGD(split.lower, lr),
        method=unrolled(),
    )
    next(iter(Engine(graph).rounds(1)))
    for parameter, name, hypergradient in zip(
        split.upper, split.upper_names, expected, strict=True
    ):
        torch.testing.assert_close(
            parameter.detach(), start[name] - hypergradient, rtol=1e-9, atol=1e-12
        )


def test_a_search_finds_the_rank_of_the_target() -> None:
    """Two ranks are the change to be learned and four are noise: the two are kept."""
    torch.manual_seed(0)
    change = torch.randn(7, 2, dtype=torch.float64) @ torch.randn(2, 5, dtype=torch.float64)
    base = mlp(torch.float64)
    target = base.first.weight.detach() + change
    model = get_peft_model(
        base, AutoLoraConfig(r=6, lora_alpha=12, target_modules=["first"], joint=True)
    )
    with torch.no_grad():  # s = 2: shares of one half each give the change
        layer = model.base_model.model.first
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        layer.lora_B["default"].weight.normal_()
        layer.lora_B["default"].weight[:, :2] = left[:, :2] * values[:2]
        layer.lora_A["default"].weight[:2] = right[:2]
    split = levels(model)
    optimizer = torch.optim.Adam(split.upper, 0.1)
    x = torch.randn(50, 5, dtype=torch.float64)
    for _ in range(100):
        optimizer.zero_grad()
        difference = model.base_model.model.first(x) - x @ target.T - base.first.bias
        difference.square().mean().backward()
        optimizer.step()
    shares = next(iter(singular_values(model).values()))
    assert ranks(model) == {"first": 2}
    assert shares[:2].sum() > 0.95


def test_the_initial_output_is_the_frozen_models() -> None:
    assert torch.equal(output(adapted("mlp", "autolora"), inputs("mlp")), mlp()(**inputs("mlp")))


def test_misuse_of_the_config_names_the_argument() -> None:
    with pytest.raises(ValueError, match=r"threshold must be one of .* got 'values'"):
        AutoLoraConfig(threshold="values")  # type: ignore[arg-type]
    for options in ({"r": 1}, {"rank_pattern": {"first": 1}}):
        with pytest.raises(ValueError, match="at least 2 for AutoLoraConfig, got 1"):
            AutoLoraConfig(**options)
