"""Two levels in ``transformers.Trainer``: equal to the engine, and to a loop written by hand."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from transformers import TrainerCallback, TrainingArguments

from adapters import Orthogonality, WeightDecay, levels, two_level
from adapters.trainer import TwoLevelTrainer
from blo import Engine, Method, cg, darts, soba, t1t2, unrolled
from tests.adapters.models import adapted, base_model

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
    ("base", "adapter", "method", "optimizer", "steps", "accumulate"),
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
