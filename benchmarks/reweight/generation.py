"""Texts to be written: six sources for SmolLM2 on E2E, two of them poisoned.

Four hold clean pairs of a meaning representation and a text, one holds texts of other meaning
representations, one TREC's questions with their types for a meaning representation. The poisoned
ones are twice as large, so that half of the union is poison. Target and sources share no meaning
representation; the test is drawn from E2E's own test file.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from applications.data.examples import TaskData
from applications.data.local_files import read_file, read_layout
from applications.data.meaning_representations import linearised
from applications.data.splits import Splits
from applications.families.family import Setting
from applications.families.generation import TextGeneration, encoded
from applications.models.smollm2 import NAME
from applications.options.arguments import (
    AdapterOptions,
    DataOptions,
    GenerationOptions,
    LevelOptions,
    ModelOptions,
    Options,
    RunOptions,
)
from applications.options.weighting import WeightingOptions
from applications.weighting.gathering import Gathered, Group
from benchmarks.reweight.plan import Run
from benchmarks.reweight.training import trained

SIZES = {"clean_1": 60, "clean_2": 60, "clean_3": 60, "clean_4": 60, "shuffled": 120, "other": 120}
POISONED = ("shuffled", "other")
NUM_TEST, LENGTH, BATCH = 100, 64, 8
STEPS, LOWER_STEPS, FINISH = 40, 2, 8
WAY = 4.0
"""How far Adam can move an upper value, its rate times the upper steps: a share by e^4."""
Pairs = list[tuple[str, str]]


def options_of(run: Run) -> Options:
    """The options of applications.reweight, every rate its default."""
    finish = 0 if run.method == "union" else FINISH
    return Options(
        model=ModelOptions(
            model_name_or_path=NAME, device="cpu", precision="bf16", attn_implementation="eager"
        ),
        data=DataOptions(max_seq_length=LENGTH),
        adapter=AdapterOptions(method="lora", lora_r=8),
        run=RunOptions(
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            seed=run.seed,
            learning_rate=run.learning_rate,
        ),
        generation=GenerationOptions(generate_on=[]),
        levels=LevelOptions(hypergradient="t1t2", lower_steps=LOWER_STEPS),
        weighting=WeightingOptions(
            family="nlg",
            route="online",
            target_steps=finish,
            weight_learning_rate=WAY * LOWER_STEPS / STEPS,
        ),
    )


def row(run: Run, folder: Path) -> dict[str, Any]:
    """Train a run; returns its row, the weights by source among it."""
    started = time.process_time()
    options, family = options_of(run), TextGeneration()
    task = TaskData(run.task, "generation", "bleu", (), {})
    _, tokenizer = family.load_base(options.model, task)
    sources, target, test = drawn(folder, run.labels, run.seed, tokenizer, options)
    if run.method == "union":
        sources["target"] = target
    groups = tuple(Group(name, name, (name,), rows) for name, rows in sources.items())
    names, splits = list(sources), Splits(target, None, test, ())
    given = weights(run.method, {name: len(rows) for name, rows in sources.items()})
    done = trained(options, family, Gathered(task, groups), splits, given)
    setting = Setting(options, task, done.work.tokenizer)
    found = given
    if done.weights is not None:
        found = dict(zip(names, done.weights().tolist(), strict=True))
    assert found is not None
    score = family.evaluate(done.model, test, setting, split="test", stage="final")
    return {
        **run.key,
        "test_loss": round(score.loss, 4),
        "weights": {name: round(value, 3) for name, value in found.items()},
        "num_gradients": done.num_gradients,
        "num_products": done.num_products,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def weights(method: str, sizes: dict[str, int]) -> dict[str, float] | None:
    """One weight a source, of mean 1 over the examples; None where they are learned."""
    if method == "online":
        return None
    shares = {name: float(size) for name, size in sizes.items()}
    if method == "uniform":
        shares = dict.fromkeys(sizes, 1.0)
    if method == "oracle":
        shares = {name: share * (name not in POISONED) for name, share in shares.items()}
    whole = sum(sizes.values()) / sum(shares.values())
    return {name: share / sizes[name] * whole for name, share in shares.items()}


def drawn(
    folder: Path, labels: int, seed: int, tokenizer: PreTrainedTokenizerBase, options: Options
) -> tuple[dict[str, Dataset], Dataset, Dataset]:
    """The sources by name, the target and the test examples of a seed, one text a row."""
    generator = torch.Generator().manual_seed(seed)

    def shuffled(pairs: Pairs) -> Pairs:
        order = torch.randperm(len(pairs), generator=generator)
        return [pairs[i] for i in order.tolist()]

    def fitting(pairs: Pairs) -> Pairs:
        rows = encoded(dataset(pairs), tokenizer, options)
        fits = (len(row["input_ids"]) <= LENGTH for row in rows)
        return [pair for pair, fit in zip(pairs, fits, strict=True) if fit]

    known = shuffled(fitting(read_pairs(folder / "e2e" / "devset.csv")))
    target = once(known)[:labels]
    trusted = {meaning for meaning, _ in target}
    rest = [pair for pair in known if pair[0] not in trusted]
    test = once(shuffled(fitting(read_pairs(folder / "e2e" / "testset_w_refs.csv"))))[:NUM_TEST]
    sources: dict[str, Dataset] = {}
    for name, size in SIZES.items():
        if name == "other":
            pairs = shuffled(fitting(questions(folder)))[:size]
        else:
            pairs, rest = rest[:size], rest[size:]
        if name == "shuffled":
            pairs = displaced(pairs)
        sources[name] = dataset(pairs)
    return sources, dataset(target), dataset(test)


def read_pairs(file: Path) -> Pairs:
    """Meaning representations as text, and what was written about them."""
    rows = read_file(file)
    return [(linearised(m), text) for m, text in zip(rows["mr"], rows["ref"], strict=True)]


def questions(folder: Path) -> Pairs:
    """TREC's questions, and their types in the form of a meaning representation."""
    rows = read_layout("trec", folder)[0]["train"]
    return [
        (f"kind : {kind}", text) for kind, text in zip(rows["label"], rows["text"], strict=True)
    ]


def once(pairs: Pairs) -> Pairs:
    """The first pair of each meaning representation."""
    found: dict[str, str] = {}
    for meaning, text in pairs:
        found.setdefault(meaning, text)
    return list(found.items())


def displaced(pairs: Pairs) -> Pairs:
    """Each meaning representation with the text of another one."""
    ordered = sorted(pairs)
    texts = [text for _, text in ordered]
    half = len(texts) // 2
    away = texts[half:] + texts[:half]
    return [(meaning, text) for (meaning, _), text in zip(ordered, away, strict=True)]


def dataset(pairs: Sequence[tuple[str, str]]) -> Dataset:
    """Pairs as examples of the family."""
    return Dataset.from_dict(
        {"source": [meaning for meaning, _ in pairs], "references": [[text] for _, text in pairs]}
    )
