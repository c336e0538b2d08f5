"""Classes that come one after the other, against loops and numbers by hand."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer

from adapters import levels, next_task
from applications import continual
from applications.errors import UsageError
from applications.options.arguments import ModelOptions, Options
from applications.options.command_line import parse_options
from applications.options.sequences import SEQUENCE_GROUPS, SequenceOptions
from applications.pages.locking import held
from applications.sequences import grid as sequence_grid
from applications.sequences import run as sequence_run
from applications.sequences.learning import Learner, Task, cost
from applications.sequences.losses import incremental_cross_entropy
from applications.sequences.material import gathered, placed
from applications.sequences.scores import Scores, accuracies
from applications.sequences.tasks import drawn, kept
from applications.sequences.variants import ROWS
from tests.adapters.models import bert, move

Batch = dict[str, Tensor]


def row(label: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(label)
    return {"input_ids": torch.randint(1, 40, (6,), generator=generator), "labels": label % 4}


def stacked(rows: list[dict[str, Any]]) -> Batch:
    return {
        "input_ids": torch.stack([r["input_ids"] for r in rows]),
        "labels": torch.tensor([r["labels"] for r in rows]),
    }


# What comes when


def test_every_class_comes_once_and_its_number_draws_the_order() -> None:
    order = drawn(3, 77, 7)
    assert sorted(order.classes) == list(range(77))
    assert order.ends == [11, 22, 33, 44, 55, 66, 77]
    assert drawn(3, 77, 7) == order != drawn(4, 77, 7)
    assert drawn(0, 7, 3).ends == [2, 4, 7]
    rows = order.renamed([{"labels": kind, "name": kind} for kind in range(77)])
    assert [r["name"] for r in order.of(1, rows)] == sorted(order.classes[11:22])
    assert all(order.classes[r["labels"]] == r["name"] for r in rows)


def test_a_memory_has_as_many_of_every_class_and_no_example_twice() -> None:
    rows = [{"labels": number % 3, "name": number} for number in range(30)]
    rows += [{"labels": 3, "name": 30 + number} for number in range(3)]
    memory, rest = kept(drawn(1, 4, 2), rows, 4)
    assert [sum(r["labels"] == kind for r in memory) for kind in range(4)] == [4, 4, 4, 1]
    assert sorted(r["name"] for r in [*memory, *rest]) == list(range(33))
    assert memory != kept(drawn(2, 4, 2), rows, 4)[0]


# What is measured


def test_the_scores_are_those_of_a_sequence_by_hand() -> None:
    scores = Scores([[0.9], [0.5, 0.8], [0.6, 0.2, 0.7]], [0.9, 0.6, 0.5])
    assert scores.last == 0.5
    assert scores.average == pytest.approx(2 / 3)
    assert scores.forgetting == pytest.approx(((0.9 - 0.6) + (0.8 - 0.2)) / 2)
    # A task may be at its best after a later one, and better at the end than ever before.
    later = Scores([[0.5], [0.7, 0.8], [0.6, 0.9, 0.7]], [0.5, 0.7, 0.7])
    assert later.forgetting == pytest.approx(((0.7 - 0.6) + (0.8 - 0.9)) / 2)
    labels = torch.tensor([0, 0, 1, 2, 3, 3])
    each, whole = accuracies(torch.tensor([0, 1, 1, 2, 2, 2]), labels, [2, 4])
    assert each == pytest.approx([2 / 3, 1 / 3])
    assert whole == pytest.approx(0.5)


# The loss


def test_new_examples_compete_among_new_classes_and_old_ones_among_all_that_came() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 3, 1])
    found = incremental_cross_entropy(logits, labels, first=2, seen=4, apart=True)
    new = F.cross_entropy(logits[:2, 2:4], labels[:2] - 2, reduction="sum")
    old = F.cross_entropy(logits[2:, :4], labels[2:], reduction="sum")
    torch.testing.assert_close(found, (new + old) / 3)
    (gradient,) = torch.autograd.grad(found, logits)
    assert (gradient[:2, :2] == 0).all()  # exactly: Adam then leaves old rows of the head alone
    assert (gradient[:, 4:] == 0).all()
    found = incremental_cross_entropy(logits, labels, first=2, seen=4, apart=False)
    torch.testing.assert_close(found, F.cross_entropy(logits[:, :4], labels))


# The training


# Adam's first step has the length of its rate, whatever the gradient: a high one tells data apart.
OPTIONS = SequenceOptions(
    upper_learning_rate=0.3,
    lora_r=2,
    lower_steps=2,
    num_train_epochs=4.0,
    hypergradient="alternating",
    share="layer",
)
ROWS_OF_TWO_TASKS = [row(label) for label in range(16)]
SECOND = Task(
    1,
    [r for r in ROWS_OF_TWO_TASKS if r["labels"] >= 2],
    [r for r in ROWS_OF_TWO_TASKS[4:] if r["labels"] >= 2],
    ROWS_OF_TWO_TASKS[:4],
    first=2,
    seen=4,
)


def after_a_task(name: str) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(bert(num_labels=4), ROWS[name].config(OPTIONS))
    move(model, 0.1)
    if ROWS[name].decoupled:
        next_task(model)
    return model


def learned(name: str) -> PeftModel:
    """The model after four epochs of the second task, a step each: a batch holds all of it."""
    model = after_a_task(name)
    place = ModelOptions(device="cpu")
    Learner(model, ROWS[name], OPTIONS, place, stacked, 0).learn(SECOND)
    return model


@pytest.mark.parametrize(
    "name, hypergradient",
    [
        *((name, "alternating") for name in ROWS),
        *(("sd_lora_two_level", method) for method in ("t1t2", "darts")),
    ],
)
def test_the_cost_of_a_task_is_what_it_takes(name: str, hypergradient: Any) -> None:
    options = replace(OPTIONS, hypergradient=hypergradient)
    place = ModelOptions(device="cpu")
    taken = Learner(after_a_task(name), ROWS[name], options, place, stacked, 0).learn(SECOND)
    # The first response of a difference compares two radii.
    first = 2 if hypergradient == "darts" else 0
    assert taken == cost(ROWS[name], len(SECOND.own), options)[0] + first


def by_hand(name: str) -> PeftModel:
    model = after_a_task(name)
    split = levels(model) if ROWS[name].fitted or ROWS[name].magnitudes == "frozen" else None
    trained = [p for p in model.parameters() if p.requires_grad] if split is None else split.lower
    direction = torch.optim.AdamW(trained, 1e-3, weight_decay=0.0)
    magnitudes = None
    if split is not None:
        magnitudes = torch.optim.AdamW(split.upper, 1e-2, weight_decay=0.0)

    def step(
        optimizer: torch.optim.Optimizer, rate: float, rows: list[dict[str, Any]], apart: bool
    ) -> None:
        optimizer.param_groups[0]["lr"] = rate
        held = optimizer.param_groups[0]["params"]
        batch = stacked(rows)
        logits = model(input_ids=batch["input_ids"]).logits
        each = []
        for z, y in zip(logits, batch["labels"], strict=True):
            first = 2 if apart and y >= 2 else 0
            each.append(F.cross_entropy(z[None, first:], y[None] - first))
        gradients = torch.autograd.grad(torch.stack(each).mean(), held)
        for p, g in zip(held, gradients, strict=True):
            p.grad = g
        optimizer.step()

    rows = SECOND.rest if ROWS[name].fitted else SECOND.own
    if ROWS[name].replay:
        rows = [*rows, *(r for r in SECOND.memory if r["labels"] < 2)]
    for number in range(4):
        step(direction, 1e-3 * (1 - number / 4), rows, True)
        if name == "sd_lora_two_level" and number % 2:
            assert magnitudes is not None
            step(magnitudes, 0.3 if number == 1 else 0.15, SECOND.memory, False)
    for rate in (0.3, 0.15) if name == "sd_lora_afterwards" else ():
        assert magnitudes is not None
        step(magnitudes, rate, SECOND.memory, False)
    return model


@pytest.mark.parametrize("name", ROWS)
def test_a_task_is_trained_as_by_hand(name: str) -> None:
    found, expected, before = learned(name), by_hand(name), after_a_task(name)
    moved = set()
    for (key, ours), theirs, start in zip(
        found.named_parameters(), expected.parameters(), before.parameters(), strict=True
    ):
        # Batches come in another order of their rows: sums are rounded otherwise.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)
        if not torch.equal(ours, start):
            moved.add(key.split(".")[-2] if "magnitudes" in key else key)
    assert ("lora_task_magnitudes" in moved) == (ROWS[name].magnitudes not in ("none", "frozen"))
    old = found.base_model.model.classifier.modules_to_save["default"].weight[:2]
    start = before.base_model.model.classifier.modules_to_save["default"].weight[:2]
    assert torch.equal(old, start) is not ROWS[name].replay


# The command


@pytest.fixture
def asked(tiny_model: str, tmp_path: Path) -> Callable[..., list[str]]:
    words = {"cat": "the cat", "bread": "a bread", "saw": "old saw", "dog": "big dog"}
    lines = [f"{text} {filler},{kind}" for kind, text in words.items() for filler in ("of", "and")]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *lines * 3]) + "\n")
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *lines]) + "\n")

    def flags(folder: str, *more: str) -> list[str]:
        return [
            *("--model", tiny_model, "--device", "cpu", "--data_dir", str(tmp_path)),
            *("--num_tasks", "2", "--num_orders", "1", "--lora_r", "2", "--lower_steps", "2"),
            *("--memory_per_class", "2", "--learning_rate", "1e-2", "--num_train_epochs", "2"),
            *("--output_dir", str(tmp_path / folder), *more),
        ]

    return flags


def results(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_an_interrupted_sequence_ends_where_a_whole_one_does(
    asked: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variant = "sd_lora_two_level"
    append_line, kept = sequence_grid.append_line, []

    def watched(file: Path, line: str) -> None:
        kept.append(os.listdir(file.parent / "states"))
        append_line(file, line)

    monkeypatch.setattr(sequence_grid, "append_line", watched)
    assert continual.main(asked("whole", "--variants", variant)) == 0
    assert kept == [[f"0-{variant}"]]  # until the line is written
    assert os.listdir(tmp_path / "whole" / "states") == []
    (tmp_path / "parts").mkdir()
    assert f"page: {tmp_path / 'whole' / 'report.html'}" in capsys.readouterr().out
    assert f"order 0, {variant}" in (tmp_path / "whole" / "report.html").read_text()
    with held(tmp_path / "parts" / "lock", wait=False):
        assert continual.main(asked("parts", "--variants", variant)) == 2
    said = capsys.readouterr()
    assert f"another run is at work in {tmp_path / 'parts'}" in said.err
    assert "8 texts of the test split also occur in the training split" in said.out
    tested = sequence_run.tested

    def interrupted(model: Any, rows: Any, ends: Any, material: Any) -> Any:
        if len(ends) == 2:
            raise KeyboardInterrupt
        return tested(model, rows, ends, material)

    monkeypatch.setattr(sequence_run, "tested", interrupted)
    assert continual.main(asked("parts", "--variants", variant)) == 130
    assert os.listdir(tmp_path / "parts" / "states") == [f"0-{variant}"]
    monkeypatch.setattr(sequence_run, "tested", tested)
    capsys.readouterr()
    assert continual.main(asked("parts", "--variants", variant, "--lora_r", "3")) == 2
    assert "was left by a run with other options" in capsys.readouterr().err
    (tmp_path / "parts" / "results.jsonl").write_text('{"a line that was not fini')
    assert continual.main(asked("parts", "--variants", variant)) == 0
    (whole,), (parts,) = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert whole == parts
    assert [len(values) for values in whole["magnitudes"].values()] == [2]
    assert whole["accuracies"][1] != [1.0, 1.0]
    before = (tmp_path / "parts" / "results.jsonl").read_bytes()
    assert continual.main(asked("parts", "--variants", variant)) == 0
    assert (tmp_path / "parts" / "results.jsonl").read_bytes() == before
    assert continual.main(asked("parts", "--lora_r", "3")) == 2
    assert "holds results of 2, got 3" in capsys.readouterr().err


def test_misuse_is_refused(
    asked: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (("--num_tasks", "3"), "4 classes are too few for 3 tasks of at least two, got 3"),
        (("--variants", "lora,other"), "must be among lora, lora_replay"),
        (("--max_eval_samples", "2"), "of 2; give more, or fewer tasks"),
        (("--test_on", "validation"), "cut one from the training examples"),
        (("--num_tasks", "1"), "must be at least 2, got 1"),
        (("--lora_target_modules", "query,valeu"), "no module of the model is called valeu"),
        (("--variants", "lora,sd_lora,lora"), "must name each once, got"),
    ):
        assert continual.main(asked("run", *words)) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UsageError, match="use at most 2"):
        drawn(0, 5, 3)
    with pytest.raises(UsageError, match="give data with 4 or more"):
        drawn(0, 3, 2)


def test_results_of_other_data_or_of_others_are_not_gone_on_with(
    asked: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, words = tmp_path / "run", asked("run", "--variants", "lora", "--num_orders", "1")
    assert continual.main(words) == 0
    lines = (place / "results.jsonl").read_text()
    line = json.loads(lines)
    (place / "results.jsonl").write_text(
        json.dumps(line | {"settings": line["settings"] | {"data": "other"}}) + "\n"
    )
    assert continual.main(words) == 2
    assert "holds results of other data (digest other, now " in capsys.readouterr().err
    for text in ("nonsense\n", '{"a": 1}\n', "[]\n"):
        (place / "results.jsonl").write_text(lines + text)
        assert continual.main(words) == 2
        assert "results.jsonl, line 2 is no result of this command" in capsys.readouterr().err
    del line["settings"]["data"]  # of an earlier release
    (place / "results.jsonl").write_text(json.dumps(line) + "\n")
    assert continual.main(words) == 0


def test_a_dry_run_lists_what_is_left(
    asked: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert continual.main(asked("run", "--variants", "lora,sd_lora", "--dry_run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "order 0 lora: to run",
        "order 0 sd_lora: to run",
    ]
    assert all(re.search(r", [1-9]\d* gradient units$", line) for line in lines)
    assert not (tmp_path / "run").exists()


def test_every_order_task_and_level_draws_its_own_batches() -> None:
    place, variant = ModelOptions(device="cpu"), ROWS["sd_lora_two_level"]
    seeds = [
        Learner(after_a_task("lora"), variant, OPTIONS, place, stacked, order)
        ._batches(ROWS_OF_TWO_TASKS, replace(SECOND, number=number), stream)
        .generator.initial_seed()
        for order in (0, 1)
        for number in (0, 1)
        for stream in (0, 1)
    ]
    assert len(set(seeds)) == len(seeds)


def test_the_steps_of_a_task_are_those_of_all_its_examples() -> None:
    """Eight of its own are four batches of two, the six that are not kept three."""
    options = replace(OPTIONS, per_device_train_batch_size=2, num_train_epochs=1.0)
    place, name = ModelOptions(device="cpu"), "sd_lora_afterwards"
    taken = Learner(after_a_task(name), ROWS[name], options, place, stacked, 0).learn(SECOND)
    assert taken == 4 + 2


class Known(torch.nn.Module):
    """Surest of a class that has not come, then of the class that the second token names."""

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        logits = 2.0 * F.one_hot(input_ids[:, 1], 6)
        logits[:, 5] = 9.0
        return SimpleNamespace(logits=logits)


def test_a_task_is_tested_among_the_classes_that_have_come(tiny_model: str) -> None:
    rows = [
        {"input_ids": [2, said, 3], "attention_mask": [1] * 3, "labels": label}
        for said, label in ((0, 0), (1, 0), (2, 2), (3, 3), (1, 2), (4, 4), (0, 5))
    ]
    material: Any = SimpleNamespace(
        options=Options(model=ModelOptions(device="cpu")),
        sequence=OPTIONS,
        tokenizer=AutoTokenizer.from_pretrained(tiny_model),
    )
    each, whole = sequence_run.tested(Known(), rows, [2, 4], material)
    assert each == pytest.approx([1 / 2, 2 / 3])
    assert whole == pytest.approx(3 / 5)


def test_the_levels_of_every_task_have_their_own_examples(
    asked: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of a task and the rest of it are all of it; of later tasks nothing is there."""
    seen: list[Task] = []
    seeds: list[int] = []

    class Recorder(Learner):
        def learn(self, task: Task) -> int:
            seen.append(task)
            seeds.append(torch.initial_seed())
            move(self.model, 0.1)
            return 3 + task.number

    monkeypatch.setattr(sequence_run, "Learner", Recorder)
    assert continual.main(asked("run", "--variants", "sd_lora_afterwards")) == 0

    def counted(rows: Any) -> Counter[tuple[Any, ...]]:
        return Counter((tuple(one["input_ids"]), one["labels"]) for one in rows)

    assert [(task.first, task.seen) for task in seen] == [(0, 2), (2, 4)]
    for task in seen:
        assert {one["labels"] for one in task.own} == set(range(task.first, task.seen))
        kept_of_it = [one for one in task.memory if one["labels"] >= task.first]
        assert counted(task.own) == counted([*task.rest, *kept_of_it])
        labels = Counter(one["labels"] for one in task.memory)
        assert labels == dict.fromkeys(range(task.seen), 2)
    (line,) = results(tmp_path / "run")
    assert line["num_gradients"] == 3 + 4
    assert len(set(seeds)) == 2


def test_the_adapter_and_the_rates_are_those_that_are_asked_for() -> None:
    options = replace(OPTIONS, lora_r=3, lora_alpha=12, learning_rate=0.02)
    for name, level in (("sd_lora", "lower"), ("sd_lora_two_level", "upper")):
        config: Any = ROWS[name].config(options)
        assert (config.r, config.lora_alpha, config.share) == (3, 12, "layer")
        assert config.magnitude_level == level
    learner = Learner(
        after_a_task("lora"), ROWS["lora"], options, ModelOptions(device="cpu"), stacked, 0
    )
    assert learner._direction().param_groups[0]["lr"] == 0.02


@pytest.mark.parametrize("split, count", [("test", 8), ("validation", 5)])
def test_sequences_are_tested_on_the_split_that_is_asked_for(
    asked: Callable[..., list[str]], tmp_path: Path, split: str, count: int
) -> None:
    lines = (tmp_path / "test.csv").read_text().splitlines()[:6]
    (tmp_path / "validation.csv").write_text("\n".join(lines) + "\n")
    words = asked("run", "--test_on", split)
    found = gathered(placed(parse_options(words, groups=SEQUENCE_GROUPS)))
    assert (len(found.train), len(found.test)) == (24, count)
