"""One sequence: its tasks learned one after the other, tested after each, kept on disk between."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, set_seed

from adapters import next_task
from applications.data.batches import Encoded, evaluation_batches
from applications.errors import UsageError
from applications.families.prediction import evaluating, predictor
from applications.models.adapting import put_on
from applications.models.loading import device
from applications.options.versions import versions
from applications.pages.writing import write_json, write_whole
from applications.sequences.learning import Learner, Task
from applications.sequences.material import FAMILY, Material, settings
from applications.sequences.scores import Scores, accuracies
from applications.sequences.tasks import Order, kept
from applications.sequences.variants import Variant

ADAPTER, PROGRESS = "adapter", "progress.json"


@dataclass
class Progress:
    """How far a sequence is: what was measured after each task, and what it cost."""

    settings: dict[str, Any]
    accuracies: list[list[float]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    num_gradients: int = 0
    seconds: float = 0.0


def run_sequence(
    material: Material, order: Order, variant: Variant, folder: Path
) -> dict[str, Any]:
    """Learn the tasks of one order, going on from what `folder` holds; returns a line of results.

    The folder stays, for as long as the line is not written.

    The random state is set at the beginning of every task, so that an interrupted sequence ends
    where an uninterrupted one does.
    """
    train = order.renamed(material.train)
    memory, rest = kept(order, train, material.sequence.memory_per_class)
    test = order.renamed(material.test)
    check_tested(order, test)
    progress = read_progress(folder, settings(material.options))
    set_seed(order.number)
    base, _ = FAMILY.load_base(material.options.model, material.task)
    model = adapted(base, variant, material, folder / ADAPTER if progress.seen else None)
    for number in range(len(progress.seen), len(order.ends)):
        started = time.perf_counter()
        set_seed(1_000 * order.number + number)
        if variant.decoupled and number:
            next_task(model)
        seen = order.ends[number]
        task = Task(
            number,
            order.of(number, train),
            order.of(number, rest),
            [row for row in memory if row["labels"] < seen],
            order.begin(number),
            seen,
        )
        collator = FAMILY.collator(material.tokenizer)
        learner = Learner(
            model, variant, material.sequence, material.options.model, collator, order.number
        )
        progress.num_gradients += learner.learn(task)
        each, whole = tested(model, test, order.ends[: number + 1], material)
        progress.accuracies.append(each)
        progress.seen.append(whole)
        progress.seconds += time.perf_counter() - started
        write_whole(folder, lambda draft: write_state(draft, model, progress))
    return result(material, order, variant, model, progress)


def adapted(
    base: PreTrainedModel, variant: Variant, material: Material, saved: Path | None
) -> PeftModel:
    """The model with the adapter of the first task, or the one that an interruption has left."""
    model: Any
    if saved is None:
        targets = material.sequence.lora_target_modules
        model = put_on(base, variant.config(material.sequence), targets)
    else:
        model = PeftModel.from_pretrained(base, str(saved), is_trainable=True)
    assert isinstance(model, PeftModel)
    model.to(device(material.options.model))
    return model


def tested(
    model: nn.Module, rows: Encoded, ends: Sequence[int], material: Material
) -> tuple[list[float], float]:
    """The accuracy on each task that has come, and on all, among the classes that have come."""
    options, size = material.options, material.sequence.per_device_eval_batch_size
    chosen = [row for row in rows if row["labels"] < ends[-1]]
    predict, found, labels = predictor(model, options), [], []
    with evaluating(model, options):
        for batch in evaluation_batches(chosen, FAMILY.collator(material.tokenizer), size=size):
            found.append(predict(batch)[:, : ends[-1]].argmax(-1))
            labels.append(batch["labels"])
    return accuracies(torch.cat(found), torch.cat(labels), ends)


def check_tested(order: Order, rows: Encoded) -> None:
    """Raise a UsageError where a task has no example to test it on."""
    for number in range(len(order.ends)):
        if not order.of(number, rows):
            raise UsageError(
                f"argument --max_eval_samples: no example of task {number + 1} of order "
                f"{order.number} is left to test on, of {len(rows)}; give more, or fewer tasks"
            )


def read_progress(folder: Path, now: dict[str, Any]) -> Progress:
    """How far the sequence is that left `folder`.

    Raises:
        UsageError: it was trained with other settings.
    """
    file, fresh = folder / PROGRESS, Progress(json.loads(json.dumps(now)))
    if not file.is_file():
        return fresh
    found = Progress(**json.loads(file.read_text(encoding="utf-8")))
    if {**fresh.settings, **found.settings} != fresh.settings:
        raise UsageError(
            f"argument --output_dir: {folder} was left by a run with other options; use the same "
            f"ones, or another folder"
        )
    return found


def write_state(folder: Path, model: PeftModel, progress: Progress) -> None:
    """Write what a sequence goes on from."""
    folder.mkdir()
    model.save_pretrained(str(folder / ADAPTER))
    write_json(folder / PROGRESS, asdict(progress))


def result(
    material: Material, order: Order, variant: Variant, model: nn.Module, progress: Progress
) -> dict[str, Any]:
    """One line of results.jsonl."""
    scores = Scores(progress.accuracies, progress.seen)
    magnitudes = {
        name: [round(c, 6) for c in parameter.tolist()]
        for name, parameter in model.named_parameters()
        if "lora_task_magnitudes" in name
    }
    return {
        "task": material.task.name,
        "variant": variant.name,
        "order": order.number,
        "last": scores.last,
        "average": scores.average,
        "forgetting": scores.forgetting,
        "seen": list(scores.seen),
        "accuracies": [list(row) for row in scores.accuracies],
        "magnitudes": magnitudes,
        "num_gradients": progress.num_gradients,
        "seconds": round(progress.seconds, 1),
        "settings": progress.settings,
        "versions": versions(),
    }
