"""One cell of the grid with MiniLM and LoRA: a task, a number of trusted labels, a seed."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import set_seed

from applications.data.examples import TaskData
from applications.data.splits import Splits
from applications.families.classification import TextClassification
from applications.families.family import Setting
from applications.options.arguments import (
    AdapterOptions,
    DataOptions,
    ModelOptions,
    Options,
    RunOptions,
)
from applications.options.weighting import WeightingOptions
from applications.runs.phases import Phase
from applications.weighting.controls import CONTROLS, Comparison
from applications.weighting.finetuning import on_target, weighted_phases, workload
from applications.weighting.gathering import Gathered, Group
from applications.weighting.online import online
from applications.weighting.route import learn
from benchmarks.reweight.on_features import LEARNED, about, cell
from benchmarks.reweight.shards import Drawn, Shards, labelled
from blo import Engine

STEPS, BATCH = 300, 16
RATES = (1e-3, 2e-3, 4e-3)
DEFAULT_RATE = 1e-3
METHODS = (
    *("two_stage", LEARNED, "agreement", "oracle", "online", "union", "greedy"),
    "agreeing_examples",
)


def rows(
    task: Shards,
    folder: Path,
    *,
    labels: int,
    seed: int,
    done: set[str],
    methods: Sequence[str],
    tuned: Sequence[dict[str, Any]] = (),
    rate: float | None = None,
) -> Iterator[dict[str, Any]]:
    """A row a method that is not done, at ``rate``, or at the rate that was best on other seeds."""
    given, _, drawn = cell(task, folder, labels=labels, seed=seed)
    data = datasets_of(task, folder, drawn)
    for method in methods:
        if method in done:
            continue
        chosen = rate or best_rate(tuned, method)
        started = time.process_time()
        weights, metric = trained(task, given, data, method, seed=seed, rate=chosen)
        yield {
            "task": task.name,
            "route": "minilm_lora",
            "labels": labels,
            "seed": seed,
            "method": method,
            "test_metric": round(metric, 6),
            "learning_rate": chosen,
            "rate_tuned": rate is None and any(row["method"] == method for row in tuned),
            "cpu_seconds": round(time.process_time() - started, 1),
            **about(weights, torch.tensor(task.rates)),
        }


def best_rate(tuned: Sequence[dict[str, Any]], method: str) -> float:
    """The learning rate with the best mean on the seeds for tuning."""
    scores: dict[float, list[float]] = {}
    for row in tuned:
        if row["method"] == method:
            scores.setdefault(row["learning_rate"], []).append(row["test_metric"])
    if not scores:
        return DEFAULT_RATE
    return max(scores, key=lambda rate: statistics.fmean(scores[rate]))


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


def trained(
    task: Shards,
    given: Comparison,
    data: tuple[list[Dataset], Dataset, Dataset],
    method: str,
    *,
    seed: int,
    rate: float,
) -> tuple[Tensor | None, float]:
    """The weights that a method trained with, and its accuracy on the test examples.

    ``union`` has the target among the sources and no finish; all others finish on the target.
    """
    shards, target, test = data
    weights, groups = mixture(given, shards, target, method)
    finish = 0 if method == "union" else max(30, 3 * -(-len(target) // BATCH))
    weighting = WeightingOptions(target_steps=finish)
    options = Options(
        model=ModelOptions(device="cpu"),
        data=DataOptions(max_seq_length=64),
        adapter=AdapterOptions(method="lora", lora_r=8),
        run=RunOptions(
            per_device_train_batch_size=BATCH, max_steps=STEPS, seed=seed, learning_rate=rate
        ),
        weighting=weighting,
    )
    classes = given.target.answers.shape[1]
    names = tuple(str(number) for number in range(classes))
    family = TextClassification()
    whole = TaskData(task.name, "classification", "accuracy", names, {"train": target})
    gathered = Gathered(whole, tuple(groups))
    values = dict(zip([group.name for group in groups], weights.tolist(), strict=True))
    work = workload(options, family, gathered, Splits(target, None, test, ()), values)
    phases: Iterator[Phase] = weighted_phases(work, target, weighting)
    found: Tensor | None = weights[: len(shards)]
    above = None
    if method == "online":
        identity = torch.eye(len(shards)).tolist()
        pairs = [(group.examples, row) for group, row in zip(groups, identity, strict=True)]
        first, above = online(work, pairs, given.sources.sizes, target, weighting)
        phases = iter((first, on_target(work, first.model, target, weighting)))
    for phase in phases:
        set_seed(seed)
        Engine(phase.graph).run(phase.updates.rounds)
        model = phase.model
    if above is not None:
        found = above().detach().double()
    setting = Setting(options, whole, work.tokenizer)
    metrics = family.evaluate(model, test, setting, split="test", stage="final").metrics
    accuracy = metrics["accuracy"]
    assert accuracy is not None
    return (None if method == "agreeing_examples" else found), accuracy


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
