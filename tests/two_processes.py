"""What test_two_processes.py looks at, done by two processes that this script forks: commands as
torchrun starts them, and trainers. The modules are imported once.
"""

import contextlib
import io
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from transformers import TrainerCallback

from adapters import levels
from adapters.trainer import TwoLevelTrainer
from applications import nlg, nlu, processes, token_classification
from applications.runs.training import Training
from blo import darts, t1t2
from tests.adapters.models import adapted
from tests.adapters.test_trainer import arguments, examples, pad, uneven, values
from tests.blo.processes import free_port

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "nlu": nlu.main,
    "nlg": nlg.main,
    "token_classification": token_classification.main,
}
Answers = dict[str, Any]
PORTS: list[int] = []


def spoken(words: list[str]) -> tuple[int, str, str]:
    """The exit status of a command, and what it printed."""
    command, *rest = words
    if PORTS:  # a new group needs a new meeting point
        os.environ["MASTER_PORT"] = str(PORTS.pop())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = COMMANDS[command](rest)
    return status, out.getvalue(), err.getvalue()


def commands(folder: Path, rank: int) -> Answers:
    """Whole runs, and one that goes on from the first checkpoint of another."""
    lines = torch.load(folder / "words.pt")
    found: Answers = {name: spoken(words) for name, words in lines.items() if name != "killed"}
    if rank == 0:
        whole, part = folder / "whole", folder / "resumed"
        shutil.copytree(whole, part)
        for path in part.glob("checkpoints/*"):
            if not path.name.startswith("phase-0-round-00000002"):
                path.unlink()
    rest = [*lines["whole"][:-1], str(folder / "resumed"), "--resume"]
    found["resumed"] = spoken(rest)
    return found


class Seen(TrainerCallback):
    """Keeps the random state before the first step, and the gradient that is stepped along."""

    def __init__(self, model: nn.Module) -> None:
        self.lower = levels(model).lower
        self.seen: list[Any] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.seen:
            self.seen.append(torch.get_rng_state())

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if len(self.seen) == 1:
            self.seen.append([p.grad.clone() for p in self.lower if p.grad is not None])


def trained(kind: str, folder: Path, size: int, *, resume: str | None = None) -> Answers:
    """What a trainer of two levels leads to; `size` examples a batch of each process."""
    base = "gpt2" if kind == "uneven" else "bert"
    changes: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": size, "optim": "sgd"}
    options: dict[str, Any] = {"method": darts() if kind == "masks" else t1t2(), "steps": 2}
    drops: dict[str, Any] = {}
    data = [examples(base, 32, 1), examples(base, 16, 2)]
    if kind == "equal":  # BERT leaves the number of labels unused, by which Trainer multiplies
        changes |= {"average_tokens_across_devices": False}
    if kind == "uneven":
        changes |= {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
        options |= {"steps": 1, "data_collator": pad}
        data = [uneven(24, 1), uneven(12, 2)]
    if kind == "masks":
        drops = {"lora_dropout": 0.3}
        changes |= {"save_strategy": "steps", "save_steps": 2, "train_sampling_strategy": "random"}
    model = adapted(base, "real", moved=0.3, **drops)
    seen = Seen(model)
    trainer = TwoLevelTrainer(
        model,
        arguments(folder / kind, **changes),
        train_dataset=data[0],
        upper_dataset=data[1],
        callbacks=[seen],
        **options,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train(resume_from_checkpoint=resume)
    said = [str(w.message) for w in caught]
    return {"values": values(model), "seen": seen.seen, "said": said}


def trainers(folder: Path, rank: int) -> Answers:
    """Trainers of two levels, and one that goes on from a checkpoint."""
    found: Answers = {k: trained(k, folder, 2) for k in ("equal", "uneven", "masks")}
    found["resumed"] = trained("masks", folder, 2, resume=str(folder / "masks" / "checkpoint-2"))
    found["files"] = sorted(p.name for p in (folder / "masks" / "checkpoint-2").glob("two_level*"))
    return found


def work(folder: Path, rank: int) -> None:
    """Do it all as one of the two; the last thing is the end of the second process."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    found: Answers = {}
    try:
        found["commands"] = commands(folder, rank)
        os.environ["MASTER_PORT"] = str(PORTS.pop())
        distributed.init_process_group("gloo")
        found["trainers"] = trainers(folder, rank)
        distributed.destroy_process_group()
    except BaseException:
        found["error"] = traceback.format_exc()
    torch.save(found, folder / f"answers-{rank}.pt")
    if "error" in found:
        os._exit(1)
    if rank == 1:
        Training.evaluate = lambda _: os._exit(9)  # type: ignore[method-assign]
    killed = spoken(torch.load(folder / "words.pt")["killed"])
    torch.save(killed, folder / "killed.pt")


def main(folder: Path) -> None:
    """Fork the two and wait for them."""
    torch.set_num_threads(1)
    PORTS.extend(free_port() for _ in range(8))
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                work(folder, rank)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    assert processes.count() == 1
    main(Path(sys.argv[1]))
