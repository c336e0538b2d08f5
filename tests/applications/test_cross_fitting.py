"""One upper level over a lower one for each fold, against differences of the whole objective."""

import copy

import pytest
import torch
from torch import Tensor, nn

from adapters import levels
from applications.data.splits import folds, split_task
from applications.errors import UsageError
from applications.options.completion import completed
from applications.runs import graphs
from applications.runs.cross_fitting import FOLD, FoldBatches, fold_models, held_out_batches
from applications.runs.experiment import finetune
from applications.runs.phases import phases, prepare
from blo import Engine
from tests.applications.test_phases import same, upper, values
from tests.applications.tiny_runs import FAMILY, Run, logged, run, untimed


def work_of(options):
    options = completed(options, FAMILY)
    task = FAMILY.load_task(options.data)
    return prepare(options, FAMILY, task, split_task(task, options.data))


def test_folds_are_a_stratified_partition(tiny: Run) -> None:
    work = work_of(tiny("bilora"))
    parts = folds(work.splits.train, work.task, count=5, seed=0)
    assert sorted(map(len, parts)) == [9, 9, 10, 10, 10]
    found = sorted(text for part in parts for text in part["text"])
    assert found == sorted(work.splits.train["text"])
    for part in parts:
        counts = [list(part["label"]).count(k) for k in range(3)]
        assert max(counts) - min(counts) <= 1
    with pytest.raises(UsageError, match="48 examples cannot be divided into 49 folds"):
        folds(work.splits.train, work.task, count=49, seed=0)


def test_every_batch_holds_as_many_rows_of_each_fold_and_every_epoch_draws_anew() -> None:
    members = [range(7), range(7, 13), range(13, 20)]
    batches = FoldBatches(members, 2, torch.Generator().manual_seed(0))
    epochs = [list(batches), list(batches)]
    for epoch in epochs:
        assert len(epoch) == len(batches) == 3
        flat = [row for batch in epoch for row in batch]
        assert len(set(flat)) == len(flat)
        for batch in epoch:
            assert [sum(row in fold for row in batch) for fold in members] == [2, 2, 2]
    assert epochs[0] != epochs[1]


def test_models_share_frozen_and_upper_parameters_and_nothing_else(tiny: Run) -> None:
    model = next(phases(work_of(tiny("bilora")))).model
    first, second, third = fold_models(model, 3)
    assert first is model
    below = set(levels(model).lower_names)
    for name, parameter in model.named_parameters():
        others = [dict(each.named_parameters())[name] for each in (second, third)]
        if name in below:
            assert all(other is not parameter for other in others)
            assert others[0] is not others[1]
            assert all(torch.equal(other, parameter) for other in others)
        else:
            assert all(other is parameter for other in others)


@pytest.mark.parametrize("method", ["bilora", "bidora"])
def test_the_hypergradient_is_the_mean_over_the_folds_after_a_step_of_each(
    method: str, tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sgd(parameters, rate, decay, options):
        return torch.optim.SGD(list(parameters), rate)

    monkeypatch.setattr(graphs, "adamw", sgd)
    flags = ["--cross_fitting", "3", "--hypergradient", "t1t2", "--lr_scheduler_type", "constant"]
    flags += ["--learning_rate", "0.5", "--upper_learning_rate", "0.5"]
    phase = next(phases(work_of(tiny(method, *flags))))
    above, *below = phase.graph.problems
    assert [problem.name for problem in below] == ["lower_1", "lower_2", "lower_3"]
    for each in dict.fromkeys(m for problem in below for m in problem.modules):
        each.double().eval()
        for name, parameter in each.named_parameters():
            if "lora_B" in name:  # at zero the response is
                nn.init.normal_(parameter, std=0.3)
    held_out = phase.graph.streams["upper"].peek()
    assert sorted(set(held_out[FOLD].tolist())) == [0, 1, 2]
    own = [phase.graph.streams[problem.name].peek() for problem in below]
    models = [copy.deepcopy(problem.modules[0]) for problem in below]
    x = list(above.parameters)
    names = {id(p): n for n, p in below[0].modules[0].named_parameters()}

    def objective(shift: list[Tensor]) -> float:
        total = 0.0
        for k, (source, batch) in enumerate(zip(models, own, strict=True)):
            model = copy.deepcopy(source)
            parameters = dict(model.named_parameters())
            for parameter, move in zip(x, shift, strict=True):
                with torch.no_grad():
                    parameters[names[id(parameter)]].add_(move)
            lower = levels(model).lower
            gradient = torch.autograd.grad(model(**batch).loss, lower)
            with torch.no_grad():
                for parameter, slope in zip(lower, gradient, strict=True):
                    parameter.sub_(0.5 * slope)
                rows = held_out[FOLD] == k
                part = {n: v[rows] for n, v in held_out.items() if n != FOLD}
                total += model(**part).loss.item() / 3
        return total

    before = [parameter.detach().clone() for parameter in x]
    next(iter(Engine(phase.graph).rounds(1)))
    step = [(b - p.detach()) / 0.5 for b, p in zip(before, x, strict=True)]
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in before]
    eps = 1e-5
    plus = objective([eps * d for d in direction])
    minus = objective([-eps * d for d in direction])
    expected = (plus - minus) / (2 * eps)
    found = sum((s * d).sum().item() for s, d in zip(step, direction, strict=True))
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_cross_fitted_run_retrains_on_everything_with_the_values_found(tiny: Run) -> None:
    summary, folder = run(tiny("bilora", "--cross_fitting", "3"))
    assert [phase["name"] for phase in summary["phases"]] == ["search", "retraining"]
    # A round: three folds with a gradient and a central difference each, and the upper gradient.
    # The first compares a second difference for each fold.
    assert summary["phases"][0]["num_gradients"] == 6 * (3 * 3 + 1) + 3 * 2
    moved = upper(values(folder))
    assert all(value.std() > 0 for value in moved.values())


def test_a_cross_fitted_run_is_resumed_bit_for_bit(tiny: Run) -> None:
    flags = ("--cross_fitting", "2", "--save_steps", "2", "--max_steps", "8")
    straight, folder = run(tiny("bilora", *flags, folder="straight"))
    cut = tiny("bilora", *flags, folder="cut")
    checkpoints = folder.parent / "cut" / "checkpoints"

    def stop(text: str) -> None:
        if text.startswith("retraining"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(cut, FAMILY, say=stop)
    assert list(checkpoints.iterdir())
    again, resumed = run(tiny("bilora", *flags, "--resume", folder="cut"))
    assert untimed(again) == untimed(straight)
    assert logged(resumed) == logged(folder)
    assert same(values(resumed), values(folder))


@pytest.mark.parametrize(
    "method, flags",
    [
        ("lora", []),
        ("bilora", ["--control", "joint"]),
        ("bilora", ["--retraining", "none"]),
        ("bilora", ["--upper_warmup_steps", "2"]),
    ],
)
def test_cross_fitting_is_refused_where_it_means_nothing(
    method: str, flags: list[str], tiny: Run
) -> None:
    with pytest.raises(UsageError, match="--cross_fitting: needs a bi-level method"):
        run(tiny(method, "--cross_fitting", "3", *flags))


def test_held_out_batches_are_as_large_as_asked_for_or_as_the_smallest_fold_allows() -> None:
    rows = [[{"input_ids": [1], "labels": 0}] * count for count in (5, 2, 9)]

    def stack(batch):
        return {name: torch.tensor([row[name] for row in batch]) for name in ("labels", FOLD)}

    for size, per_fold in ((3, 1), (4, 2), (60, 2)):
        batch = next(iter(held_out_batches(rows, stack, size=size, seed=0)))
        assert batch[FOLD].tolist() == [k for k in range(3) for _ in range(per_fold)]
