"""One fine-tuning run, from options to a folder of results."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from adapters import export_lora
from applications.common import graphs, models
from applications.common.arguments import BI_LEVEL_METHODS, Method, Options
from applications.common.batches import encode, evaluation_batches, training_batches
from applications.common.errors import UsageError
from applications.common.examples import TaskData
from applications.common.metrics import Evaluation, evaluate
from applications.common.outputs import RunFolder, write_whole
from applications.common.report import run_report
from applications.common.splits import Splits, at_most, sizes, split_task, two_levels
from applications.common.summary import summarise
from applications.common.tasks import load_task
from applications.common.training import train
from blo import Engine, ProblemGraph

Say = Callable[[str], None]
DEFAULT_METHOD: Method = "bilora"


def finetune(options: Options, *, say: Say = print) -> dict[str, Any]:
    """Train one method on one task and write the folder of results.

    Returns:
        The summary, as in summary.json.

    Raises:
        UsageError: something that was asked for cannot be done; the message says how to go on.
    """
    options = completed(options)
    method, run = str(options.adapter.method), options.run
    device = models.device(options.model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    task = load_task(options.data)
    splits = split_task(task, options.data)
    model, tokenizer = models.adapted_model(
        options.model, options.adapter, task, method=method, seed=run.seed
    )
    score = scorer(model, tokenizer, task, options)
    updates, graph = problem_graph(model, tokenizer, task, splits, options)
    engine = Engine(graph, precision=models.precision(options.model))
    folder = prepared_folder(options)
    for note in splits.notes:
        say(f"{task.name}: {note}")
    say(f"{method}: {updates.num_lower_steps} updates, results in {folder.path}")
    held_out = splits.validation
    validate = None if held_out is None else lambda: score(held_out)
    training = train(engine, updates=updates, folder=folder, options=options, validate=validate)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    evaluations = {name: score(part) for name, part in parts.items() if part is not None}
    folder.save_adapter(model)
    if options.adapter.export_lora:
        write_whole(folder.path / "lora", lambda draft: export_lora(model, str(draft)))
    summary = summarise(
        options,
        task=task,
        train_size=len(splits.train),
        evaluations=evaluations,
        model=model,
        engine=engine,
        updates=updates,
        training=training,
        device=device,
    )
    folder.write_summary(summary)
    run_report(
        folder, summary=summary, evaluations=evaluations, sizes=sizes(splits), notes=splits.notes
    )
    return summary


def prepared_folder(options: Options) -> RunFolder:
    """The run's folder with its config.json; empty of earlier results unless they are resumed."""
    folder = RunFolder(Path(str(options.run.output_dir)))
    if not (options.run.resume and folder.checkpoints()):
        folder.clear()
    folder.write_config(options.as_dict())
    return folder


def completed(options: Options) -> Options:
    """The options with the method and the output folder filled in, checked together."""
    method = options.adapter.method or DEFAULT_METHOD
    penalty = options.adapter.orthogonality
    if penalty > 0 and method not in BI_LEVEL_METHODS:
        raise UsageError(
            f"argument --orthogonality: method {method} has no such penalty, got {penalty}; "
            f"leave it out, or choose one of {', '.join(BI_LEVEL_METHODS)}"
        )
    if options.adapter.export_lora and method != "bilora":
        raise UsageError(
            f"argument --export_lora: only bilora is folded to a plain LoRA, got --method {method}"
        )
    place = options.run.output_dir
    if place is None:
        data = options.data
        named = data.task_name or Path(str(data.train_file or data.data_dir)).stem
        place = f"runs/nlu/{named.replace('/', '-')}-{method}-seed{options.run.seed}"
    return replace(
        options,
        adapter=replace(options.adapter, method=method),
        run=replace(options.run, output_dir=place),
    )


def problem_graph(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskData,
    splits: Splits,
    options: Options,
) -> tuple[graphs.Plan, ProblemGraph]:
    """The planned updates and the graph of the method, with its data.

    Bi-level methods divide the training examples into D1 (lower) and D2 (upper); the others train
    on all of them.
    """
    data, run, level = options.data, options.run, options.levels

    def batches(examples: Dataset, seed: int) -> Any:
        encoded = encode(examples, tokenizer, data.max_seq_length)
        size = run.per_device_train_batch_size
        return training_batches(encoded, tokenizer, size=size, seed=seed)

    model.train()
    if options.adapter.method not in BI_LEVEL_METHODS:
        updates = graphs.plan(len(splits.train), steps=1, bi_level=False, options=run)
        return updates, graphs.one_level(model, batches(splits.train, run.seed), updates, run)
    lower, upper = two_levels(
        splits.train, task, upper_fraction=level.upper_fraction, seed=data.split_seed
    )
    updates = graphs.plan(len(lower), steps=level.lower_steps, bi_level=True, options=run)
    return updates, graphs.bi_level(
        model,
        lower_batches=batches(lower, run.seed),
        upper_batches=batches(upper, run.seed + 1),
        updates=updates,
        adapter=options.adapter,
        level=level,
        run=run,
    )


def scorer(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, task: TaskData, options: Options
) -> Callable[[Dataset], Evaluation]:
    """A function from examples to the model's evaluation on them (or ``max_eval_samples``)."""
    data = options.data

    def score(examples: Dataset) -> Evaluation:
        chosen = at_most(examples, data.max_eval_samples, task, data.split_seed)
        encoded = encode(chosen, tokenizer, data.max_seq_length)
        size = options.run.per_device_eval_batch_size
        return evaluate(
            model,
            evaluation_batches(encoded, tokenizer, size=size),
            kind=task.kind,
            device=models.device(options.model),
            precision=models.precision(options.model),
        )

    return score
