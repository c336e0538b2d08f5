"""The model card of a run, filled from its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from adapters.results.model_card import score_table
from applications.families.family import Family
from applications.options.arguments import Options
from applications.pages.table import shown
from applications.pages.writing import write_whole
from applications.runs.conclusion import on_d2
from applications.runs.saved import training_form
from applications.runs.usage import loading_lines

CARD = "README.md"
PIPELINES = {
    "nlu": "text-classification",
    "token_classification": "token-classification",
    "nlg": "text-generation",
}
"""What the Hub calls the task of each command."""


@dataclass(frozen=True)
class Told:
    """What a card tells: the options of the run, its summary, the sizes of its levels, remarks."""

    options: Options
    summary: Mapping[str, Any]
    family: Family
    place: Path
    """The folder of the run, as the lines of code call it."""
    sizes: Mapping[str, int]
    """The examples of the ``lower`` and the ``upper`` level."""
    notes: Sequence[str] = ()


def write_cards(run: Path, told: Told) -> None:
    """Write the model card into every folder with a model that the run has left."""
    for name in ("adapter", training_form("adapter"), "model"):
        if (run / name).is_dir():
            write_card(run / name, told)
    chosen = replace(told, summary=at_selected(told.summary))
    for name in ("selected", training_form("selected")):
        if (run / name).is_dir():
            write_card(run / name, chosen)


def at_selected(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The summary with the numbers of the selected step, as far as they were taken; D2, where it
    selected, is no validation split.
    """
    found = summary["selected"]
    if found is None:
        return summary
    name = summary["metric_name"]
    scores = {
        split: {"loss": found[f"{split}_loss"], name: found[f"{split}_metric"]}
        for split in ("train", "validation", "test")
    }
    if on_d2(found):
        scores.pop("validation")
    return {**summary, "metrics": scores, "test_metric": found["test_metric"]}


def write_card(folder: Path, told: Told) -> None:
    """Write a folder's model card: how to load it, how it was trained, its numbers."""
    text = "\n\n".join(
        [
            f"# {told.summary['method']} on {told.summary['task']}",
            usage(folder, told),
            "## How it was trained",
            settings(told),
            "## Its numbers",
            numbers(told.summary),
            *([notes(told.notes)] if told.notes else []),
        ]
    )
    card = ModelCard(f"---\n{metadata(folder, told).to_yaml()}\n---\n\n{text}\n")
    content = str(card)
    write_whole(folder / CARD, lambda draft: draft.write_text(content, encoding="utf-8"))


def metadata(folder: Path, told: Told) -> ModelCardData:
    """What the Hub reads: base model, library, task, the metric on the test split."""
    summary = told.summary
    adapter = (folder / "adapter_config.json").is_file()
    value = summary["test_metric"]
    pipeline = PIPELINES[told.family.command]
    result = EvalResult(
        task_type=pipeline,
        dataset_type=summary["task"],
        dataset_name=summary["task"],
        dataset_split="test",
        metric_type=summary["metric_name"],
        metric_value=value,
    )
    measured: dict[str, Any] = {} if value is None else {"eval_results": [result]}
    return ModelCardData(
        base_model=str(told.options.model.model_name_or_path),
        library_name="peft" if adapter else "transformers",
        pipeline_tag=pipeline,
        tags=["blo-torch", summary["method"]],
        model_name=f"{summary['method']} on {summary['task']}",
        **measured,
    )


def usage(folder: Path, told: Told) -> str:
    """How to load the folder."""
    name, revision = told.family.auto_model.__name__, told.options.model.revision
    lines = loading_lines(folder, name, revision, place=told.place / folder.name)
    return "\n".join(["```python", *lines, "```"])


def settings(told: Told) -> str:
    """Data, levels, method, scale and seeds."""
    options, summary = told.options, told.summary
    data, level, run = options.data, options.levels, options.run
    lines = [
        f"base model: {options.model.model_name_or_path}",
        f"method: {summary['method']}, {summary['trainable_params']:,} trained parameters",
        f"training examples: {summary['train_size']}",
    ]
    if options.adapter.bi_level:
        lines += [levels_line(told)]
    elif level.control != "none":
        lines += [parts_line(level.control, told.sizes)]
    lines.append(f"learning rate: {options.learning_rate:g}, {summary['num_lower_steps']} updates")
    found = summary["hypergradient"]
    if found is not None:
        scale = "none" if found["scale"] is None else shown(found["scale"])
        rate = options.upper_learning_rate
        lines.append(
            f"upper level: {summary['upper_params']:,} parameters, learning rate {rate:g}, "
            f"{summary['num_upper_steps']} updates, one after each {level.lower_steps} of the lower"
        )
        lines.append(f"hypergradient: {found['method']}, scale of the response {scale}")
    if summary["control"] != "none":
        lines.append(f"control: {summary['control']}")
    if summary["retraining"] != "none":
        lines.append(f"then retrained on all training examples: {summary['retraining']}")
    lines.append(f"seeds: {run.seed}, of the splits {data.split_seed}")
    packages = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    lines.append(f"versions: {packages}; {summary['device']}")
    return "\n".join(f"- {line}" for line in lines)


def parts_line(control: str, sizes: Mapping[str, int]) -> str:
    """Which of the training examples a method of one level was trained on."""
    one, two = (f"{sizes[level]:,} of them" for level in ("lower", "upper"))
    return {
        "lower_data_only": f"trained on D1 alone, {one}",
        "upper_data_only": f"trained on D2 alone, {two}",
        "two_stage": f"trained on D1, {one}, then on D2, {two}",
    }[control]


def levels_line(told: Told) -> str:
    """How the training examples were divided between the levels."""
    control, sizes = told.summary["control"], told.sizes
    if told.options.levels.cross_fitting is not None:
        return f"levels: {told.options.levels.cross_fitting} folds, each held out once"
    if control in ("joint", "same_data"):
        return f"levels: not divided ({control}), {sizes['lower']} examples for both"
    whole = sizes["lower"] + sizes["upper"]
    return (
        f"levels: {sizes['lower']} examples lower, {sizes['upper']} upper "
        f"({sizes['upper'] / whole:.0%})"
    )


def numbers(summary: Mapping[str, Any]) -> str:
    """Loss, metric and calibration on every split, and the gaps between them."""
    scores = summary["metrics"]
    main = summary["metric_name"]
    others = [name for name in scores["test"] if name not in (main, "loss", "ece")]
    kept = [name for name in others if not name.startswith("f1_")]
    return score_table(scores, [main, *kept])


def notes(found: Sequence[str]) -> str:
    """The remarks of the run."""
    return "\n".join(["## Remarks", "", *(f"- {note}" for note in found)])
