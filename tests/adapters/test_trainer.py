"""Two levels in ``transformers.Trainer``: equal to the engine, and to a loop written by hand."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

from adapters import Orthogonality, WeightDecay, levels, two_level
from adapters.trainer import TwoLevelMixin, TwoLevelTrainer
from blo import Engine, Method, cg, darts, soba, t1t2, unrolled
from tests.adapters.models import adapted

# transformers' own: its progress callback and its saved random state.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def examples(base: str, number: int, seed: int) -> list[Any]:
    """Sentences of five tokens, with a label, or to be continued."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (number, 5), generator=generator)
    labels = ids if base == "gpt2" else torch.randint(0, 3, (number,), generator=generator)
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """Trainer's arguments with clipping, schedule and everything else that is not asked for off."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "optim": "adamw_torch",
        "learning_rate": 2e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_pin_memory": False,
        **changes,
    }
    return TrainingArguments(**settings)


def values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


class Seeds(TrainerCallback):
    """Seeds torch before each lower step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(100 + state.global_step)


CELLS = [
    ("bert", "real", darts(), "sgd", 1, 1),
    ("bert", "bidora", darts(), "adamw_torch", 5, 1),
    ("gpt2", "softmax", t1t2(), "adamw_torch", 1, 2),
    ("gpt2", "autolora", cg(2), "sgd", 5, 2),
    ("bert", "decay", darts(), "adamw_torch", 1, 1),
    ("gpt2", "dropout", darts(), "sgd", 1, 2),
]


@pytest.mark.parametrize(
    "base, adapter, method, optimizer, steps, accumulate",
    CELLS,
    ids=[f"{cell[1]}-{cell[3]}-{cell[4]}-{cell[5]}" for cell in CELLS],
)
def test_the_trainer_is_the_engine_bit_for_bit(
    base: str,
    adapter: str,
    method: Method,
    optimizer: str,
    steps: int,
    accumulate: int,
    tmp_path: Path,
) -> None:
    """Batches of equal size, clipping and schedule off."""
    penalty = {"real": Orthogonality(0.1), "decay": WeightDecay()}.get(adapter, ())
    trained, twin = (adapted(base, adapter, moved=0.3) for _ in range(2))
    lower, upper = examples(base, 32, 1), examples(base, 16, 2)
    rounds = 2
    args = arguments(
        tmp_path,
        max_steps=steps * rounds,
        gradient_accumulation_steps=accumulate,
        optim=optimizer,
    )
    trainer = TwoLevelTrainer(
        trained,
        args,
        train_dataset=lower,
        upper_dataset=upper,
        method=method,
        steps=steps,
        penalty=penalty,
        upper_optimizer=lambda parameters: torch.optim.SGD(parameters, 0.3),
        callbacks=[Seeds()],
    )
    trainer.train()

    twin.train()
    split = levels(twin)
    kind = {"sgd": torch.optim.SGD, "adamw_torch": torch.optim.AdamW}[optimizer]
    streams = [list(DataLoader(data, 4)) for data in (upper, lower)]  # type: ignore[arg-type]
    # Trainer divides the sum over the tokens of all batches by their number, and adds.
    count = {"num_items_in_batch": accumulate * 4 * 5} if base == "gpt2" else {}
    graph = two_level(
        twin,
        loss=lambda batch: twin(**batch, **count).loss * accumulate,
        upper_batches=streams[0],
        lower_batches=streams[1],
        upper_optimizer=torch.optim.SGD(split.upper, 0.3),
        lower_optimizer=kind(split.lower, 2e-2, weight_decay=0.0),
        method=method,
        steps=steps,
        penalty=penalty,
        accumulate=accumulate,
    )
    engine = Engine(graph)
    for i in range(rounds):
        for j in range(steps):
            torch.manual_seed(100 + i * steps + j)
            engine.step("lower")
        if i == 0:
            torch.empty((), dtype=torch.int64).random_()  # as an epoch of a DataLoader begins
        engine.step("upper")
    assert trainer.state.global_step == steps * rounds
    for name, value in values(twin).items():
        assert torch.equal(value, values(trained)[name]), name
    start = values(adapted(base, adapter, moved=0.3))
    assert all(not torch.equal(start[n], v) for n, v in values(trained).items())


def pad(rows: list[Any]) -> dict[str, Tensor]:
    """The collator of sentences of several lengths."""
    padded = nn.utils.rnn.pad_sequence
    ids = padded([row["input_ids"] for row in rows], batch_first=True)
    labels = padded([row["input_ids"] for row in rows], batch_first=True, padding_value=-100)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def uneven(number: int, seed: int) -> list[Any]:
    """Sentences of three to eight tokens."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(3, 9, (number,), generator=generator)
    return [{"input_ids": torch.randint(1, 40, (n,), generator=generator)} for n in sizes]


def test_the_trainer_is_a_loop_written_by_hand_that_normalises_as_trainer_does(
    tmp_path: Path,
) -> None:
    """Unequal numbers of tokens, accumulation, clipping, a schedule with warm-up; T1-T2."""
    trained, twin = (adapted("gpt2", "real", moved=0.3) for _ in range(2))
    lower, upper = uneven(24, 1), uneven(12, 2)
    args = arguments(
        tmp_path,
        max_steps=6,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        max_grad_norm=0.5,
        lr_scheduler_type="linear",
        warmup_steps=2,
    )
    trainer = TwoLevelTrainer(
        trained,
        args,
        data_collator=pad,
        train_dataset=lower,
        upper_dataset=upper,
        method=t1t2(),
        steps=2,
    )
    trainer.train()

    split = levels(twin.train())
    below = torch.optim.AdamW(split.lower, 2e-2, weight_decay=0.0)
    above = torch.optim.AdamW(split.upper, 2e-2, weight_decay=0.0)
    rates = [2e-2 * r for r in (0.0, 0.5, 1.0, 0.75, 0.5, 0.25)]
    upper_rates = rates[1::2]  # those of the last lower steps

    def loss(data: list[Any], i: int) -> Tensor:
        pairs = [pad(data[4 * i + j : 4 * i + j + 2]) for j in (0, 2)]
        number = sum(int(b["labels"].ne(-100).sum()) for b in pairs)
        whole = torch.zeros(())
        for batch in pairs:
            logits = twin(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            whole = whole + nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
            )
        return whole / number

    for i in range(6):
        below.param_groups[0]["lr"] = rates[i]
        below.zero_grad()
        value = loss(lower, i)
        grads = torch.autograd.grad(value, split.lower, create_graph=True)
        for p, g in zip(split.lower, grads, strict=True):
            p.grad = g.detach().clone()
        before = [p.detach().clone() for p in split.lower]
        nn.utils.clip_grad_norm_(split.lower, 0.5)
        below.step()
        if i % 2 == 0:
            continue
        after = [p.detach().clone() for p in split.lower]
        held_out = torch.autograd.grad(loss(upper, i // 2), [*split.upper, *split.lower])
        direct, cotangent = held_out[: len(split.upper)], held_out[len(split.upper) :]
        with torch.no_grad():
            for p, v in zip(split.lower, before, strict=True):
                p.copy_(v)
        grads = torch.autograd.grad(loss(lower, i), split.lower, create_graph=True)
        inner = sum((g * c).sum() for g, c in zip(grads, cotangent, strict=True))
        mixed = torch.autograd.grad(rates[i] * inner, split.upper)
        with torch.no_grad():
            for p, v in zip(split.lower, after, strict=True):
                p.copy_(v)
        above.param_groups[0]["lr"] = upper_rates[i // 2]
        for p, d, m in zip(split.upper, direct, mixed, strict=True):
            p.grad = d - m
        nn.utils.clip_grad_norm_(split.upper, 0.5)
        above.step()
    for name, expected in values(twin).items():
        torch.testing.assert_close(values(trained)[name], expected, rtol=1e-5, atol=1e-6)


RESUMED = {
    "darts": (darts(), 1, {"save_steps": 3}),
    "within a round": (darts(), 2, {"save_steps": 3}),
    "soba": (soba(0.1), 1, {"save_strategy": "epoch"}),
    "unrolled": (unrolled(2), 3, {"save_steps": 3}),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_where_the_whole_run_does(name: str, tmp_path: Path) -> None:
    """Dropout, shuffled data, a schedule; the upper data go round in between."""
    method, steps, saving = RESUMED[name]
    adapter = "bidora" if name == "darts" else "real"

    def run(folder: Path, resume: str | bool = False) -> TwoLevelTrainer:
        dropped = {} if adapter == "bidora" else {"lora_dropout": 0.1}
        model = adapted("bert", adapter, moved=0.7 if resume else 0.3, **dropped)
        args = arguments(
            folder,
            max_steps=7,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            train_sampling_strategy="random",
            **{"save_strategy": "steps", **saving},
        )
        trainer = TwoLevelTrainer(
            model,
            args,
            train_dataset=examples("bert", 12, 1),
            upper_dataset=examples("bert", 8, 2),
            method=method,
            steps=steps,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    kept = tmp_path / "part" / "checkpoint-3"
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", kept)
    resumed = run(tmp_path / "part", str(kept))
    assert resumed._engine is not None
    assert whole._engine is not None
    assert resumed._engine.round == whole._engine.round == 7 // steps
    for key, value in values(whole.model).items():
        assert torch.equal(value, values(resumed.model)[key]), key


def made(folder: Path, *, data: Any = None, **changes: Any) -> TwoLevelTrainer:
    """A trainer that has not trained."""
    own = {"upper_dataset": 0.25, "method": None, "steps": 1, "upper_optimizer": None}
    own = {name: changes.pop(name, value) for name, value in own.items()}
    data = examples("bert", 16, 1) if data is None else data
    return TwoLevelTrainer(
        adapted("bert", "real"), arguments(folder, **changes), train_dataset=data, **own
    )


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"upper_dataset": None}, "upper_dataset must be given"),
        ({"upper_dataset": 1.5}, r"a dataset or a share in \(0, 1\), got 1.5"),
        ({"upper_dataset": 2}, r"a dataset or a share in \(0, 1\), got 2"),
        ({"upper_dataset": 0.01}, "leaves 0 of 16 examples for the upper level"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"torch_compile": True}, "does not work with torch_compile"),
        ({"auto_find_batch_size": True}, "does not work with auto_find_batch_size"),
        (
            {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": True},
            },
            "reentrant checkpointing",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_the_trainer_is_made(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, NotImplementedError), match=words):
        made(tmp_path, **changes)


def test_what_cannot_work_is_refused_when_training_begins(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    trainer = made(tmp_path, method=unrolled(2), steps=2, **settings)
    with pytest.raises(ValueError, match=r"saved every 3 steps .* save every multiple of 2"):
        trainer.train()
    trainer = made(tmp_path, max_steps=1, upper_optimizer=torch.optim.SGD([torch.ones(1)], 0.1))
    with pytest.raises(ValueError, match="upper_optimizer must not hold"):
        trainer.train()
    (tmp_path / "checkpoint-1").mkdir()
    trainer = made(tmp_path, max_steps=1)
    trainer.state.global_step = 1
    with pytest.raises(ValueError, match=r"has no two_level\.pt"):
        trainer._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-1"))


def test_a_share_of_the_training_data_is_split_off(tmp_path: Path) -> None:
    rows = examples("bert", 16, 1)
    trainer = made(tmp_path, data=rows)
    parts = [
        sorted(int(row["input_ids"].sum()) for row in part)
        for part in (trainer.train_dataset, trainer.upper_dataset)
    ]
    assert [len(part) for part in parts] == [12, 4]
    assert sorted(parts[0] + parts[1]) == sorted(int(row["input_ids"].sum()) for row in rows)


def test_an_upper_loss_of_its_own(tmp_path: Path) -> None:
    """The upper loss pulls the logits to zero: its gradient is that of their squares."""

    def upper_loss(model: nn.Module, batch: Any) -> Tensor:
        return model(input_ids=batch["input_ids"]).logits.square().mean()

    model, twin = (adapted("bert", "real", moved=0.3) for _ in range(2))
    data = examples("bert", 4, 1)
    TwoLevelTrainer(
        model,
        arguments(tmp_path, max_steps=1, optim="sgd", learning_rate=1e-30),
        train_dataset=data,
        upper_dataset=data,
        upper_optimizer=lambda parameters: torch.optim.SGD(parameters, 1.0),
        upper_compute_loss=upper_loss,
    ).train()
    upper = levels(twin).upper
    grads = torch.autograd.grad(upper_loss(twin.train(), default_collate(data)), upper)
    for after, before, grad in zip(levels(model).upper, upper, grads, strict=True):
        torch.testing.assert_close(after, before - grad)


def test_the_upper_rate_is_the_share_of_its_own_that_the_lower_steps_are_taken_at(
    tmp_path: Path,
) -> None:
    """A warm-up of six lower steps is one of two upper steps, not of six."""
    trainer = made(
        tmp_path,
        steps=3,
        max_steps=12,
        lr_scheduler_type="linear",
        warmup_steps=6,
        upper_optimizer=lambda parameters: torch.optim.SGD(parameters, 0.5),
        logging_strategy="steps",
        logging_steps=3,
    )
    trainer.train()
    found = [log["upper_learning_rate"] for log in trainer.state.log_history if "loss" in log]
    # Of the steps 3, 6, 9 and 12, from 0: up to 1 in six steps and down to 0 in six.
    assert found == pytest.approx([0.5 * r for r in (2 / 6, 5 / 6, 4 / 6, 1 / 6)])


def test_the_upper_optimizer_is_like_the_one_that_trainer_was_given(tmp_path: Path) -> None:
    model = adapted("bert", "real")
    given = torch.optim.SGD(levels(model).lower, 0.3, momentum=0.9, weight_decay=0.1)
    trainer = TwoLevelTrainer(
        model,
        arguments(tmp_path, max_steps=1),
        train_dataset=examples("bert", 16, 1),
        upper_dataset=0.25,
        optimizers=(given, None),
    )
    trainer.train()
    assert trainer._engine is not None
    upper = trainer._engine.graph["upper"].optimizer
    assert type(upper) is torch.optim.SGD
    options = upper.param_groups[0]
    assert [options[n] for n in ("lr", "momentum", "weight_decay")] == [0.3, 0.9, 0.0]


def test_a_model_that_is_made_anew_gets_an_upper_optimizer_of_its_own(tmp_path: Path) -> None:
    """Trainer calls ``model_init`` whenever training begins, as a search for options does."""
    trainer = TwoLevelTrainer(
        model_init=lambda: adapted("bert", "real", moved=0.3),
        args=arguments(tmp_path, max_steps=2),
        train_dataset=examples("bert", 16, 1),
        upper_dataset=0.25,
    )
    trainer.train()
    first = values(trainer.model)
    trainer.train()
    assert all(torch.equal(value, first[n]) for n, value in values(trainer.model).items())


def test_a_step_that_takes_its_own_backward_pass_is_refused(tmp_path: Path) -> None:
    class Own(Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            loss: Tensor = self.compute_loss(model, self._prepare_inputs(inputs))
            loss.backward()
            return loss.detach()

    class Two(TwoLevelMixin, Own):
        """The step above on two levels."""

    data = examples("bert", 16, 1)
    args = arguments(tmp_path, max_steps=1)
    trainer = Two(adapted("bert", "real"), args, train_dataset=data, upper_dataset=0.25)
    with pytest.raises(NotImplementedError, match=r"one loss to accelerator\.backward, got 0"):
        trainer.train()


@pytest.mark.parametrize("how", ["in place", "anew", "left"])
def test_a_step_that_edits_gradients_is_refused(tmp_path: Path, how: str) -> None:
    class Own(Trainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            loss = super().training_step(model, inputs, num_items_in_batch)
            for parameter in model.parameters():
                if parameter.grad is not None and how == "in place":
                    parameter.grad.mul_(2)
                elif parameter.grad is not None and how == "anew":
                    parameter.grad = 2 * parameter.grad
            return loss

    class Two(TwoLevelMixin, Own):
        """The step above on two levels."""

    data = examples("bert", 16, 1)
    args = arguments(tmp_path, max_steps=1)
    trainer = Two(adapted("bert", "real"), args, train_dataset=data, upper_dataset=0.25)
    if how == "left":
        trainer.train()
        return
    with pytest.raises(NotImplementedError, match="Two changes gradients"):
        trainer.train()


def test_what_the_upper_level_does_is_logged(tmp_path: Path) -> None:
    trainer = made(tmp_path, max_steps=4, method=cg(1), logging_strategy="steps", logging_steps=2)
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert {"loss", "upper_loss", "hypergradient_norm", "upper_learning_rate"} <= {*first}
    assert 0 <= first["response_converged"] <= 1
    assert second["upper_learning_rate"] == 2e-2
    assert second["response_residual"] > 0
