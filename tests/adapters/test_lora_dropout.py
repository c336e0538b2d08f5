"""LoRA Dropout on LoRA, BiLoRA and BiDoRA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from adapters import (
    BiDoraConfig,
    BiLoraConfig,
    LoraDropoutConfig,
    SoraConfig,
    ensemble,
    export_lora,
    levels,
    mask_rates,
    masking,
    mean_loss,
    singular_values,
    two_level,
)
from adapters.glue.masks import Masks
from blo import Engine, darts, t1t2
from tests.adapters.models import base_model, inputs, move, output

RATE = 0.4
KINDS: dict[str, Callable[..., LoraConfig]] = {
    "lora": LoraDropoutConfig,
    "bilora": BiLoraConfig,
    "bidora": BiDoraConfig,
    "bidora-in": lambda **options: BiDoraConfig(norm_axis="in", **options),
}
every = pytest.mark.parametrize("kind", list(KINDS))
both = pytest.mark.parametrize("learned", [False, True])


def wrap(net: nn.Module, kind: str, *, moved: float = 0.3, **options: Any) -> PeftModel:
    """The network with a masked adapter of rank 3 and scale 2, moved, in evaluation mode."""
    torch.manual_seed(4)
    options = {"r": 3, "lora_alpha": 6, "mask_rate": RATE, **options}
    return move(get_peft_model(net, KINDS[kind](**options)), moved).eval()


def masked(base: str, kind: str, **options: Any) -> PeftModel:
    targets = {
        "mlp": {"target_modules": ["first", "second"]},
        "bert": {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]},
        "gpt2": {"task_type": "CAUSAL_LM", "target_modules": ["c_attn", "c_proj"]},
    }
    dtype = options.pop("dtype", torch.float32)
    return wrap(base_model(base, dtype), kind, **{**targets[base], **options})


def layer(kind: str, *, size: tuple[int, int] = (7, 5), **options: Any) -> PeftModel:
    """One float64 layer of that many outputs and inputs, without bias."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(size[1], size[0], bias=False)).double()
    return wrap(net, kind, target_modules=["0"], **options)


def parts(model: PeftModel) -> dict[str, Tensor]:
    """The tensors of the one layer, by the names that PEFT gives them."""
    prefix = "base_model.model.0."
    return {
        name.removeprefix(prefix).split(".")[0]: p.detach() for name, p in model.named_parameters()
    }


def weight(model: PeftModel) -> Tensor:
    """The weight that a forward pass of the one layer uses, ``(out, in)``."""
    with torch.no_grad():
        size = model.base_model.model[0].in_features
        value: Tensor = model(torch.eye(size, dtype=torch.float64)).T
    return value


def dense(model: PeftModel, kind: str, m_A: Tensor | float, m_B: Tensor | float) -> Tensor:
    """The weight by the equations, with matrices."""
    p = parts(model)
    B, A, W0 = p["lora_B"], p["lora_A"], p["base_layer"]
    if kind == "bilora":
        B = B @ torch.diag(singular_values(model)["base_model.model.0"])
    m_A, m_B = (torch.as_tensor(m, dtype=torch.float64) for m in (m_A, m_B))
    W = W0 + 2 * (m_B[:, None] if m_B.dim() else m_B) * (B @ A) * m_A
    if kind.startswith("bidora"):
        axis = 0 if kind == "bidora-in" else 1
        m = p["lora_magnitude_vector"].unsqueeze(axis)
        return m * W / W.norm(dim=axis, keepdim=True)
    return W


@every
def test_a_masked_weight_is_the_dense_formula(kind: str) -> None:
    model = layer(kind).train()
    torch.manual_seed(11)
    found = weight(model)
    torch.manual_seed(11)
    m_A, m_B = (torch.rand(n, dtype=torch.float64) >= RATE for n in (5, 7))
    assert not m_A.all()
    assert not m_B.all()
    torch.testing.assert_close(found, dense(model, kind, m_A.double(), m_B.double()))


@pytest.mark.parametrize("kind", ["lora", "bilora"])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_an_entry_is_zero_with_probability_2p_minus_p2_and_the_rank_is_kept(
    kind: str, rate: float
) -> None:
    model = layer(kind, size=(900, 800), mask_rate=rate).train()
    change = weight(model) - parts(model)["base_layer"]
    share = (change == 0).double().mean().item()
    # The share of one mask has the standard deviation sqrt(p (1 - p) / n); five of them.
    assert abs(share - (2 * rate - rate**2)) < 5 * (2 * rate * (1 - rate) / 800) ** 0.5
    assert torch.linalg.matrix_rank(change) == 3


@pytest.mark.parametrize("kind", ["lora", "bilora"])
@pytest.mark.parametrize("inverted", [False, True])
def test_the_mean_weight_over_masks_is_the_weight_without_them(kind: str, inverted: bool) -> None:
    model = layer(kind, mask_inverted=inverted).train()
    drawn = torch.stack([weight(model) for _ in range(1000)])
    whole = dense(model, kind, 1.0, 1.0)
    W0 = parts(model)["base_layer"]
    expected = W0 + (1 if inverted else (1 - RATE) ** 2) * (whole - W0)
    error = (drawn.mean(0) - expected).abs()
    assert (error <= 5 * drawn.std(0) / 1000**0.5).all()
    assert (whole - W0).norm() > 0.5
    torch.testing.assert_close(weight(model.eval()), expected)


@every
@pytest.mark.parametrize("inverted", [False, True])
def test_masks_that_are_off_leave_the_mean_of_the_change(kind: str, inverted: bool) -> None:
    model = layer(kind, mask_inverted=inverted)
    kept = 1.0 if inverted else 1 - RATE
    torch.testing.assert_close(weight(model), dense(model, kind, kept, kept))


def test_masks_that_are_off_make_stock_lora_of_another_alpha() -> None:
    ours = masked("bert", "lora")
    theirs = get_peft_model(
        base_model("bert"),
        LoraConfig(
            r=3,
            lora_alpha=6 * (1 - RATE) ** 2,
            task_type="SEQ_CLS",
            target_modules=["query", "value"],
        ),
    )
    theirs.load_state_dict(ours.state_dict())
    batch = inputs("bert")
    torch.testing.assert_close(output(ours, batch), output(theirs.eval(), batch))


@every
@both
def test_all_rows_and_tokens_of_a_batch_see_one_mask(kind: str, learned: bool) -> None:
    model = layer(kind, learn_mask_rate=learned).train()
    torch.manual_seed(11)
    W = weight(model)
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    torch.manual_seed(11)
    torch.testing.assert_close(model(x), x @ W.T)


@every
def test_every_layer_and_every_batch_has_a_mask_of_its_own(kind: str) -> None:
    model = layer(kind, size=(30, 30)).train()
    assert not torch.equal(weight(model), weight(model))
    torch.manual_seed(3)
    twice = nn.Sequential(*[nn.Linear(30, 30, bias=False) for _ in range(2)]).double()
    twice[1].load_state_dict(twice[0].state_dict())
    net = wrap(twice, "lora", target_modules=["0", "1"]).train().base_model.model
    net[1].load_state_dict(net[0].state_dict())
    x = torch.randn(3, 30, dtype=torch.float64)
    assert not torch.equal(net[0](x), net[1](x))


@every
@both
def test_the_same_seed_gives_the_same_masks(kind: str, learned: bool) -> None:
    model = layer(kind, learn_mask_rate=learned).train()
    torch.manual_seed(11)
    first = weight(model)
    torch.manual_seed(11)
    assert torch.equal(weight(model), first)


@every
@both
@pytest.mark.parametrize("base", ["mlp", "bert", "gpt2"])
def test_a_masked_model_starts_as_the_frozen_one(base: str, kind: str, learned: bool) -> None:
    # BiDoRA's norms see masked factors too: B is zero, whatever the masks.
    model = masked(base, kind, moved=0.0, learn_mask_rate=learned)
    before = output(base_model(base), inputs(base))
    assert torch.equal(output(model, inputs(base)), before)
    with masking(model, on=True):
        assert torch.equal(output(model, inputs(base)), before)


# Switching


def test_masks_follow_the_mode_and_the_switch() -> None:
    model = layer("lora")
    mean = weight(model)
    with masking(model, on=True):
        assert not torch.equal(weight(model), mean)
        with masking(model, on=False):
            assert torch.equal(weight(model.train()), mean)
        assert not torch.equal(weight(model), mean)
    assert not torch.equal(weight(model.train()), mean)
    assert torch.equal(weight(model.eval()), mean)


def test_a_block_that_fails_restores_the_switch() -> None:
    model = layer("lora")
    mean = weight(model)
    with pytest.raises(RuntimeError, match="stop"), masking(model, on=True):
        raise RuntimeError("stop")
    assert torch.equal(weight(model), mean)


# Loss and ensemble


@every
@pytest.mark.parametrize("as_dict", [False, True])
def test_the_mean_loss_is_the_mean_over_masks(kind: str, as_dict: bool) -> None:
    model = masked("bert", kind).train()
    batch = inputs("bert")

    def loss(batch: Any) -> Any:
        value = model(**batch).loss
        return {"loss": value, "first": value} if as_dict else value

    torch.manual_seed(11)
    one_by_one = [model(**batch).loss for _ in range(4)]
    torch.manual_seed(11)
    value = mean_loss(model, loss, num_masks=4)(batch)
    if as_dict:
        assert torch.equal(value["first"], one_by_one[0])
        value = value["loss"]
    torch.testing.assert_close(value, sum(one_by_one) / 4)
    assert len({v.item() for v in one_by_one}) == 4


def test_without_masks_a_mean_loss_evaluates_once() -> None:
    model = layer("lora")
    calls: list[int] = []

    def loss(x: Tensor) -> Tensor:
        calls.append(1)
        value: Tensor = model(x).square().mean()
        return value

    x = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(mean_loss(model, loss, num_masks=4)(x), model(x).square().mean())
    assert len(calls) == 1
    mean_loss(model.train(), loss, num_masks=4)(x)
    assert len(calls) == 5


@every
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_ensemble_averages_predictions_over_masks(kind: str, average: str) -> None:
    model = masked("bert", kind)
    batch = inputs("bert")
    logits = lambda: model(**batch).logits
    torch.manual_seed(11)
    model.train()
    drawn = torch.stack([logits() for _ in range(5)])
    expected = drawn.softmax(-1) if average == "probabilities" else drawn
    model.eval()
    before = logits()
    torch.manual_seed(11)
    found = ensemble(model, logits, num_masks=5, average=average)
    torch.testing.assert_close(found, expected.mean(0))
    assert torch.equal(logits(), before)


# Merging and checkpoints


@every
@both
def test_merging_is_refused_while_masks_are_on(kind: str, learned: bool) -> None:
    model = masked("mlp", kind, learn_mask_rate=learned).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"masks are on: call model.eval\(\)"):
            merge()
    with masking(model.eval(), on=True), pytest.raises(ValueError, match="masks are on"):
        model.merge_adapter()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@every
@both
@pytest.mark.parametrize("base", ["mlp", "gpt2"])
@pytest.mark.parametrize("safe", [False, True])
def test_a_merge_folds_the_mean_of_the_masks(
    base: str, kind: str, learned: bool, safe: bool
) -> None:
    model = masked(base, kind, learn_mask_rate=learned, dtype=torch.float64)
    batch = inputs(base, dtype=torch.float64)
    before = output(model, batch)
    weights = {n: p.clone() for n, p in model.named_parameters() if "base_layer" in n}
    model.merge_adapter(safe_merge=safe)
    torch.testing.assert_close(output(model, batch), before)
    model.train().unmerge_adapter()  # what was merged comes out whatever the mode
    named = dict(model.named_parameters())
    for name, value in weights.items():
        torch.testing.assert_close(named[name], value)
    torch.testing.assert_close(output(model.eval(), batch), before)
    plain = model.merge_and_unload(safe_merge=safe)
    torch.testing.assert_close(output(plain, batch), before)


@every
@both
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_masked_adapter_is_the_same_adapter(
    kind: str, learned: bool, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    model = masked("bert", kind, learn_mask_rate=learned)
    model.save_pretrained(tmp_path)
    settings = PeftConfig.from_pretrained(tmp_path)
    assert settings.peft_type == {"lora": "LORA_DROPOUT", "bilora": "BILORA"}.get(kind, "BIDORA")
    settings.inference_mode = False
    assert settings == model.peft_config["default"]
    loaded = PeftModel.from_pretrained(
        base_model("bert"), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert mask_rates(loaded) == mask_rates(model)
    if learned:
        assert mask_rates(model)["base_model.model.bert.encoder.layer.0.attention.self.query"] != (
            pytest.approx(RATE, abs=1e-3)
        )
    close = {"rtol": 1e-6, "atol": 1e-6}
    batch = inputs("bert")
    torch.testing.assert_close(output(loaded, batch), output(model, batch), **close)
    for one in (model, loaded):
        one.train()
    torch.manual_seed(11)
    drawn = output(model, batch)
    torch.manual_seed(11)
    torch.testing.assert_close(output(loaded, batch), drawn, **close)


@pytest.mark.parametrize("kind", ["lora", "bilora", "bidora"])
@both
@pytest.mark.parametrize("inverted", [False, True])
def test_an_export_is_stock_peft_with_the_masks_off(
    kind: str, learned: bool, inverted: bool, tmp_path: Path
) -> None:
    options = {"learn_mask_rate": learned, "mask_inverted": inverted, "dtype": torch.float64}
    model = masked("bert", kind, **options)
    export_lora(model, tmp_path)
    settings = PeftConfig.from_pretrained(tmp_path)
    assert type(settings) is LoraConfig
    assert settings.use_dora == (kind == "bidora")
    saved = load_file(tmp_path / "adapter_model.safetensors")
    names = {part for name in saved for part in name.split(".") if part.startswith("lora_")}
    assert names - {"lora_magnitude_vector"} == {"lora_A", "lora_B"}
    loaded = PeftModel.from_pretrained(base_model("bert", torch.float64), tmp_path).eval()
    torch.testing.assert_close(
        output(loaded, inputs("bert")), output(model, inputs("bert")), rtol=1e-12, atol=1e-12
    )


def test_magnitudes_of_inputs_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"norm_axis='in'.*merge_and_unload"):
        export_lora(masked("mlp", "bidora-in"), tmp_path)


# Learned rates


def test_a_relaxed_mask_is_kept_with_probability_1_minus_p() -> None:
    masks = Masks(rate=0.3, learned=True, temperature=0.1)
    logit = torch.logit(torch.tensor([0.3], dtype=torch.float64))
    mask = masks.draw(torch.empty(200_000, dtype=torch.float64), logit)
    assert ((mask >= 0) & (mask <= 1)).all()
    assert ((mask > 0.01) & (mask < 0.99)).double().mean() > 0.1
    # Five standard deviations of a share of 200,000 draws.
    assert abs((mask > 0.5).double().mean() - 0.7) < 5 * (0.3 * 0.7 / 200_000) ** 0.5
    colder = Masks(rate=0.3, learned=True, temperature=1e-4)
    cold = colder.draw(torch.empty(200_000, dtype=torch.float64), logit)
    assert ((cold < 1e-6) | (cold > 1 - 1e-6)).double().mean() > 0.999


def test_a_relaxed_mask_has_the_mean_of_a_binary_one_up_to_its_temperature() -> None:
    logit = torch.logit(torch.tensor([0.3], dtype=torch.float64))
    errors = []
    for temperature in (0.8, 0.4, 0.1):
        masks = Masks(rate=0.3, learned=True, temperature=temperature)
        torch.manual_seed(1)
        mean = masks.draw(torch.empty(200_000, dtype=torch.float64), logit).mean()
        errors.append(abs(mean.item() - 0.7))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 5e-3


@every
def test_learned_rates_belong_to_the_upper_level(kind: str) -> None:
    model = masked("bert", kind, learn_mask_rate=True, moved=0.0)
    assert list(mask_rates(model).values()) == [pytest.approx(RATE)] * 4
    split = levels(model)
    rates = [name for name in split.upper_names if "lora_mask_logit" in name]
    assert len(rates) == 4
    assert len(split.upper) == (4 if kind == "lora" else 8)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in [*split.upper, *split.lower]} == trained


def test_a_fixed_rate_has_no_upper_level() -> None:
    with pytest.raises(ValueError, match=r"one level.*LoraDropoutConfig\(learn_mask_rate=True\)"):
        levels(masked("bert", "lora"))
    assert len(levels(masked("bert", "bilora")).upper) == 4


def hypergradient(model: PeftModel, method: Any, seed: int, steps: int = 1) -> Tensor:
    """What the upper optimizer receives in the first round."""
    split = levels(model)
    upper = torch.optim.SGD(split.upper, 0.1)
    received = []
    upper.register_step_pre_hook(
        lambda *_: received.append(torch.cat([p.grad.flatten().clone() for p in split.upper]))
    )
    graph = two_level(
        model,
        loss=mean_loss(model, lambda batch: model(**batch).loss, num_masks=2),
        upper_batches=[inputs("bert", 21)],
        lower_batches=[inputs("bert", 20)],
        upper_optimizer=upper,
        lower_optimizer=torch.optim.SGD(split.lower, 0.5),
        method=method,
        steps=steps,
    )
    torch.manual_seed(seed)
    next(iter(Engine(graph).rounds(1)))
    return received[0]


CASES = [("lora", True), ("bilora", False), ("bilora", True), ("bidora", False), ("bidora", True)]


@pytest.mark.parametrize("kind, learned", CASES)
def test_a_finite_difference_sees_the_masks_of_the_step(kind: str, learned: bool) -> None:
    def response(method: Any, seed: int = 11) -> Tensor:
        model = masked("bert", kind, learn_mask_rate=learned, dtype=torch.float64).train()
        return hypergradient(model, method, seed)

    exact, direct = response(t1t2()), response(t1t2(1e-12))
    difference = response(darts())
    cosine = torch.cosine_similarity(difference - direct, exact - direct, dim=0)
    # With the masks of the step, the difference is exact up to its radius; with others it is not
    # even close, see the next test.
    assert cosine > 0.99
    torch.testing.assert_close(difference, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


def test_a_finite_difference_with_other_masks_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from blo.derivatives.random_state import RandomState

    def response(method: Any) -> Tensor:
        model = masked("bert", "lora", learn_mask_rate=True, dtype=torch.float64).train()
        return hypergradient(model, method, seed=11)

    exact, direct = response(t1t2()), response(t1t2(1e-12))
    monkeypatch.setattr(RandomState, "replay", lambda self: nullcontext())
    noise = response(darts()) - direct
    assert noise.norm() > 10 * (exact - direct).norm()


@pytest.mark.parametrize("kind", ["lora", "bilora", "bidora"])
def test_the_hypergradient_of_learned_rates_is_that_of_the_unrolled_objective(kind: str) -> None:
    model = masked("bert", kind, learn_mask_rate=True, dtype=torch.float64).train()
    split = levels(model)
    names = [*split.upper_names, *split.lower_names]
    named = dict(model.named_parameters())
    x = tuple(named[name].detach().requires_grad_() for name in split.upper_names)
    y = tuple(named[name].detach().requires_grad_() for name in split.lower_names)

    def loss(values: tuple[Tensor, ...], batch: int) -> Tensor:
        torch.manual_seed(batch)  # the noise is fixed, the rates are not
        at = dict(zip(names, values, strict=True))
        value: Tensor = functional_call(model, at, kwargs=inputs("bert", batch)).loss
        return value

    def objective(x: tuple[Tensor, ...]) -> Tensor:
        gradient = torch.autograd.grad(loss((*x, *y), 20), y, create_graph=True)
        after = tuple(p - 0.5 * g for p, g in zip(y, gradient, strict=True))
        return loss((*x, *after), 21)

    exact = torch.autograd.grad(objective(x), x)
    direct = torch.autograd.grad(loss((*x, *y), 21), x)
    pairs = dict(zip(split.upper_names, zip(exact, direct, strict=True), strict=True))
    for name, (whole, part) in pairs.items():
        if "mask_logit" in name:
            assert (whole - part).abs() > 1e-6  # the rate acts through the lower step too
    direction = tuple(torch.randn_like(p) for p in x)
    with torch.no_grad():
        size = sum(d.square().sum() for d in direction) ** 0.5
    direction = tuple(d / size for d in direction)

    def value(h: float) -> float:
        points = zip(x, direction, strict=True)
        return objective(tuple((p + h * d).detach().requires_grad_() for p, d in points)).item()

    h = 1e-3
    difference = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    along = sum((g * d).sum().item() for g, d in zip(exact, direction, strict=True))
    assert along == pytest.approx(difference, rel=1e-5)


def test_a_learned_rate_falls_where_masks_only_hurt() -> None:
    # The held-out data are the training data of an exactly realisable problem: any mask adds error.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4, bias=False)).double()
    with torch.no_grad():
        net[0].weight.zero_()
    model = wrap(net, "lora", target_modules=["0"], learn_mask_rate=True, moved=0.3).train()
    x = torch.randn(32, 6, dtype=torch.float64)
    target = x @ torch.randn(6, 4, dtype=torch.float64)
    split = levels(model)
    graph = two_level(
        model,
        loss=mean_loss(model, lambda b: (model(b[0]) - b[1]).square().mean(), num_masks=4),
        upper_batches=[(x, target)],
        lower_batches=[(x, target)],
        upper_optimizer=torch.optim.Adam(split.upper, 0.1),
        lower_optimizer=torch.optim.Adam(split.lower, 0.05),
        method=t1t2(),
    )
    for _ in Engine(graph).rounds(60):
        pass
    assert mask_rates(model)["base_model.model.0"] < 0.05


# At home in the engine and in PyTorch


@both
def test_a_run_that_is_resumed_draws_the_masks_of_the_whole_run(learned: bool) -> None:
    def engine() -> tuple[PeftModel, Engine]:
        model = masked("bert", "bilora", learn_mask_rate=learned).train()
        split = levels(model)
        graph = two_level(
            model,
            loss=mean_loss(model, lambda batch: model(**batch).loss, num_masks=2),
            upper_batches=[inputs("bert", 21)],
            lower_batches=[inputs("bert", 20)],
            upper_optimizer=torch.optim.SGD(split.upper, 0.1),
            lower_optimizer=torch.optim.SGD(split.lower, 0.1),
        )
        return model, Engine(graph)

    whole, first = engine()
    torch.manual_seed(11)
    list(first.rounds(4))
    part, second = engine()
    torch.manual_seed(11)
    list(second.rounds(2))
    state = second.state_dict()
    resumed, third = engine()
    torch.manual_seed(99)
    third.load_state_dict(state)
    list(third.rounds(2))
    named = dict(resumed.named_parameters())
    for name, p in whole.named_parameters():
        assert torch.equal(named[name], p), name
    assert not all(torch.equal(dict(part.named_parameters())[n], named[n]) for n in named)


@every
def test_activation_checkpointing_replays_the_masks(kind: str) -> None:
    def gradients(checkpointing: bool) -> tuple[Tensor, ...]:
        model = masked("bert", kind).train()
        if checkpointing:
            name = "activation_checkpointing_enable"
            enable = getattr(model, name, None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        torch.manual_seed(11)
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.autograd.grad(model(**inputs("bert")).loss, trained)

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-6, atol=1e-7)


@every
def test_masks_on_a_bfloat16_model_are_those_on_a_float32_one(kind: str) -> None:
    models = [
        masked("bert", kind, dtype=dtype).train() for dtype in (torch.float32, torch.bfloat16)
    ]
    found = []
    for model in models:
        torch.manual_seed(11)
        found.append(output(model, inputs("bert")).float())
    # 8 bits of mantissa, some ten rounded operations deep.
    assert (found[1] - found[0]).norm() < 3e-2 * found[0].norm()


def test_other_dropout_is_independent_of_the_masks() -> None:
    model = layer("lora", size=(30, 30), lora_dropout=0.5).train()
    with masking(model, on=False):
        assert not torch.equal(weight(model), weight(model))


# Misuse


@pytest.mark.parametrize("kind", ["lora", "bilora", "bidora"])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_rate": 1.0}, r"mask_rate must be in \[0, 1\), got 1.0"),
        ({"mask_rate": -0.1}, r"mask_rate must be in \[0, 1\), got -0.1"),
        ({"mask_temperature": 0.0}, r"mask_temperature must be a finite number above 0, got 0.0"),
        ({"mask_rate": 0.0, "learn_mask_rate": True}, "needs a mask_rate above 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_config_refuses_what_it_cannot_mean(
    kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KINDS[kind](**options)


def test_a_method_without_masks_refuses_a_rate() -> None:
    with pytest.raises(ValueError, match=r"mask_rate cannot be combined with SoraConfig, got 0\.5"):
        SoraConfig(mask_rate=0.5)
    with pytest.raises(ValueError, match=r"got 0: use peft\.LoraConfig"):
        LoraDropoutConfig(mask_rate=0)


def test_a_model_without_masks_is_refused() -> None:
    model = get_peft_model(base_model("mlp"), BiLoraConfig(target_modules=["first"]))
    calls: list[Callable[[], Any]] = [
        lambda: mean_loss(model, lambda batch: batch, num_masks=2),
        lambda: ensemble(model, lambda: torch.zeros(1), num_masks=2),
        lambda: mask_rates(model),
        lambda: masking(model, on=True).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="has no active adapter with masks"):
            call()


def test_numbers_of_masks_and_averages_are_checked() -> None:
    model = layer("lora")
    with pytest.raises(ValueError, match="num_masks must be at least 1, got 0"):
        mean_loss(model, lambda batch: batch, num_masks=0)
    with pytest.raises(ValueError, match="num_masks must be at least 1, got -1"):
        ensemble(model, lambda: torch.zeros(1), num_masks=-1)
    with pytest.raises(ValueError, match=r"average must be one of .* got 'mean'"):
        ensemble(model, lambda: torch.zeros(1), num_masks=1, average="mean")


@pytest.mark.parametrize("kind", ["lora", "bidora"])
def test_weighted_sums_of_masked_adapters_are_refused(kind: str) -> None:
    with pytest.raises(NotImplementedError, match="export_lora"):
        masked("mlp", kind).add_weighted_adapter(["default"], [1.0], "sum")
