"""One cell of the grid with MiniLM and LoRA: a task, a number of trusted labels, a seed."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from applications.data.examples import TaskData
from applications.data.splits import Splits
from applications.families.classification import TextClassification
from applications.families.family import Setting
from applications.options.arguments import (
    AdapterOptions,
    DataOptions,
    LevelOptions,
    ModelOptions,
    Options,
    RunOptions,
)
from applications.options.weighting import WeightingOptions
from applications.weighting.controls import CONTROLS, Comparison
from applications.weighting.gathering import Gathered, Group
from applications.weighting.route import learn
from benchmarks.reweight.on_features import about, cell
from benchmarks.reweight.pairs import PAIRS, Shards
from benchmarks.reweight.plan import LEARNED, Run
from benchmarks.reweight.shards import Drawn, labelled
from benchmarks.reweight.training import trained

STEPS, BATCH = 300, 16
# Exact products: in bfloat16 a difference of gradients is mostly rounding.
ONLINE = LevelOptions(lower_steps=5, hypergradient="t1t2")


@lru_cache(maxsize=1)
def prepared(
    task: Shards, folder: Path, labels: int, seed: int
) -> tuple[Comparison, tuple[list[Dataset], Dataset, Dataset]]:
    """What every method of a cell is given, as features and as texts."""
    given, _, drawn = cell(task, folder, labels=labels, seed=seed)
    return given, datasets_of(task, folder, drawn)


def row(run: Run, folder: Path) -> dict[str, Any]:
    """Train a run; returns its row."""
    task = PAIRS[run.task]
    started = time.process_time()
    given, data = prepared(task, folder, run.labels, run.seed)
    weights, metric = fine_tuned(run, given, data)
    return {
        **run.key,
        "test_metric": round(metric, 6),
        "cpu_seconds": round(time.process_time() - started, 1),
        **about(weights, torch.tensor(task.rates)),
    }


def datasets_of(task: Shards, folder: Path, drawn: Drawn) -> tuple[list[Dataset], Dataset, Dataset]:
    """The shards, the target and the test examples as texts with labels."""
    texts, _, _ = labelled(task.sources, folder, tested=task.sources == task.target)
    others, _, _ = labelled(task.target, folder, tested=True)

    def rows_of(all_texts: Sequence[str], at: Tensor, what: Tensor) -> Dataset:
        chosen = [all_texts[i] for i in at.tolist()]
        return Dataset.from_dict({"text": chosen, "label": what.tolist()})

    shards = [
        rows_of(texts, drawn.sources[mine], drawn.said[mine])
        for mine in (drawn.shard == s for s in range(len(task.rates)))
    ]
    target = rows_of(others, drawn.target, drawn.target_labels)
    return shards, target, rows_of(others, drawn.test, drawn.test_labels)


def fine_tuned(
    run: Run, given: Comparison, data: tuple[list[Dataset], Dataset, Dataset]
) -> tuple[Tensor | None, float]:
    """The weights that a method trained with, and its accuracy on the test examples.

    ``union`` has the target among the sources and no finish; all others finish on the target.
    """
    shards, target, test = data
    weights, groups = mixture(given, shards, target, run.method)
    finish = 0 if run.method == "union" else max(30, 3 * -(-len(target) // BATCH))
    options = settings(run, finish)
    names = tuple(str(number) for number in range(given.target.answers.shape[1]))
    family = TextClassification()
    whole = TaskData(run.task, "classification", "accuracy", names, {"train": target})
    values = dict(zip([group.name for group in groups], weights.tolist(), strict=True))
    done = trained(
        options,
        family,
        Gathered(whole, tuple(groups)),
        Splits(target, None, test, ()),
        None if run.method == "online" else values,
    )
    found: Tensor | None = weights[: len(shards)]
    if done.weights is not None:
        found = done.weights().detach().double()
    setting = Setting(options, whole, done.work.tokenizer)
    metrics = family.evaluate(done.model, test, setting, split="test", stage="final").metrics
    accuracy = metrics["accuracy"]
    assert accuracy is not None
    return (None if run.method == "agreeing_examples" else found), accuracy


def settings(run: Run, finish: int) -> Options:
    """All options of a run that ends with ``finish`` updates on the target."""
    online = run.method == "online"
    return Options(
        model=ModelOptions(device="cpu", precision="bf16"),
        data=DataOptions(max_seq_length=64),
        adapter=AdapterOptions(method="lora", lora_r=8),
        levels=ONLINE if online else LevelOptions(),
        run=RunOptions(
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            seed=run.seed,
            learning_rate=run.learning_rate,
        ),
        weighting=WeightingOptions(target_steps=finish, route="online" if online else "features"),
    )


def mixture(
    given: Comparison, shards: Sequence[Dataset], target: Dataset, method: str
) -> tuple[Tensor, list[Group]]:
    """One weight a group, and the groups: the shards, or what the method makes of them."""
    even = given.even
    groups = [Group(str(s), str(s), (str(s),), rows) for s, rows in enumerate(shards)]
    if method in ("two_stage", "online"):
        return even, groups
    if method == "union":
        return torch.cat([even, even[:1]]), [
            *groups,
            Group("target", "target", ("target",), target),
        ]
    if method == "agreeing_examples":
        return even, [
            replace(g, examples=agreeing(given, s, g.examples)) for s, g in enumerate(groups)
        ]
    if method == LEARNED:
        return learn(given.sources, given.target, given.settings).weights, groups
    weights = CONTROLS[method](given).weights
    assert weights is not None
    return weights, groups


def agreeing(given: Comparison, source: int, examples: Dataset) -> Dataset:
    """The examples of a shard whose label a model of the target on features predicts."""
    from applications.weighting.folds import finished

    head = finished(given.target, given.parts)
    mine = given.sources.members[:, source] > 0
    outputs = (given.sources.examples.features[mine] @ head).argmax(-1)
    said = given.sources.examples.answers[mine].argmax(-1)
    return examples.select((outputs == said).nonzero().flatten().tolist())
