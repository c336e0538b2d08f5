"""What a PEFT user expects of methods whose layers share parameters or make factors of others.

Less than `test_conformance` asks, one test for all of a method's behaviour on a base model.
"""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel

from adapters import levels, next_task, two_level
from blo import Engine, Method, alternating, t1t2
from blo import unrolled as unroll
from tests.adapters.models import BASES, NETWORKS, adapted, base_model, config, inputs, move, output
from tests.adapters.test_hypergradients import LR, against_differences, unrolled


@pytest.mark.parametrize("method", NETWORKS)
@pytest.mark.parametrize("base", list(BASES))
def test_an_adapter_starts_merges_saves_and_stays_apart(
    base: str, method: str, tmp_path: Path
) -> None:
    batch = inputs(base)
    frozen = output(base_model(base), batch)
    model = adapted(base, method)
    assert torch.equal(output(model, batch), frozen)
    before = output(move(model, 0.3), batch)
    assert (before - frozen).norm() > 1e-2 * frozen.norm()
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(output(model, batch), before, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(output(model, batch), frozen, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).peft_type == model.peft_config["default"].peft_type
    loaded = PeftModel.from_pretrained(base_model(base), tmp_path, low_cpu_mem_usage=True)
    torch.testing.assert_close(output(loaded, batch), output(model, batch), rtol=1e-5, atol=1e-5)
    model.add_adapter("other", config(method, **{**BASES[base][1], "r": 2}))
    model.set_adapter("other")
    other = output(move(model, 0.2), batch)
    assert all(".other" in name for name in levels(model).upper_names)
    model.save_pretrained(tmp_path)
    model.set_adapter("default")
    torch.testing.assert_close(output(model, batch), before, rtol=1e-5, atol=1e-5)
    model.delete_adapter("other")
    assert not [name for name, _ in model.named_parameters() if "other" in name.split(".")]
    model.load_adapter(tmp_path / "other", "third")
    model.set_adapter("third")
    torch.testing.assert_close(output(model, batch), other, rtol=1e-5, atol=1e-5)
    plain = loaded.merge_and_unload()
    torch.testing.assert_close(output(plain, batch), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", NETWORKS)
def test_a_model_is_copied_compiled_and_kept_in_half_precision(method: str) -> None:
    model = adapted("mlp", method, moved=0.3)
    batch = inputs("mlp")
    before = output(model, batch)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(output(copied, batch), before)
        move(copied, 0.3)
        assert torch.equal(output(model, batch), before)  # the copy shares nothing with it
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(output(compiled, batch), before)
    half = adapted("mlp", method, dtype=torch.bfloat16)
    batch = inputs("mlp", dtype=torch.bfloat16)
    assert torch.equal(output(half, batch), output(base_model("mlp", torch.bfloat16), batch))
    assert {p.dtype for n, p in half.named_parameters() if "lora_" in n} == {torch.float32}


def train(model: PeftModel, seed: int) -> None:
    split = levels(model)
    optimizer = torch.optim.Adam([*split.upper, *split.lower], 0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(**inputs("bert", seed)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def of_the_engine(model: PeftModel, method: Method, steps: int) -> tuple[torch.Tensor, ...]:
    """What one round of the engine, with SGD of rate 1 above, takes off the upper parameters."""
    copied = copy.deepcopy(model)
    split = levels(copied)
    before = [p.detach().clone() for p in split.upper]
    graph = two_level(
        copied,
        loss=lambda batch: copied(**batch).loss,
        upper_batches=[inputs("bert", 11)],
        lower_batches=[inputs("bert", 10)],
        upper_optimizer=torch.optim.SGD(split.upper, 1.0),
        lower_optimizer=torch.optim.SGD(split.lower, LR),
        method=method,
        steps=steps,
    )
    Engine(graph).run(1)
    return tuple(x - p.detach() for x, p in zip(before, split.upper, strict=True))


@pytest.mark.parametrize("method", [*NETWORKS, "input"])
def test_hypergradients_after_training_are_those_of_the_unrolled_objectives(method: str) -> None:
    options = {"gate": "input", "granularity": "module"} if method == "input" else {}
    base = "mole" if method == "input" else method
    model = adapted("bert", base, dtype=torch.float64, moved=0.1, **options)
    train(model, 10)
    if method == "sdlora":
        next_task(model)
        train(model, 12)
    without = of_the_engine(model, alternating(), 1)
    for steps, way in ((1, t1t2()), (3, unroll())):
        found = of_the_engine(model, way, steps)
        assert any((a - b).norm() > 1e-4 for a, b in zip(found, without, strict=True))
        objective, at = unrolled(model, steps=steps)
        assert max(against_differences(found, objective, at, directions=2)) < 1e-6
