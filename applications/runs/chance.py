"""Whether a run has learned nothing: as good as guessing, or always the same answer."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from applications.data.splits import at_most
from applications.families.metrics import Evaluation
from applications.options.arguments import Options
from applications.runs.phases import Workload

ROUNDING = 1e-6
"""Metrics are computed in single precision."""


def chance_notes(
    work: Workload, evaluations: Mapping[str, Evaluation], folder: Path
) -> tuple[str, ...]:
    """What is said of a run that ends at chance, on its training or its test split; nothing else.

    Chance is, for classes, no better than the most frequent one; for numbers, no closer than their
    mean, or always the same; for tags, no entity found; for generated text, the same for all
    inputs.
    """
    splits = {"train": work.splits.train, "test": work.splits.test}
    data = work.options.data
    for split, whole in splits.items():
        examples = at_most(whole, data.max_eval_samples, work.task, data.split_seed)
        reason = at_chance(work.task.kind, evaluations[split], examples, folder, split)
        if reason is not None:
            learned = "has learned nothing" if split == "train" else "does not generalise"
            return (
                f"The run ends at chance and {learned}: on the {split} split {reason}. "
                f"Try {'; '.join(remedies(work.options, split))}.",
            )
    return ()


def at_chance(
    kind: str, found: Evaluation, examples: Dataset, folder: Path, split: str
) -> str | None:
    """Why an evaluation is no better than chance, None where it is."""
    answers = examples[examples.column_names[-1]]
    metrics = found.metrics
    if kind == "classification":
        most = max(Counter(answers).values()) / len(answers)
        accuracy = metrics["accuracy"]
        if accuracy is not None and accuracy <= most + ROUNDING:
            return f"accuracy is {accuracy:.3f}, and the most frequent class alone gives {most:.3f}"
    elif kind == "regression":
        mean = sum(answers) / len(answers)
        variance = sum((answer - mean) ** 2 for answer in answers) / len(answers)
        if metrics["pearson"] is None:
            return "every prediction is the same"
        if found.loss >= variance:
            return (
                f"the mean squared error is {found.loss:.3g}, and the mean of the labels alone "
                f"gives {variance:.3g}"
            )
    elif kind == "tagging":
        if metrics["f1"] == 0:  # None where there is none to be found
            some = metrics.get("precision") is not None
            return "none of the entities it finds is right" if some else "no entity is found"
    elif kind == "generation" and split == "test":
        return same_text(folder)
    return None


def same_text(folder: Path) -> str | None:
    """Whether one text was generated for all inputs of the test split, where any was."""
    file = folder / "generated.jsonl"
    if not file.exists():
        return None
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = {row["hypothesis"] for row in rows}
    if len(rows) > 1 and len(texts) == 1:
        return f"the same text is generated for all {len(rows)} inputs: {texts.pop()!r}"
    return None


def remedies(options: Options, split: str) -> list[str]:
    """What to try, the likeliest first."""
    adapter, run = options.adapter, options.run
    if split == "test":
        return [
            "more training examples",
            "a --validation_fraction with --metric_for_best_model loss",
            "whether the labels of the two splits mean the same",
        ]
    tried = []
    if adapter.shrunk:
        tried.append(
            "--scale_by_rank (softmax values sum to 1, so that the update is scaled down by the "
            "rank)"
        )
    tried.append(f"a larger --learning_rate, such as {5 * options.learning_rate:g}")
    steps = f"--max_steps {5 * run.max_steps}" if run.max_steps > 0 else "more --num_train_epochs"
    tried.append(steps)
    if adapter.row.config is not None and adapter.lora_target_modules != ["all-linear"]:
        tried.append("--lora_target_modules all-linear")
    tried.append("whether the labels are right (a smaller task, or --method full)")
    return tried
