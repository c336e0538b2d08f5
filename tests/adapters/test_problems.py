from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call

from adapters import Binarisation, DirectionOrthogonality, Orthogonality, levels, two_level
from blo import Engine, ProblemGraph, darts, t1t2
from tests.adapters.models import METHODS, adapted, inputs

TRAIN, HELD_OUT = [inputs("bert", 20)], [inputs("bert", 21)]


def graph(model: PeftModel, lr: float = 0.1, **options: Any) -> ProblemGraph:
    split = levels(model)
    arguments: dict[str, Any] = {
        "loss": lambda batch: model(**batch).loss,
        "upper_batches": HELD_OUT,
        "lower_batches": TRAIN,
        "upper_optimizer": torch.optim.SGD(split.upper, lr),
        "lower_optimizer": torch.optim.SGD(split.lower, lr),
        **options,
    }
    return two_level(model, **arguments)


def stepped(
    model: PeftModel, lr: float, penalty: Callable[[Any], Tensor] | None = None
) -> dict[str, Tensor]:
    """One round by hand: a lower step of SGD, then an upper one with the unrolled gradient."""
    split = levels(model)
    named = dict(model.named_parameters())
    upper = tuple(named[n].detach().requires_grad_() for n in split.upper_names)
    lower = tuple(named[n].detach().requires_grad_() for n in split.lower_names)
    names = [*split.upper_names, *split.lower_names]

    def loss(values: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
        at = dict(zip(names, values, strict=True))
        value: Tensor = functional_call(model, at, kwargs=batch).loss
        return value

    def extra(values: tuple[Tensor, ...]) -> Tensor:
        if penalty is None:
            return torch.zeros((), dtype=torch.float64)
        return penalty(dict(zip(names, values, strict=True)))

    train = loss((*upper, *lower), TRAIN[0]) + extra((*upper, *lower))
    gradient = torch.autograd.grad(train, lower, create_graph=True)
    after = tuple(y - lr * g for y, g in zip(lower, gradient, strict=True))
    hypergradient = torch.autograd.grad(loss((*upper, *after), HELD_OUT[0]), upper)
    moved = tuple(x - lr * g for x, g in zip(upper, hypergradient, strict=True))
    return {n: v.detach() for n, v in zip(names, (*moved, *after), strict=True)}


@pytest.mark.parametrize("method", METHODS)
def test_a_round_is_one_step_of_each_level(method: str) -> None:
    model = adapted("bert", method, dtype=torch.float64, moved=0.3)
    expected = stepped(model, 0.1)
    record = next(iter(Engine(graph(model, method=t1t2())).rounds(1)))
    assert set(record.losses) == {"upper", "lower"}
    named = dict(model.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(named[name].detach(), value, rtol=1e-9, atol=1e-10)


def dense_orthogonality(values: dict[str, Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, p in values.items():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            total = total + (gram - torch.eye(3)).pow(2).sum()
    return 0.05 * total


def test_a_penalty_is_part_of_the_lower_loss() -> None:
    model = adapted("bert", "real", dtype=torch.float64, moved=0.3)
    expected = stepped(model, 0.1, dense_orthogonality)
    problem = graph(model, method=t1t2(), penalty=Orthogonality(0.05))
    next(iter(Engine(problem).rounds(1)))
    named = dict(model.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(named[name].detach(), value, rtol=1e-9, atol=1e-10)


def losses(graph: ProblemGraph, batch: Any) -> dict[str, Any]:
    return {problem.name: problem.loss(batch) for problem in graph.problems}


@pytest.mark.parametrize("as_dict", [False, True])
def test_penalties_go_to_their_levels(as_dict: bool) -> None:
    model = adapted("bert", "binary", moved=0.3)
    first, second = Orthogonality(0.1), Binarisation(0.2)
    plain = model(**TRAIN[0]).loss

    def loss(batch: Any) -> Any:
        value = model(**batch).loss
        return {"loss": value, "extra": 1} if as_dict else value

    found = losses(graph(model, loss=loss, penalty=[first, second], upper_penalty=second), TRAIN[0])
    if as_dict:
        assert [value.pop("extra") for value in found.values()] == [1, 1]
        found = {name: value["loss"] for name, value in found.items()}
    torch.testing.assert_close(found["upper"], plain + second(model))
    torch.testing.assert_close(found["lower"], plain + first(model) + second(model))


def test_a_custom_penalty_is_any_function_of_the_model() -> None:
    model = adapted("mlp", "bidora", moved=0.3)
    found = losses(
        graph(
            model,
            loss=lambda batch: model(**batch).square().mean(),
            upper_batches=[inputs("mlp")],
            lower_batches=[inputs("mlp")],
            penalty=[DirectionOrthogonality(0.1), lambda model: torch.tensor(2.0)],
        ),
        inputs("mlp"),
    )
    expected = found["upper"] + DirectionOrthogonality(0.1)(model) + 2
    torch.testing.assert_close(found["lower"], expected)


def test_the_graph_has_the_settings_it_was_given() -> None:
    model = adapted("bert", "softmax")
    split = levels(model)
    lower = torch.optim.SGD(split.lower, 0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(lower)
    made = graph(model, lower_optimizer=lower, lower_scheduler=scheduler, steps=3, accumulate=2)
    upper, below = made.problems
    assert (upper.name, below.name) == ("upper", "lower")
    assert (upper.steps, below.steps) == (1, 3)
    assert (upper.accumulate, below.accumulate) == (2, 2)
    assert below.method == darts()
    assert below.scheduler is scheduler
    assert below.optimizer is lower


def test_an_optimizer_of_both_levels_is_refused() -> None:
    model = adapted("bert", "real")
    split = levels(model)
    everything = torch.optim.SGD([*split.upper, *split.lower], 0.1)
    with pytest.raises(ValueError, match=r"upper_optimizer must not hold '.*lora_A.*levels"):
        graph(model, upper_optimizer=torch.optim.SGD([*split.upper, split.lower[0]], 0.1))
    with pytest.raises(ValueError, match=r"lower_optimizer must not hold '.*lora_diagonal"):
        graph(model, lower_optimizer=everything)


def test_an_optimizer_that_misses_a_parameter_is_refused() -> None:
    model = adapted("bert", "real")
    split = levels(model)
    part = torch.optim.SGD(split.lower[:-1], 0.1)
    with pytest.raises(ValueError, match=rf"lower_optimizer must hold '{split.lower_names[-1]}'"):
        graph(model, lower_optimizer=part)


def test_an_optimizer_of_a_foreign_tensor_is_refused() -> None:
    model = adapted("bert", "real")
    foreign = torch.optim.SGD([*levels(model).upper, torch.zeros(1, requires_grad=True)], 0.1)
    with pytest.raises(ValueError, match="no parameter of the model"):
        graph(model, upper_optimizer=foreign)


def test_a_frozen_base_weight_is_bit_identical_after_training() -> None:
    model = adapted("bert", "bidora")
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    for _ in Engine(graph(model)).rounds(3):
        pass
    after = dict(model.named_parameters())
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())
