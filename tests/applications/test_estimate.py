"""What --dry_run says, against what a round takes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from applications import compare, nlu
from applications.data.splits import split_task
from applications.options.completion import completed
from applications.runs import estimate
from applications.runs.estimate import estimates
from applications.runs.phases import phases, prepare
from blo import Engine
from tests.applications.tiny_runs import FAMILY, Run


class Saved:
    """Counts the bytes of the tensors that autograd holds: the storages of those now alive."""

    def __init__(self, own: set[int]) -> None:
        self.own, self.alive, self.now, self.peak = own, dict[int, int](), 0, 0

    def pack(self, tensor: Tensor) -> Any:
        counter = self

        class Held:
            def __init__(self) -> None:
                self.tensor = tensor
                self.place = tensor.untyped_storage().data_ptr()
                counter.alive[self.place] = counter.alive.get(self.place, 0) + 1
                if counter.alive[self.place] == 1 and self.place not in counter.own:
                    counter.now += tensor.untyped_storage().nbytes()
                    counter.peak = max(counter.peak, counter.now)

            def __del__(self) -> None:
                counter.alive[self.place] -= 1
                if counter.alive[self.place] == 0 and self.place not in counter.own:
                    counter.now -= self.tensor.untyped_storage().nbytes()

        return Held()


@pytest.mark.parametrize(
    "flags",
    [
        ("lora",),
        ("bilora",),
        ("bidora", "--hypergradient", "unrolled"),
        ("bilora", "--hypergradient", "cg", "--gradient_accumulation_steps", "2"),
    ],
)
def test_an_estimate_is_what_a_round_takes(flags: tuple[str, ...], tiny: Run) -> None:
    more = ("--lower_steps", "2", "--hypergradient_products", "3", "--retraining", "none")
    options = tiny(*flags, *more)
    found = estimates(options, FAMILY)[0]
    whole = completed(options, FAMILY)
    task = FAMILY.load_task(whole.data)
    phase = next(phases(prepare(whole, FAMILY, task, split_task(task, whole.data))))
    engine = Engine(phase.graph)
    model = phase.model
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved, gradients = Saved(own), dict[Any, int]()

    def measure(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        given = [p.grad for group in optimizer.param_groups for p in group["params"]]
        gradients[optimizer] = sum(g.nbytes for g in given)

    for problem in phase.graph.problems:
        problem.optimizer.register_step_pre_hook(measure)
    with saved_tensors_hooks(saved.pack, lambda held: held.tensor):
        engine.run(1)
    # Exact: numbers, bytes of parameters, gradients and optimizer states.
    every = [*model.parameters(), *model.buffers()]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert found.memory["parameters"] == sum(t.untyped_storage().nbytes() for t in every)
    assert found.memory["gradients"] == sum(gradients.values())
    states = [s for p in phase.graph.problems for s in p.optimizer.state.values()]
    tensors = [value for state in states for value in state.values()]
    assert found.memory["optimizer states"] == sum(t.nbytes for t in tensors)
    assert sum(found.problems.values()) == sum(p.numel() for p in trained)
    assert found.frozen == sum(t.numel() for t in every) - sum(p.numel() for p in trained)
    # Estimated: what autograd holds at most, within a factor of one and a half.
    assert 2 / 3 < found.memory["activations"] / saved.peak < 3 / 2
    # The cost of a round: the second one, as the first compares two radii.
    before = (engine.num_gradients, engine.num_products)
    engine.run(1)
    taken = (engine.num_gradients - before[0], engine.num_products - before[1])
    assert taken == (found.gradients, found.products)


def test_the_time_of_an_update_is_that_of_all_its_rows(
    tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "seconds_of", lambda *_: 1.0)
    flags = ("--gradient_accumulation_steps", "3", "--max_steps", "2")
    (found,) = estimates(tiny("lora", *flags), FAMILY)
    # Two updates of three batches of eight rows, a second each.
    assert estimate.cells(found)["seconds in all, about"] == "48"


def test_a_dry_run_says_the_plan_and_leaves_nothing(
    tiny_model: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", tiny_model, "--data_dir", str(tiny_data), "--method", "autolora"]
    words += ["--output_dir", str(tmp_path / "run"), "--lora_r", "2", "--max_steps", "6"]
    assert nlu.main([*words, "--dry_run"]) == 0
    assert list(tmp_path.iterdir()) == []
    shown = capsys.readouterr().out
    for part in ("search", "retraining", "trained by upper", "gradient units", "MiB, activations"):
        assert part in shown


def test_a_dry_run_names_the_options_that_the_method_does_not_have(
    tiny_model: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", tiny_model, "--data_dir", str(tiny_data), "--method", "lora", "--dry_run"]
    assert nlu.main([*words, "--max_steps", "2", "--lower_steps", "5"]) == 0
    assert "not used: --lower_steps; lora has one level" in capsys.readouterr().out


def test_the_costs_of_a_grid_are_those_of_its_runs(
    tiny_model: str, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"data_dir": str(tiny_data), "model_name_or_path": tiny_model}
    grid = {
        "tasks": {"topics": data},
        "methods": {"lora": None, "bilora": {"hypergradient": "t1t2"}},
        "seeds": [0, 1],
        "train_sizes": [24],
        "common": {"max_steps": 6, "device": "cpu"},
    }
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    words = [str(tmp_path / "grid.json"), "--out", str(tmp_path / "out")]
    assert compare.main([*words, "--dry_run", "--costs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "topics/24/lora/seed0  to run"
    rows = {line.split()[0]: line.split()[1:4] for line in lines[5:]}
    # Six rounds: a lower gradient, an upper one, and a response of a product.
    assert rows == {"topics/24/lora": ["2", "6", "0"], "topics/24/bilora": ["2", "12", "6"]}
    assert not (tmp_path / "out").exists()
    assert compare.main([*words, "--costs"]) == 2
    assert "goes with --dry_run" in capsys.readouterr().err
