"""What the options of a run become: optimizers, schedules, numbers of updates, in every phase."""

from typing import Any

import pytest
import torch
from torch import nn

from applications.data.splits import split_task
from applications.options.arguments import RunOptions
from applications.options.completion import completed
from applications.runs import graphs
from applications.runs.phases import Phase, phases, prepare
from tests.applications.tiny_runs import FAMILY, Run

RATES = ("--learning_rate", "0.01", "--weight_decay", "0.2", "--adam_epsilon", "1e-5")
OPTIMIZERS = (
    *RATES,
    *("--upper_learning_rate", "0.3", "--upper_weight_decay", "0.4"),
    *("--upper_adam_epsilon", "1e-7", "--adam_beta1", "0.7", "--adam_beta2", "0.8"),
)


def made(options: Any) -> list[Phase]:
    options = completed(options, FAMILY)
    task = FAMILY.load_task(options.data)
    return list(phases(prepare(options, FAMILY, task, split_task(task, options.data))))


def settings(phase: Phase, name: str) -> tuple[float, float, float, tuple[float, float]]:
    """Learning rate, decay, epsilon and betas of the optimizer of a problem."""
    (problem,) = (p for p in phase.graph.problems if p.name == name)
    (group,) = problem.optimizer.param_groups
    return group["initial_lr"], group["weight_decay"], group["eps"], group["betas"]


LOWER, UPPER = (0.01, 0.2, 1e-5, (0.7, 0.8)), (0.3, 0.4, 1e-7, (0.7, 0.8))


@pytest.mark.parametrize(
    "method, flags, expected",
    [
        ("lora", [], [{"lower": LOWER}]),
        ("bilora", [], [{"upper": UPPER, "lower": LOWER}]),
        ("bilora", ["--control", "two_stage"], [{"lower": LOWER}, {"upper": UPPER}]),
        (
            "bilora",
            ["--retraining", "values"],
            [{"upper": UPPER, "lower": LOWER}, {"lower": LOWER}],
        ),
        (
            "bilora",
            ["--cross_fitting", "2"],
            [{"upper": UPPER, "lower_1": LOWER, "lower_2": LOWER}, {"lower": LOWER}],
        ),
    ],
)
def test_every_level_has_the_optimizer_that_is_asked_for(
    method: str, flags: list[str], expected: list[dict[str, Any]], tiny: Run
) -> None:
    found = made(tiny(method, *OPTIMIZERS, *flags))
    assert [{p.name: settings(phase, p.name) for p in phase.graph.problems} for phase in found] == (
        expected
    )


def test_a_retraining_has_its_own_rate_decay_and_number_of_updates(tiny: Run) -> None:
    flags = ("--retraining", "values", "--retraining_learning_rate", "0.05")
    flags += ("--retraining_weight_decay", "0", "--retraining_steps", "9")
    search, retraining = made(tiny("bilora", *RATES, *flags))
    assert settings(retraining, "lower")[:2] == (0.05, 0.0)
    assert settings(search, "lower")[:2] == (0.01, 0.2)
    assert (search.updates.rounds, retraining.updates.rounds) == (6, 9)


def test_a_retraining_has_the_penalty_of_the_search(tiny: Run) -> None:
    differences = []
    with_it, without = (
        made(tiny("bilora", "--retraining", "values", "--orthogonality", weight))
        for weight in ("0.5", "0")
    )
    for one, other in zip(with_it, without, strict=True):
        one.model.eval()
        other.model.eval()
        problems = [phase.graph.problems[-1] for phase in (one, other)]
        batch = next(iter(problems[0].batches))
        losses = [problem.loss(batch).item() for problem in problems]
        differences.append(losses[0] - losses[1])
    assert abs(differences[0]) > 1e-3
    # A and B start anew with other random numbers: the penalty is as large, not the same.
    assert differences[1] == pytest.approx(differences[0], rel=0.5)


@pytest.mark.parametrize(
    "method, flags",
    [
        ("lora", []),
        ("bilora", ["--retraining", "values"]),
        ("bilora", ["--control", "same_data"]),  # equal seeds would draw equal batches
        ("bilora", ["--cross_fitting", "2"]),
        ("bilora", ["--control", "two_stage"]),
        ("bilora", ["--control", "joint"]),
    ],
)
def test_every_problem_accumulates_and_draws_with_the_seed(
    method: str, flags: list[str], tiny: Run
) -> None:
    found, other = (
        made(tiny(method, "--gradient_accumulation_steps", "3", "--seed", seed, *flags))
        for seed in ("0", "1")
    )
    for phase, elsewhere in zip(found, other, strict=True):
        orders = []
        for problem, second in zip(phase.graph.problems, elsewhere.graph.problems, strict=True):
            assert problem.accumulate == 3
            rows = [drawn(p.batches) for p in (problem, second)]
            assert rows[0] != rows[1]
            orders.append(rows[0])
        assert len({tuple(order) for order in orders}) == len(orders)


@pytest.mark.parametrize(
    "flags", [["--retraining", "values"], ["--control", "two_stage"], ["--cross_fitting", "2"]]
)
def test_every_rate_falls_to_zero_over_the_updates_of_its_level(
    flags: list[str], tiny: Run
) -> None:
    for phase in made(tiny("bilora", "--lower_steps", "2", *flags)):
        for problem in phase.graph.problems:
            steps = 1 if problem.name == "upper" else phase.updates.steps
            number, rates = phase.updates.rounds * steps, []
            for _ in range(number):
                rates.append(problem.learning_rate())
                problem.optimizer.step()
                problem.scheduler.step()
            assert rates == pytest.approx([rates[0] * (1 - k / number) for k in range(number)])
            assert problem.learning_rate() == 0.0


def drawn(batches: Any) -> list[int]:
    """The first number that the generator of the batches draws, and the next two."""
    generator = torch.Generator()
    generator.set_state(batches.generator.get_state())
    return torch.randint(2**40, (3,), generator=generator).tolist()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, 3 * 3),
        ({"num_train_epochs": 0.5}, 2),
        ({"gradient_accumulation_steps": 2}, 5),
        ({"max_steps": 4, "num_train_epochs": 9.0}, 4),
        ({"num_train_epochs": 0.01}, 1),
    ],
)
def test_updates_are_those_of_the_epochs_with_their_last_batch(
    options: dict[str, Any], expected: int
) -> None:
    """Three batches of 8, 8 and 4 in an epoch."""
    run = RunOptions(per_device_train_batch_size=8, **options)
    assert graphs.num_updates(20, run) == expected


def test_the_rate_rises_over_its_share_of_the_updates_and_falls_to_zero() -> None:
    run = RunOptions(warmup_ratio=0.21)
    optimizer = graphs.adamw([nn.Parameter(torch.zeros(1))], 1.0, 0.0, run)
    schedule = graphs.scheduler(optimizer, 10, run)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # Three of ten rise: 2.1, rounded up.
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, *(k / 7 for k in range(7, 0, -1))])
