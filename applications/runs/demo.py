"""The first half of the demo: LoRA beside BiLoRA, at equal scale and with retraining."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from applications.data.tasks import CARRIED_TASK
from applications.families.classification import TextClassification
from applications.methods import METHODS
from applications.models.adapting import adapter_config
from applications.options.arguments import Options
from applications.options.completion import completed
from applications.runs.estimate import estimates, plan_table
from applications.runs.experiment import finetune
from applications.runs.kept import Summary, once
from applications.runs.noise import noise

PAIR: Sequence[str] = ("lora", "bilora")

# None of it was chosen on test data. By reason: few examples, so that overfitting shows; half of
# the headlines as test split, so that its sampling error is small (about one point); singular
# values that start at 1, so that lora_alpha, and with it a learning rate, means the same for both
# methods; as many updates as LoRA takes to fit the training examples (98 % of them, seen with
# --validation_fraction 0.5).
PRESETS: Mapping[str, Any] = {
    "task_name": CARRIED_TASK,
    "model_name_or_path": "minilm",
    "max_train_samples": 120,
    "test_fraction": 0.5,
    "max_seq_length": 32,
    "learning_rate": 2e-3,
    "scale_by_rank": True,
    "max_steps": 100,
    "output_dir": "runs/nlu-demo",
}


def run_demo(options: Options, console: Console) -> list[Summary]:
    """Train the methods one after the other, show a table, return the summaries."""
    chosen = options.adapter.method
    methods = PAIR if chosen is None else (chosen,)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(
        f"Demo: {options.data.max_train_samples} BBC headlines, five classes, model "
        f"{options.model.model_name_or_path}, methods {', '.join(methods)}"
    )
    family = TextClassification()
    chosen_options = [of_method(options, name) for name in methods]
    for each in chosen_options:  # refuses before the first method has trained
        adapter_config(each.adapter, family.task_type, num_steps=each.run.max_steps)
    if options.dry_run:
        for each in chosen_options:
            say(str(each.adapter.method))
            console.print(plan_table(estimates(each, family)))
        return []
    train = partial(finetune, family=family, say=say)
    summaries = [once(completed(each, family), train) for each in chosen_options]
    console.print(table(summaries))
    if chosen is None:
        say(conclusion(*summaries))
    say(f"results and a report.html for each method: {options.run.output_dir}")
    return summaries


def of_method(options: Options, method: str) -> Options:
    """The demo's options for one method, in a folder of its own; the values of BiLoRA are retrained
    with, where nothing else is asked for.
    """
    place = str(Path(str(options.run.output_dir)) / method)
    levels = options.levels
    if METHODS[method].bi_level and levels.retraining is None:
        levels = replace(levels, retraining="values")
    return replace(
        options,
        levels=levels,
        adapter=replace(options.adapter, method=method),
        run=replace(options.run, output_dir=place),
    )


def table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """A row a method: what it reached on training and test data, and what it cost."""
    first = summaries[0]
    name = first["metric_name"]
    result = Table(title=f"{first['task']}, {first['train_size']} training examples: {name}")
    result.add_column("method")
    heads = ("train", "test", "test loss", "gap", "ECE", "seconds", "params")
    for head in heads:
        result.add_column(head, justify="right")
    for row in summaries:
        result.add_row(
            row["method"],
            f"{row['train_metric']:.3f}",
            f"{row['test_metric']:.3f}",
            f"{row['test_loss']:.3f}",
            f"{row['generalisation_gap']:.3f}",
            "-" if row["ece"] is None else f"{row['ece']:.3f}",
            f"{row['wall_seconds']:.0f}",
            f"{row['trainable_params']:,}",
        )
    return result


def conclusion(lora: Summary, bilora: Summary) -> str:
    """What the two rows say, in one line."""
    away = bilora["test_metric"] - lora["test_metric"]
    enough = noise(lora, bilora)
    units = bilora["num_gradients"] / lora["num_gradients"]
    level = f"nothing between them at {units:.1f} times the gradients, take LoRA"
    apart = f"more than that, at {units:.1f} times the gradients"
    return (
        f"-> BiLoRA minus LoRA, at equal scale: {100 * away:+.1f} points of test accuracy (below "
        f"{100 * enough:.1f} is noise): {level if abs(away) < enough else apart}."
    )
