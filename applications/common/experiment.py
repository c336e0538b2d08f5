"""One fine-tuning run, from options to a folder of results."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel

from adapters import export_lora
from applications.common import models
from applications.common.arguments import (
    MASKING_METHODS,
    AdapterOptions,
    LevelOptions,
    Method,
    Options,
    Retraining,
)
from applications.common.errors import UsageError
from applications.common.family import Family, Stage
from applications.common.metrics import Evaluation
from applications.common.outputs import RunFolder, write_whole
from applications.common.phases import Model, Phase, Workload, phases, prepare
from applications.common.report import run_report
from applications.common.splits import at_most, sizes, split_task
from applications.common.summary import at_step, num_parameters, summarise
from applications.common.training import Loop, Trained, put_values
from blo import Engine

Say = Callable[[str], None]
DEFAULT_METHOD: Method = "bilora"
DEFAULT_RETRAINING: Mapping[str, Retraining] = {"bidora": "values", "autolora": "ranks"}


def finetune(options: Options, family: Family, *, say: Say = print) -> dict[str, Any]:
    """Train one method on one task, phase after phase, and write the folder of results.

    Returns:
        The summary, as in summary.json.

    Raises:
        UsageError: something that was asked for cannot be done; the message says how to go on.
    """
    options = completed(options, family)
    device = models.device(options.model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    task = family.load_task(options.data)
    work = prepare(options, family, task, split_task(task, options.data))
    splits = work.splits
    held_out = selection_data(work)
    sequence = phases(work)
    first = next(sequence)  # what the adapter refuses is refused before files are touched
    counts = num_parameters(first.model, options.adapter)
    folder = prepared_folder(options)
    for note in splits.notes:
        say(f"{task.name}: {note}")
    say(f"{options.adapter.method}: results in {folder.path}")
    loop = Loop(folder, options)
    trained: list[tuple[str, Trained, Mapping[str, Evaluation]]] = []
    for phase in chain([first], sequence):
        say(f"{phase.name}: {phase.updates.rounds} updates")
        score = scorer(phase.model, work)
        validate = None if held_out is None else partial(score, held_out, "validation", "training")
        engine = Engine(phase.graph, precision=models.precision(options.model))
        done = loop.train(phase, engine, validate)
        parts = {"train": splits.train, "test": splits.test}
        ended = phase.last or phase.name == "search"
        found = {name: score(part, name) for name, part in parts.items()} if ended else {}
        trained.append((phase.name, done, found))
    evaluations = dict(found)
    if splits.validation is not None:
        evaluations["validation"] = score(splits.validation, "validation")
    model = phase.model
    folder.save_model(model)
    if options.adapter.export_lora and isinstance(model, PeftModel):
        write_whole(folder.path / "lora", lambda draft: export_lora(model, str(draft)))
    summary = summarise(
        work,
        evaluations=evaluations,
        counts=counts,
        trained=trained,
        selected=selected_step(work, phase, done, folder, held_out),
        device=device,
    )
    folder.write_summary(summary)
    run_report(
        folder, summary=summary, evaluations=evaluations, sizes=sizes(splits), notes=splits.notes
    )
    return summary


def selection_data(work: Workload) -> Dataset | None:
    """What evaluations during training look at: the validation split, or D2.

    Raises:
        UsageError: selection was asked for and there is nothing to select on.
    """
    run, splits = work.options.run, work.splits
    if run.select_on == "upper_data":
        return work.upper
    if splits.validation is None and run.metric_for_best_model is not None:
        raise UsageError(
            f"argument --metric_for_best_model: no validation split to select on, got "
            f"{run.metric_for_best_model!r}; cut one from the training examples with "
            f"--validation_fraction, or give --select_on upper_data"
        )
    return splits.validation


def selected_step(
    work: Workload, phase: Phase, done: Trained, folder: RunFolder, held_out: Dataset | None
) -> dict[str, Any] | None:
    """The numbers of the selected step, whose model goes to ``selected/``.

    The model that is left is that of the selected step.
    """
    if done.selected is None or held_out is None:
        return None
    score = scorer(phase.model, work)
    put_values(phase.model, folder.read_selected())
    parts = {"train": work.splits.train, "test": work.splits.test}
    found = {name: score(part, name, "selected") for name, part in parts.items()}
    chosen_on = score(held_out, "validation", "selected")
    result = at_step(phase.name, done.selected, found, chosen_on, work.task.metric)
    folder.save_model(phase.model, "selected")
    return result


def prepared_folder(options: Options) -> RunFolder:
    """The run's folder with its config.json; empty of earlier results unless they are resumed."""
    folder = RunFolder(Path(str(options.run.output_dir)))
    if not (options.run.resume and folder.checkpoints()):
        folder.clear()
    folder.write_config(options.as_dict())
    return folder


def completed(options: Options, family: Family) -> Options:
    """The options with method, retraining and output folder filled in, checked together."""
    adapter = replace(options.adapter, method=options.adapter.method or DEFAULT_METHOD)
    method, level = str(adapter.method), options.levels
    retraining = level.retraining
    if retraining is None:
        nested = adapter.bi_level and level.control in ("none", "same_data")
        default: Retraining = "none" if level.cross_fitting is None else "values"
        retraining = DEFAULT_RETRAINING.get(method, default) if nested else "none"
    level = replace(level, retraining=retraining)
    check_adapter(adapter)
    check_levels(adapter, level)
    if options.run.select_on == "upper_data":
        check_selection(adapter, level)
    place = options.run.output_dir
    if place is None:
        data = options.data
        named = data.task_name or Path(str(data.train_file or data.data_dir)).stem
        place = f"runs/{family.command}/{named.replace('/', '-')}-{method}-seed{options.run.seed}"
    run = replace(options.run, output_dir=place)
    return replace(options, adapter=adapter, levels=level, run=run)


def check_adapter(adapter: AdapterOptions) -> None:
    """Refuse options that the method does not have."""
    method = str(adapter.method)
    if adapter.orthogonality > 0 and method not in ("bilora", "bidora"):
        raise UsageError(
            f"argument --orthogonality: method {method} has no such penalty, got "
            f"{adapter.orthogonality}; leave it out, or choose one of bilora, bidora"
        )
    if adapter.export_lora and method not in ("bilora", "lora_weight_decay"):
        raise UsageError(
            f"argument --export_lora: only bilora and lora_weight_decay become a plain LoRA, got "
            f"--method {method}"
        )
    if adapter.mask_rate is not None and method not in MASKING_METHODS:
        raise UsageError(
            f"argument --mask_rate: method {method} has no masks, got {adapter.mask_rate}; choose "
            f"one of {', '.join(MASKING_METHODS)}"
        )


def check_levels(adapter: AdapterOptions, level: LevelOptions) -> None:
    """Refuse controls and phases that the method does not have."""
    method, control, retraining = str(adapter.method), level.control, level.retraining
    one_level = ("none", "lower_data_only")
    known = ("none", "joint", "two_stage", "same_data") if adapter.bi_level else one_level
    if control not in known:
        raise UsageError(
            f"argument --control: method {method} has the controls {', '.join(known)}, got "
            f"{control!r}"
        )
    if method == "lora_weight_decay":
        check_response(level)
    if level.cross_fitting is not None:
        fits = adapter.bi_level and control == "none" and level.upper_warmup_steps == 0
        if not fits or retraining == "none":
            raise UsageError(
                f"argument --cross_fitting: needs a bi-level method, a retraining, and neither "
                f"--control nor --upper_warmup_steps, got {level.cross_fitting} with --method "
                f"{method}, --control {control} and --retraining {retraining}"
            )
    if retraining == "none":
        return
    if not adapter.bi_level or control in ("joint", "two_stage"):
        raise UsageError(
            f"argument --retraining: there is no search to retrain after with --method {method} "
            f"--control {control}, got {retraining!r}; leave it out"
        )
    if retraining == "ranks" and method != "autolora":
        raise UsageError(
            f"argument --retraining: only autolora selects ranks, got 'ranks' with --method "
            f"{method}; use values"
        )


def check_response(level: LevelOptions) -> None:
    """Refuse what leaves out the response where the upper loss depends on nothing else."""
    remedy = "its decays act on held-out data through the lower level's response alone"
    if level.control in ("joint", "two_stage"):
        raise UsageError(
            f"argument --control: with --method lora_weight_decay {remedy}, got "
            f"{level.control!r}; choose none or same_data"
        )
    if level.hypergradient == "alternating":
        raise UsageError(
            f"argument --hypergradient: with --method lora_weight_decay {remedy}, got "
            f"'alternating'; choose another one, such as darts"
        )


def check_selection(adapter: AdapterOptions, level: LevelOptions) -> None:
    """Refuse to select on D2 where it is trained on like the rest, or does not exist."""
    whole = not adapter.bi_level and level.control != "lower_data_only"
    if whole or level.control in ("joint", "same_data") or level.retraining != "none":
        raise UsageError(
            f"argument --select_on: with --method {adapter.method}, --control {level.control} and "
            f"--retraining {level.retraining} all data are trained on, got 'upper_data'; use "
            f"validation with --validation_fraction"
        )


def scorer(model: Model, work: Workload) -> Callable[..., Evaluation]:
    """A function from examples, the name of their split and the stage of the model to the model's
    evaluation on them (or ``max_eval_samples``).
    """
    data = work.options.data

    def score(examples: Dataset, split: str, stage: Stage = "final") -> Evaluation:
        chosen = at_most(examples, data.max_eval_samples, work.task, data.split_seed)
        return work.family.evaluate(model, chosen, work, split=split, stage=stage)

    return score
