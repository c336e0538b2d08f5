"""Joint training of both levels is noticed, and is another update than the two-level one."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from adapters import BiLoraConfig, SdLoraConfig, levels, next_task, two_level
from blo import Engine, t1t2
from tests.adapters.models import adapted, inputs, mlp, move


def scalar(*, joint: bool = False) -> PeftModel:
    """The model ``x -> d B A x`` with A = B = d = 1."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False)).double()
    config = BiLoraConfig(r=1, lora_alpha=1, values="real", target_modules=["0"], joint=joint)
    model = get_peft_model(net, config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.0 if "base_layer" in name else 1.0)
    return model


def test_joint_and_two_level_updates_differ_by_a_known_value() -> None:
    """On D1, ``(d B A - 2)^2``; on D2, ``(d B A)^2``; steps of SGD at a rate of 0.1."""
    one = torch.ones(1, 1, dtype=torch.float64)
    model = scalar()
    with pytest.warns(UserWarning, match="TwoLevelTrainer in place of Trainer"):
        (model(one) - 2).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert levels(model).upper[0].item() == pytest.approx(1 + 0.1 * 2, abs=1e-12)

    model = scalar()
    split = levels(model)
    graph = two_level(
        model,
        loss=lambda target: (model(one) - target).square().sum(),
        upper_batches=[0.0],
        lower_batches=[2.0],
        upper_optimizer=torch.optim.SGD(split.upper, 0.1),
        lower_optimizer=torch.optim.SGD(split.lower, 0.1),
        method=t1t2(),
    )
    Engine(graph).run(1)
    # A = B = 1.2 after the lower step; the mixed derivative 2 A B B d + 2 (d B A - 2) B is 0.
    assert split.upper[0].item() == pytest.approx(1 - 0.1 * 2 * 1.2**4, abs=1e-12)


def test_it_is_said_once_for_all_layers() -> None:
    model = adapted("bert", "bidora", joint=False)
    losses = [model(**inputs("bert")).loss for _ in range(2)]
    with pytest.warns(UserWarning, match="both levels of a BiDoraConfig adapter"):
        losses[0].backward()
    losses[1].backward()  # a warning would be an error


def test_it_is_not_said_where_it_is_meant_or_not_done() -> None:
    model = scalar(joint=True)
    model(torch.ones(1, 1).double()).sum().backward()
    model = scalar()
    split = levels(model)
    for parameters in (split.upper, split.lower):
        model(torch.ones(1, 1).double()).sum().backward(inputs=parameters)
    for parameter in split.upper:
        parameter.requires_grad_(False)
    model(torch.ones(1, 1).double()).sum().backward()


@pytest.mark.parametrize("rank", [2, 1])
def test_it_is_said_of_a_later_task_too(rank: int) -> None:
    config = SdLoraConfig(r=2, magnitude_level="upper", target_modules=["first", "second"])
    model = move(get_peft_model(mlp(), config), 0.3)
    next_task(model, rank=rank)
    split = levels(model)
    for parameters in (split.upper, split.lower):
        model(**inputs("mlp")).sum().backward(inputs=parameters)
    with pytest.warns(UserWarning, match="both levels of a SdLoraConfig adapter"):
        model(**inputs("mlp")).sum().backward()
