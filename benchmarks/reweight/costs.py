"""What weighing sources costs beside one plain training of as many updates.

Everything is done as by ``applications.reweight`` with no flag, on the shards of product reviews;
loading, evaluating and writing pages, which every command does, are left out.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from applications.data.examples import TaskData
from applications.data.splits import Splits
from applications.families.classification import TextClassification
from applications.options.arguments import (
    AdapterOptions,
    DataOptions,
    LevelOptions,
    ModelOptions,
    Options,
    RunOptions,
)
from applications.options.weighting import WeightingOptions
from applications.weighting.embedding import Reader, embedded
from applications.weighting.gathering import Gathered, Group
from applications.weighting.route import learn
from applications.weighting.search import Search
from benchmarks.reweight.finetuned import BATCH, STEPS, prepared
from benchmarks.reweight.pairs import PAIRS
from benchmarks.reweight.training import Trained, trained

LABELS = 60
ONLINE: Mapping[str, LevelOptions] = {
    "online": LevelOptions(),
    "online, 5 lower steps": LevelOptions(lower_steps=5),
}
Row = dict[str, Any]


def measured(folder: Path, *, steps: int, seed: int) -> list[Row]:
    """A row a way of training: CPU seconds of embedding, search, fine-tuning and finish.

    The fine-tuning is counted over ``steps`` updates and scaled to ``STEPS``.
    """
    task = PAIRS["sst2_cr"]
    _, (shards, target, test) = prepared(task, folder, LABELS, seed)
    groups = tuple(Group(str(n), str(n), (str(n),), rows) for n, rows in enumerate(shards))
    whole = TaskData(task.name, "classification", "accuracy", ("0", "1"), {"train": target})
    gathered, splits = Gathered(whole, groups), Splits(target, None, test, ())
    family = TextClassification()
    even = dict.fromkeys(gathered.names, 1.0)
    plain = trained(options_of(steps, seed, finish=0), family, gathered, splits, even)
    rows = [row("plain", plain, steps)]
    options = options_of(steps, seed)
    started = time.process_time()
    model, tokenizer = family.load_base(options.model, whole)
    loaded = time.process_time()
    read = Reader(family, model, tokenizer, options, whole.num_labels)
    data = embedded(read, gathered, splits, options.weighting or WeightingOptions())
    seen = time.process_time()
    learned = learn(data.sources, data.target, Search(), seed=seed)
    ended = time.process_time()
    weights = dict(zip(gathered.names, learned.weights.tolist(), strict=True))
    found = row("features", trained(options, family, gathered, splits, weights), steps)
    more = {"loading": loaded - started, "embedding": seen - loaded, "search": ended - seen}
    rows.append(found | more | {"whole": found["whole"] + sum(more.values())})
    for name, level in ONLINE.items():
        done = trained(options_of(steps, seed, level), family, gathered, splits, None)
        rows.append(row(name, done, steps))
    return [{"steps": STEPS, "counted": steps, "seed": seed, **rounded(each)} for each in rows]


def rounded(row: Row) -> Row:
    """Seconds to a tenth."""
    return {key: round(v, 1) if isinstance(v, float) else v for key, v in row.items()}


def options_of(
    steps: int, seed: int, levels: LevelOptions | None = None, finish: int | None = None
) -> Options:
    """The options of the commands; ``finish`` updates on the target."""
    return Options(
        model=ModelOptions(device="cpu"),
        data=DataOptions(max_seq_length=64),
        adapter=AdapterOptions(method="lora", lora_r=8),
        levels=levels or LevelOptions(),
        run=RunOptions(per_device_train_batch_size=BATCH, max_steps=steps, seed=seed),
        weighting=WeightingOptions(target_steps=finish),
    )


def row(way: str, done: Trained, steps: int) -> Row:
    """CPU seconds and gradients, the first phase's scaled to ``STEPS``."""
    first, *rest = done.phases
    times = STEPS / first.num_updates
    tuning = first.cpu_seconds * times
    finish = sum(phase.cpu_seconds for phase in rest)
    gradients = (first.num_gradients + first.num_products) * times
    gradients += sum(phase.num_gradients for phase in rest)
    return {
        "way": way,
        "fine_tuning": tuning,
        "finish": finish,
        "gradients": round(gradients),
        "whole": tuning + finish,
    }
