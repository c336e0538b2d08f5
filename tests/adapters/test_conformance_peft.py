"""What else is expected of an adapter: names, status, deletion, compilation, derivatives."""

import contextlib
import copy
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.func import functional_call

from adapters import levels
from blo import cg, darts, dense, hypergradient, minres, neumann, t1t2
from tests.adapters.models import (
    ALL,
    BASES,
    DIAGONAL,
    NETWORKS,
    adapted,
    base_model,
    config,
    inputs,
    mlp,
    move,
    output,
)

every = pytest.mark.parametrize("method", ALL)
Tensors = tuple[Tensor, ...]


def named(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# Names and status


@every
def test_an_adapter_keeps_the_name_it_was_given(method: str, tmp_path: Path) -> None:
    base = base_model("bert")
    model = get_peft_model(base, config(method, **BASES["bert"][1]), adapter_name="mine")
    move(model, 0.3).eval()
    assert model.active_adapters == ["mine"]
    owned = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert owned
    assert all("mine" in name.split(".") for name in owned)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model("bert"), tmp_path / "mine", adapter_name="yours")
    assert all("yours" in n.split(".") for n, _ in loaded.named_parameters() if "lora_" in n)
    batch = inputs("bert")
    torch.testing.assert_close(output(loaded, batch), output(model, batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", [*ALL, *NETWORKS])
def test_an_adapter_called_ref_is_the_copy_that_trl_takes_it_for(method: str) -> None:
    """TRL's trainers add it with the same config, and copy what has ".default." in its name."""
    model = adapted("bert", method, moved=0.3).eval()
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    expected = output(model, inputs("bert"))
    model.set_adapter("ref")
    torch.testing.assert_close(output(model, inputs("bert")), expected, rtol=0, atol=0)


@every
def test_only_the_selected_adapters_are_saved(method: str, tmp_path: Path) -> None:
    model = adapted("bert", method)
    model.add_adapter("second", config(method, **BASES["bert"][1]))
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "second"]


@every
def test_an_adapter_whose_name_is_part_of_another_is_saved_alone(
    method: str, tmp_path: Path
) -> None:
    model = adapted("bert", method, moved=0.3)
    batch = inputs("bert")
    first = output(model, batch)
    model.add_adapter("default_two", config(method, **BASES["bert"][1]))
    model.set_adapter("default_two")
    move(model, 0.2)
    second = output(model, batch)
    model.save_pretrained(tmp_path)
    for path, expected in ((tmp_path, first), (tmp_path / "default_two", second)):
        loaded = PeftModel.from_pretrained(base_model("bert"), path)
        torch.testing.assert_close(output(loaded, batch), expected, rtol=1e-5, atol=1e-5)


@every
def test_the_status_of_a_model_tells_its_adapter(method: str) -> None:
    model = adapted("bert", method)
    status = model.get_model_status()
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.merged_adapters == []
    assert status.requires_grad == {"default": True}
    assert status.num_adapter_layers == 5  # four projections and the classifier
    trainable, total = model.get_nb_trainable_parameters()
    split = levels(model)
    assert trainable == sum(p.numel() for p in [*split.upper, *split.lower])
    assert total == sum(p.numel() for p in model.parameters())


@every
def test_only_the_active_adapter_trains(method: str) -> None:
    model = adapted("bert", method)
    model.add_adapter("second", config(method, **BASES["bert"][1]))
    for active, idle in (("default", "second"), ("second", "default")):
        model.set_adapter(active)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        assert trained
        assert all(active in name.split(".") for name in trained)
        assert not any(idle in name.split(".") for name in trained)
    model.set_requires_grad("second", requires_grad=False)
    assert not any(p.requires_grad for p in model.parameters())


@every
def test_layers_are_chosen_by_index(method: str) -> None:
    options = {**BASES["bert"][1], "layers_to_transform": [1], "layers_pattern": "layer"}
    model = get_peft_model(base_model("bert"), config(method, **options))
    assert {name.split("layer.")[1].split(".")[0] for name in model.targeted_module_names} == {"1"}
    assert len(levels(model).upper) == 2


@every
def test_a_layer_still_tells_its_size(method: str) -> None:
    layer = adapted("mlp", method).base_model.model.first
    assert (layer.in_features, layer.out_features) == (5, 7)
    assert "BiLevelLinear" in repr(layer)


# Deleting, disabling and unloading


@every
def test_deleting_an_unknown_adapter_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="Adapter x does not exist"):
        adapted("mlp", method).delete_adapter("x")


@every
def test_a_deleted_adapter_leaves_no_trace(method: str) -> None:
    model = adapted("bert", method, moved=0.3)
    before = set(model.state_dict())
    model.add_adapter("second", config(method, **BASES["bert"][1]))
    model.delete_adapter("second")
    assert set(model.state_dict()) == before
    for module in model.modules():
        if hasattr(module, "lora_variant"):
            assert set(module.lora_variant) == {"default"}
    model.add_adapter("second", config(method, **{**BASES["bert"][1], "r": 2}))
    model.set_adapter("second")
    assert {p.shape[0] for n, p in model.named_parameters() if "lora_A.second" in n} == {2}


@every
def test_disabling_is_nested_and_undoes_itself_after_an_error(method: str) -> None:
    batch = inputs("mlp")
    model = adapted("mlp", method, moved=0.3)
    before, frozen = output(model, batch), output(base_model("mlp"), batch)
    inside = []
    with model.disable_adapter(), contextlib.suppress(RuntimeError), model.disable_adapter():
        inside.append(output(model, batch))
        raise RuntimeError("stop")
    assert torch.equal(inside[0], frozen)
    assert torch.equal(output(model, batch), before)


@every
def test_merging_twice_merges_once(method: str) -> None:
    batch = inputs("mlp")
    model = adapted("mlp", method, moved=0.3)
    before = output(model, batch)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="already merged, nothing to do"):
        model.merge_adapter()
    torch.testing.assert_close(output(model, batch), before, rtol=1e-5, atol=1e-5)


@every
def test_unloading_returns_the_frozen_model(method: str) -> None:
    batch = inputs("mlp")
    plain = adapted("mlp", method, moved=0.3).unload()
    assert not any("lora" in name for name, _ in plain.named_modules())
    assert torch.equal(output(plain, batch), output(base_model("mlp"), batch))


@every
@pytest.mark.parametrize("base", ["mlp", "gpt2"])
def test_a_bfloat16_model_is_merged_to_its_own_precision(base: str, method: str) -> None:
    model = adapted(base, method, dtype=torch.bfloat16, moved=0.1)
    batch = inputs(base, dtype=torch.bfloat16)
    before = output(model, batch).float()
    merged = model.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    # 8 bits of mantissa, some ten rounded operations deep.
    assert (output(merged, batch).float() - before).norm() < 5e-2 * before.norm()


@every
def test_autocast_stays_close_to_float32(method: str) -> None:
    model = adapted("bert", method, moved=0.3)
    reference = output(model, inputs("bert"))
    with torch.autocast("cpu", torch.bfloat16):
        half = output(model, inputs("bert"))
    assert (half.float() - reference).norm() < 3e-2 * reference.norm()


# Configurations


@every
def test_a_config_is_its_dictionary(method: str) -> None:
    settings = config(method, target_modules=["a", "b"], use_rslora=True)
    fields = settings.to_dict()
    assert isinstance(fields, dict)
    if method != "bidora":  # the dictionary of BiDoRA is DoRA's
        assert type(settings)(**fields) == settings
    assert copy.deepcopy(settings) == settings


# Compilation


@every
def test_a_compiled_model_trains_as_the_model_does(method: str) -> None:
    def gradients(compiled: bool) -> Tensors:
        model = adapted("mlp", method, moved=0.3)
        torch.compiler.reset()  # there is a limit to how often the same lines are compiled
        run: Any = torch.compile(model, backend="aot_eager") if compiled else model
        split = levels(model)
        loss = run(**inputs("mlp")).square().sum()
        return torch.autograd.grad(loss, [*split.upper, *split.lower])

    for plain, compiled in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)


# Derivatives


def functional(base: str, method: str) -> tuple[Any, Tensors, Tensors]:
    """The loss of both levels at given parameters, in float64, and where these are."""
    model = adapted(base, method, dtype=torch.float64, moved=0.3)
    split, parameters = levels(model), dict(model.named_parameters())
    names = [*split.upper_names, *split.lower_names]
    upper = tuple(parameters[name].detach() for name in split.upper_names)
    lower = tuple(parameters[name].detach() for name in split.lower_names)

    def loss(values: Tensors, seed: int) -> Tensor:
        batch = inputs(base, seed, dtype=torch.float64)
        at = dict(zip(names, values, strict=True))
        result: Any = functional_call(model, at, kwargs=batch)
        if isinstance(result, Tensor):
            return result.square().mean()
        # Not the loss of transformers' causal models, which is taken in float32.
        logits: Tensor = result.logits
        return logits.square().mean() + torch.logsumexp(logits, -1).mean()

    return loss, upper, lower


# torch loads its forward derivatives through torch.jit.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@every
@pytest.mark.parametrize("base", list(BASES))
def test_three_ways_to_a_hessian_product_agree(base: str, method: str) -> None:
    loss, upper, lower = functional(base, method)
    at = (*upper, *lower)
    direction = tuple(torch.randn_like(p) for p in at)

    def gradient(values: Tensors) -> Tensors:
        leaves = tuple(v.detach().requires_grad_() for v in values)
        return torch.autograd.grad(loss(leaves, 10), leaves)

    leaves = tuple(p.clone().requires_grad_() for p in at)
    first = torch.autograd.grad(loss(leaves, 10), leaves, create_graph=True)
    backward = torch.autograd.grad(first, leaves, direction)
    forward = torch.func.jvp(
        lambda *v: torch.func.grad(lambda values: loss(values, 10))(v), at, direction
    )[1]
    h = 1e-5
    pairs = list(zip(at, direction, strict=True))
    high = gradient(tuple(p + h * d for p, d in pairs))
    low = gradient(tuple(p - h * d for p, d in pairs))
    for ours, theirs, up, down in zip(backward, forward, high, low, strict=True):
        scale = float(ours.abs().max()) + 1e-12
        torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-10 * scale)
        torch.testing.assert_close((up - down) / (2 * h), ours, rtol=1e-5, atol=1e-5 * scale)


SOLVERS = {"dense": dense(), "cg": cg(400), "minres": minres(400), "neumann": neumann(20_000)}


def minimised(method: str, upper: Tensors, lower: Tensors) -> tuple[Any, Tensors]:
    """A two-layer regression with a penalty on the lower parameters, solved by Newton's method."""
    loss, _, _ = functional("mlp", method)
    start = tuple(p.clone() for p in lower)

    def lower_loss(upper: Tensors, lower: Tensors) -> Tensor:
        penalty = sum(((p - q) ** 2).sum() for p, q in zip(lower, start, strict=True))
        return loss((*upper, *lower), 20) + 5 * penalty

    return lower_loss, solved(lower_loss, upper, lower)


def solved(lower_loss: Any, upper: Tensors, lower: Tensors) -> Tensors:
    sizes, shapes = [p.numel() for p in lower], [p.shape for p in lower]

    def flat_loss(flat: Tensor) -> Tensor:
        pieces = zip(flat.split(sizes), shapes, strict=True)
        value: Tensor = lower_loss(upper, tuple(piece.view(shape) for piece, shape in pieces))
        return value

    flat = torch.cat([p.flatten() for p in lower])
    for _ in range(9):
        gradient = torch.autograd.functional.jacobian(flat_loss, flat)
        if gradient.norm() < 1e-12:
            break
        flat = flat - torch.linalg.solve(
            torch.autograd.functional.hessian(flat_loss, flat), gradient
        )
    assert gradient.norm() < 1e-12
    return tuple(p.view(shape) for p, shape in zip(flat.split(sizes), shapes, strict=True))


@pytest.mark.parametrize("method", ["real", "softmax", "binary", "bidora", "dropout"])
def test_implicit_hypergradients_are_those_of_a_lower_problem_solved_again(method: str) -> None:
    loss, upper, lower = functional("mlp", method)
    lower_loss, solution = minimised(method, upper, lower)
    upper_loss = lambda x, y: loss((*x, *y), 21)
    direction = tuple(torch.randn_like(p) for p in upper)
    h = 1e-4

    def value(step: float) -> float:
        x = tuple(p + step * d for p, d in zip(upper, direction, strict=True))
        return float(upper_loss(x, solved(lower_loss, x, solution)))

    difference = (value(h) - value(-h)) / (2 * h)
    for name, solver in SOLVERS.items():
        found = hypergradient(upper_loss, lower_loss, upper, solution, method=solver)
        along = sum((g * d).sum() for g, d in zip(found.grads, direction, strict=True))
        assert float(along) == pytest.approx(difference, rel=1e-5), name


@pytest.mark.parametrize("method", ["real", "softmax", "binary", "bidora", "dropout"])
def test_one_step_hypergradients_are_those_of_the_step(method: str) -> None:
    loss, upper, lower = functional("mlp", method)
    lower_loss = lambda x, y: loss((*x, *y), 20)
    upper_loss = lambda x, y: loss((*x, *y), 21)
    x = tuple(p.clone().requires_grad_() for p in upper)
    y = tuple(p.clone().requires_grad_() for p in lower)
    # Without an engine the step's point is the solution: the derivative of y - g_y(x, y) at y.
    cotangent = torch.autograd.grad(upper_loss(upper, y), y)
    first = torch.autograd.grad(lower_loss(x, y), y, create_graph=True)
    mixed = torch.autograd.grad(first, x, cotangent)
    direct = torch.autograd.grad(upper_loss(x, lower), x)
    expected = [d - m for d, m in zip(direct, mixed, strict=True)]
    for step, rtol in ((t1t2(1.0), 1e-10), (darts(1.0), 1e-5)):
        found = hypergradient(upper_loss, lower_loss, upper, lower, method=step).grads
        for ours, theirs in zip(found, expected, strict=True):
            scale = float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("method", [*DIAGONAL, "dropout"])
def test_at_the_start_an_exact_implicit_response_vanishes(method: str) -> None:
    # With B = 0, g_yy = [[0, C], [C^T, D]] over A and B, and c = (0, c_B): so C v_B = 0, which is
    # v_B^T G = 0 with G = dg/dW. The response is rank j's <v_B,j, G a_j>, so zero.
    # docs/methods/bilora.md draws the conclusion.
    model = adapted("mlp", method, dtype=torch.float64)
    split, parameters = levels(model), dict(model.named_parameters())
    names = [*split.upper_names, *split.lower_names]

    def loss(x: Tensors, y: Tensors, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        batch = torch.randn(40, 5, generator=generator, dtype=torch.float64)
        target = torch.randn(40, 3, generator=generator, dtype=torch.float64)
        values = dict(zip(names, [*x, *y], strict=True))
        value: Tensor = (functional_call(model, values, (batch,)) - target).square().mean()
        return value

    upper = tuple(parameters[name].detach() for name in split.upper_names)
    lower = tuple(parameters[name].detach() for name in split.lower_names)

    def response(how: Any) -> float:
        found = hypergradient(
            lambda x, y: loss(x, y, 2), lambda x, y: loss(x, y, 1), upper, lower, method=how
        )
        parts = itertools.chain.from_iterable(
            (g - d).flatten() for g, d in zip(found.grads, found.direct, strict=True)
        )
        return float(torch.stack(list(parts)).norm())

    assert response(t1t2(1.0)) > 1e-4
    assert response(dense()) < 1e-6 * response(t1t2(1.0))


@every
def test_wrapping_and_saving_warn_of_nothing(method: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = get_peft_model(mlp(), config(method, target_modules=["first"]))
        model.save_pretrained(tmp_path)
        PeftModel.from_pretrained(mlp(), tmp_path)
