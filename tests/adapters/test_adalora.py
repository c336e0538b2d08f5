"""AdaLoRA's allocator is called: ranks fall to the target as in a loop that calls it by hand."""

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model

from adapters import Allocation
from blo import Engine, Problem, ProblemGraph


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(8, 10), torch.nn.Tanh(), torch.nn.Linear(10, 6))


def adapted():
    torch.manual_seed(0)
    config = AdaLoraConfig(
        init_r=6, target_r=2, tinit=3, tfinal=5, deltaT=1, total_step=20, target_modules=["0", "2"]
    )
    return get_peft_model(mlp(), config)


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def kept(model):
    """The number of singular values that are not zero."""
    return sum(int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n)


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 8, generator=generator) for _ in range(4)]


def test_ranks_in_an_engine_are_those_of_a_loop_that_allocates_by_hand():
    model, twin = adapted(), adapted()
    optimizer = torch.optim.Adam(trainable(model), lr=0.01)
    Allocation(optimizer, model)
    loss = lambda x: model(x).square().mean() - model(x).mean()
    Engine(ProblemGraph([Problem("train", loss, model, optimizer, batches())])).run(18)

    by_hand = torch.optim.Adam(trainable(twin), lr=0.01)
    for step in range(1, 19):
        x = batches()[(step - 1) % 4]
        by_hand.zero_grad()
        (twin(x).square().mean() - twin(x).mean()).backward()
        by_hand.step()
        twin.base_model.update_and_allocate(step)
    assert kept(model) == kept(twin) == 2 * 2
    for a, b in zip(trainable(model), trainable(twin), strict=True):
        assert torch.equal(a, b)


def test_without_the_allocator_no_rank_is_given_up():
    model = adapted()
    optimizer = torch.optim.Adam(trainable(model), lr=0.01)
    loss = lambda x: model(x).square().mean() - model(x).mean()
    Engine(ProblemGraph([Problem("train", loss, model, optimizer, batches())])).run(18)
    assert kept(model) == 2 * 6


def test_another_adapter_is_refused():
    model = get_peft_model(mlp(), LoraConfig(target_modules=["0"]))
    optimizer = torch.optim.Adam(trainable(model), lr=0.01)
    with pytest.raises(ValueError, match="must hold an AdaLoRA adapter, got LoraModel"):
        Allocation(optimizer, model)
