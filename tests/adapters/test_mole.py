"""MoLE against PEFT's own combination of adapters, single experts and dense matrices."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

import blo
from adapters import Balance, MoleConfig, export_lora, keep_experts, levels, singular_values
from adapters.glue.sharing import layer_of
from blo import Engine, Problem, ProblemGraph, alternating
from tests.adapters.models import BASES, bert, inputs, mlp, move, output

OPTIONS: dict[str, dict[str, Any]] = {
    "first": {"r": 2, "lora_alpha": 6, "rank_pattern": {"second": 1}},
    "second": {"r": 3, "lora_alpha": 3, "alpha_pattern": {"first": 12}},
    "third": {"r": 1, "use_rslora": True, "target_modules": ["first"]},
}
TARGETS = {"target_modules": ["first", "second"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three adapters of the network, of different ranks, scales and modules."""
    root = tmp_path_factory.mktemp("experts")
    for seed, (name, options) in enumerate(OPTIONS.items()):
        torch.manual_seed(seed)
        model = get_peft_model(mlp(), LoraConfig(**{**TARGETS, **options}))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.4 * torch.randn_like(parameter))
        model.save_pretrained(root / name)
    return [str(root / name) for name in OPTIONS]


def stock(folders: list[str]) -> PeftModel:
    model = PeftModel.from_pretrained(mlp(), folders[0], adapter_name="0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, str(number))
    return model


def gated(model: PeftModel, gate: Tensor) -> PeftModel:
    for name, parameter in model.named_parameters():
        if "lora_gate.default" in name:
            parameter.data.copy_(gate)
    return model


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_start_is_pefts_own_uniform_combination(folders: list[str]) -> None:
    x, reference = inputs("mlp"), stock(folders[:2])
    reference.add_weighted_adapter(["0", "1"], [0.5, 0.5], "mean", combination_type="cat")
    reference.set_adapter("mean")
    model = get_peft_model(mlp(), MoleConfig(experts=folders[:2]))
    close(output(model, x), output(reference, x))
    assert (output(model, x) - output(mlp(), x)).norm() > 0.1
    close(output(model.merge_and_unload(), x), output(reference.merge_and_unload(), x))


def test_a_gate_of_one_is_the_expert(folders: list[str]) -> None:
    x, reference = inputs("mlp"), stock(folders)
    model = get_peft_model(mlp(), MoleConfig(experts=folders, temperature=0.1))
    for number in range(3):
        reference.set_adapter(str(number))
        close(
            output(gated(model, 30 * F.one_hot(torch.tensor(number), 3)), x), output(reference, x)
        )
    alone = get_peft_model(mlp(), MoleConfig(experts=folders[1:2]))
    reference.set_adapter("1")
    close(output(gated(alone, torch.tensor([-7.0])), x), output(reference, x))


def test_experts_that_are_left_out_leave_the_softmax_of_the_others(
    folders: list[str], tmp_path: Path
) -> None:
    x, logits = inputs("mlp"), torch.tensor([0.3, -1.0, 0.7])
    model = gated(get_peft_model(mlp(), MoleConfig(experts=folders)), logits)
    keep_experts(model, [2, 0])
    two = get_peft_model(mlp(), MoleConfig(experts=[folders[0], folders[2]]))
    close(output(model, x), output(gated(two, logits[[0, 2]]), x))
    model.save_pretrained(tmp_path / "own")
    close(output(PeftModel.from_pretrained(mlp(), tmp_path / "own"), x), output(model, x))
    plain = PeftModel.from_pretrained(mlp(), export_lora(model, tmp_path / "plain", prune=True))
    assert plain.base_model.model.first.r["default"] == 3
    close(output(plain, x), output(model, x))
    keep_experts(model, None)
    assert all(gate.min() > 0 for gate in singular_values(model).values())
    with pytest.raises(ValueError, match="at least one of 0 to 2, got \\[3\\]"):
        keep_experts(model, [3])


def test_balance_is_least_where_all_experts_are_used_alike(folders: list[str]) -> None:
    model = get_peft_model(mlp(), MoleConfig(experts=folders))
    gates = [p for p in model.parameters() if p.requires_grad]
    value = Balance(0.5)(model)
    assert value.item() == pytest.approx(0.5 * 3 * math.log(3), abs=1e-6)
    assert all(g.abs().max() < 1e-7 for g in torch.autograd.grad(value, gates))
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, -0.5]])
    for gate, row in zip(gates, logits, strict=True):
        gate.data.copy_(row)
    expected = -logits.softmax(1).mean(0).log().sum()
    assert Balance(1.0)(model).item() == pytest.approx(expected.item(), rel=1e-6)
    keep_experts(model, [0, 1])
    expected = -logits[:, :2].softmax(1).mean(0).log().sum()
    assert Balance(1.0)(model).item() == pytest.approx(expected.item(), rel=1e-6)


def test_frozen_experts_stay_as_they_are(folders: list[str], tmp_path: Path) -> None:
    copies = [shutil.copytree(folder, tmp_path / Path(folder).name) for folder in folders]
    settings = MoleConfig(experts=[str(folder) for folder in copies], learn_temperature=True)
    model = get_peft_model(mlp(), settings)
    assert settings.ranks is None  # the caller's own configuration is not changed
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n}
    model.add_adapter("second", settings)
    model.set_adapter("second")
    model.set_adapter("default")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[-2] for name in trained} == {"lora_gate", "lora_gate_temperature"}
    model.delete_adapter("second")
    move(model, 0.5)
    for name, parameter in model.named_parameters():
        assert name not in before or torch.equal(parameter, before[name])
    model.save_pretrained(tmp_path / "saved")
    for folder in copies:
        shutil.rmtree(folder)
    loaded = PeftModel.from_pretrained(mlp(), tmp_path / "saved", is_trainable=True)
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == trained
    close(output(loaded, inputs("mlp")), output(model, inputs("mlp")))


def test_modules_of_one_layer_share_a_gate_that_is_saved_once(tmp_path: Path) -> None:
    settings = MoleConfig(ranks=[1, 2], train_experts=True, granularity="layer", **BASES["bert"][1])
    model = move(get_peft_model(bert(), settings), 0.3)
    assert [layer_of(name) for name in levels(model).upper_names] == [
        f"base_model.model.bert.encoder.layer.{index}" for index in range(2)
    ]
    gates = list(singular_values(model).values())
    assert torch.equal(gates[0], gates[1])
    assert not torch.equal(gates[0], gates[2])
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(bert(), tmp_path, low_cpu_mem_usage=True, is_trainable=True)
    for parameter in levels(loaded).upper:
        parameter.data.zero_()
    assert all(len(set(gate.tolist())) == 1 for gate in singular_values(loaded).values())


def test_a_gate_of_the_input_is_that_of_the_dense_experts(folders: list[str]) -> None:
    model = get_peft_model(mlp(), MoleConfig(experts=folders, gate="input", temperature=0.5))
    uniform = get_peft_model(mlp(), MoleConfig(experts=folders))
    x = torch.randn(4, 6, 5)
    close(model(x), uniform(x))
    move(model, 0.3)
    layer = model.base_model.model.first
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    blocks = zip(A.split([2, 3, 1]), B.split([2, 3, 1], 1), strict=True)
    made = [x @ (right @ left).T for left, right in blocks]
    z = torch.cat([one.mean(1) for one in made], 1)
    z = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    gate = (z @ layer.lora_gate["default"] / 0.5).softmax(1)
    assert gate.std(0).max() > 0.01  # each sequence its own
    expected = layer.base_layer(x) + sum(gate[:, i, None, None] * one for i, one in enumerate(made))
    close(layer(x), expected)
    with pytest.raises(ValueError, match="nor can it be merged"):
        model.merge_adapter()


def test_a_gate_of_the_input_does_not_fold(folders: list[str], tmp_path: Path) -> None:
    model = move(get_peft_model(mlp(), MoleConfig(experts=folders, gate="input")), 0.3)
    with pytest.raises(ValueError, match="which no fixed B A computes"):
        export_lora(model, tmp_path / "plain")
    model.save_pretrained(tmp_path / "own")
    loaded = PeftModel.from_pretrained(mlp(), tmp_path / "own")
    close(output(loaded, inputs("mlp")), output(model, inputs("mlp")))


# All but pbgd, which takes the direct part too at its own copy of the lower solution.
METHODS: dict[str, Callable[[], Any]] = {
    "darts": blo.darts,
    "t1t2": blo.t1t2,
    "sama": blo.sama,
    "unrolled": blo.unrolled,
    "forward_mode": blo.forward_mode,
    "neumann": lambda: blo.neumann(3, scale=0.1),
    "cg": lambda: blo.cg(3),
    "minres": lambda: blo.minres(3),
    "gmres": lambda: blo.gmres(3),
    "bicgstab": lambda: blo.bicgstab(3),
    "normal_cg": lambda: blo.normal_cg(3),
    "nystrom": lambda: blo.nystrom(3),
    "dense": lambda: blo.dense(damping=1.0),
    "soba": lambda: blo.soba(0.1),
    "f2sa": lambda: blo.f2sa(3, lr=0.05, delta=0.01),
    "evolution": lambda: blo.evolution(2),
}


def alone_below(method: Any) -> list[Tensor]:
    """Gates after three rounds above experts that are trained alone, as the paper's are."""
    torch.manual_seed(0)
    settings = MoleConfig(ranks=[2, 2], train_experts=True, **TARGETS)
    model = move(get_peft_model(mlp(torch.float64), settings), 0.3)
    split = levels(model)
    target, sources = (inputs("mlp", seed, torch.float64)["x"] for seed in (1, 2))

    def mixture(x: Tensor) -> Tensor:
        return (model(x) - x[:, :3]).square().mean()

    def each_alone(x: Tensor) -> Tensor:
        losses = []
        for expert in range(2):
            keep_experts(model, [expert])
            losses.append((model(x) - x[:, expert : expert + 3].sin()).square().mean())
        keep_experts(model, None)
        return torch.stack(losses).sum()

    graph = ProblemGraph(
        [
            Problem(
                "gate",
                mixture,
                model,
                torch.optim.Adam(split.upper, 0.1),
                [target],
                reads=["experts"],
            ),
            Problem(
                "experts",
                each_alone,
                model,
                torch.optim.SGD(split.lower, 0.1),
                [sources],
                reads=["gate"],
                method=method,
            ),
        ]
    )
    Engine(graph).run(3)
    return [gate.detach().clone() for gate in split.upper]


def test_experts_that_do_not_see_the_gate_do_not_respond_to_it() -> None:
    expected = alone_below(alternating())
    assert all((gate != 0).all() for gate in expected)
    for name, method in METHODS.items():
        for found, gate in zip(alone_below(method()), expected, strict=True):
            assert torch.equal(found, gate), name


def test_misuse_is_refused(folders: list[str]) -> None:
    for options, message in (
        ({}, "experts must name at least one folder"),
        ({"ranks": [1, 1]}, "experts must name at least one folder"),
        ({"experts": folders, "gate": "both"}, "gate must be one of"),
        ({"experts": folders, "temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"experts": folders, "rank_pattern": {"a": 1}}, "rank_pattern cannot be combined"),
        ({"experts": folders, "gate": "input", "granularity": "layer"}, "needs gate='static'"),
        ({"experts": folders, "gate": "input", "task_type": "CAUSAL_LM"}, "tokens that are to be"),
    ):
        with pytest.raises(ValueError, match=message):
            MoleConfig(**options)
    with pytest.raises(ValueError, match="must be folders with an adapter"):
        get_peft_model(mlp(), MoleConfig(experts=["nowhere"]))
    with pytest.raises(ValueError, match="must select all modules of the experts"):
        get_peft_model(mlp(), MoleConfig(experts=folders, target_modules=["first"]))
    with pytest.raises(ValueError, match="0 trainable lower parameters"):
        levels(get_peft_model(mlp(), MoleConfig(experts=folders)))


def test_a_learned_temperature_is_a_logarithm_that_starts_at_its_option() -> None:
    settings = MoleConfig(
        ranks=[1, 1], train_experts=True, temperature=0.5, learn_temperature=True, **TARGETS
    )
    logits = torch.tensor([0.3, -0.2])
    model = gated(get_peft_model(mlp(), settings), logits)
    for temperature in (0.5, 2.0):
        for gate in singular_values(model).values():
            close(gate, (logits / temperature).softmax(0))
        for name, parameter in model.named_parameters():
            if "lora_gate_temperature" in name:
                parameter.data.fill_(math.log(2.0))


def test_balance_counts_a_gate_that_modules_share_once() -> None:
    targets = ["layer.0.attention.self.query", "layer.0.attention.self.value"]
    settings = MoleConfig(
        ranks=[1, 2],
        train_experts=True,
        granularity="layer",
        task_type="SEQ_CLS",
        target_modules=[*targets, "layer.1.attention.self.query"],
    )
    model = get_peft_model(bert(), settings)
    split = levels(model)
    logits = torch.tensor([[0.5, -1.0], [2.0, 1.0]])
    for gate, row in zip(split.upper, logits, strict=True):
        gate.data.copy_(row)
    expected = -logits.softmax(1).mean(0).log().sum()
    assert Balance(1.0)(model).item() == pytest.approx(expected.item(), rel=1e-6)
