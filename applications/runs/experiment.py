"""One fine-tuning run, from options to a folder of results."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from datasets import Dataset

from applications import processes
from applications.data.splits import at_most, split_task
from applications.errors import UsageError
from applications.families.family import Family, Stage
from applications.families.metrics import Evaluation
from applications.models.loading import device, precision
from applications.options.arguments import Options
from applications.options.completion import completed
from applications.options.unused import unused_lines
from applications.pages.writing import write_whole
from applications.runs.card import Told, write_cards
from applications.runs.chance import chance_notes
from applications.runs.claim import Claim, claimed
from applications.runs.ending import GoesOn, resumed
from applications.runs.interruption import Interrupted, Signals, signals
from applications.runs.mark import mark_of
from applications.runs.outputs import RunFolder
from applications.runs.phases import Model, Phase, Workload, phases, prepare
from applications.runs.plan import cut_notes, plan_lines, watching_line
from applications.runs.report import run_report
from applications.runs.saved import save_model, save_task
from applications.runs.summary import Ended, at_step, num_parameters, summarise
from applications.runs.trackers import check_trackers, trackers
from applications.runs.training import Loop, Trained, put_values
from blo import Engine

Say = Callable[[str], None]


def finetune(options: Options, family: Family, *, say: Say = print) -> dict[str, Any]:
    """Train one method on one task, phase after phase, and write the folder of results.

    Returns:
        The summary, as in summary.json.

    Raises:
        UsageError: something that was asked for cannot be done; the message says how to go on.
    """
    options = completed(options, family)
    check_trackers(options.run.report_to or ())
    with held(options) as (claim, asked):
        place = device(options.model)
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)
        task = family.load_task(options.data)
        work = prepare(options, family, task, split_task(task, options.data))
        return trained_in(claim, asked, work, phases(work), say)


@contextmanager
def held(options: Options) -> Iterator[tuple[Claim, Signals]]:
    """The run's folder, held against other runs, and the signals that end the run.

    Raises:
        Interrupted: after a signal, with what is true of the run then.
    """
    with signals() as asked, claimed(options) as claim:
        try:
            yield claim, asked
        except KeyboardInterrupt:
            number = signal.SIGINT if asked.asked is None else asked.asked
            first = processes.is_first()  # which alone knows when its checkpoint is written
            said = how_to_go_on(claim) if first else "interrupted with the first process"
            raise Interrupted(said, number) from None


def trained_in(
    claim: Claim, asked: Signals, work: Workload, sequence: Iterator[Phase], say: Say
) -> dict[str, Any]:
    """Train the phases in a folder that is held, and write it; returns the summary."""
    options, task, splits, family = work.options, work.task, work.splits, work.family
    place = device(options.model)
    mark = mark_of(
        family.command,
        method=str(options.adapter.method),
        model=(options.model.model_name_or_path, work.base),
        splits=task.splits,
        device=place,
    )
    held_out = selection_data(work)
    sequence = processes.drawn_apart(sequence)
    first = next(sequence)  # what the adapter refuses is refused before files are touched
    counts = num_parameters(first.model, options.adapter)
    folder = claim.begin(mark, say)
    folder.write_config(options.as_dict())
    work = replace(work, options=options.writing_to(folder.path))
    remarks = (*splits.notes, *cut_notes(work))
    for note in remarks:
        say(f"{task.name}: {note}")
    say(f"{options.adapter.method}: results in {claim.place}")
    number = None if held_out is None else len(evaluated_of(held_out, work))
    for line in (*unused_lines(options, family.command), watching_line(work, number)):
        if line is not None:
            say(line)
    save_task(folder.path, work)
    loop = Loop(folder, options, asked, say, trackers=trackers(options, folder.path))
    passed: list[Ended] = []
    for phase in chain([first], sequence):
        for told in plan_lines(phase, work):
            say(told)
        score = scorer(phase.model, work)
        validate = None if held_out is None else partial(score, held_out, "validation", "training")
        engine = Engine(phase.graph, precision=precision(options.model))
        done = loop.train(phase, engine, validate)
        parts = {"train": splits.train, "test": splits.test}
        ended = phase.last or phase.name == "search"
        found = {name: score(part, name) for name, part in parts.items()} if ended else {}
        passed.append(Ended(phase.name, phase.learning_rates, done, found))
    evaluations = dict(found)
    if splits.validation is not None:
        evaluations["validation"] = score(splits.validation, "validation")
    model = phase.model
    left = save_model(folder.path, model, work)
    export = options.adapter.row.export
    if options.adapter.export_lora and export is not None:
        write_whole(folder.path / "lora", lambda draft: export(model, str(draft)))
    summary = summarise(
        work,
        evaluations=evaluations,
        counts=counts,
        ended=passed,
        selected=selected_step(work, phase, done, folder, held_out),
        device=place,
    )
    folder.write_summary(summary)
    if processes.is_first():
        left += chance_notes(work, evaluations, folder.path)
        for note in left:
            say(note)
        notes = (*remarks, *left)
        levels = {"lower": len(work.lower), "upper": len(work.upper)}
        write_cards(folder.path, Told(options, summary, family, claim.place, levels, notes))
        run_report(folder, work, summary=summary, evaluations=evaluations, notes=notes)
    loop.trackers.end(summary["metrics"], summary["num_lower_steps"])
    claim.finish()
    return summary


def how_to_go_on(claim: Claim) -> str:
    """What is true of a run that was interrupted."""
    again, goes_on = GoesOn.REPEATED.value, resumed()
    if claim.folder is None:
        return f"interrupted before training began: {again}"
    found = claim.folder.checkpoints()
    if not found:
        return f"interrupted before the first checkpoint, nothing is kept: {again}"
    return f"interrupted: {goes_on.value}, {found[-1].name}"


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
    put_values(phase.model, processes.from_first(folder.read_selected))
    parts = {"train": work.splits.train, "test": work.splits.test}
    found = {name: score(part, name, "selected") for name, part in parts.items()}
    chosen_on = score(held_out, "validation", "selected")
    result = at_step(phase.name, done.selected, found, chosen_on, work)
    save_model(folder.path, phase.model, work, "selected")
    return result


def scorer(model: Model, work: Workload) -> Callable[..., Evaluation]:
    """A function from examples, the name of their split and the stage of the model to the model's
    evaluation on them (or ``max_eval_samples``).
    """

    def score(examples: Dataset, split: str, stage: Stage = "final") -> Evaluation:
        chosen = evaluated_of(examples, work)
        return work.family.evaluate(model, chosen, work, split=split, stage=stage)

    return score


def evaluated_of(examples: Dataset, work: Workload) -> Dataset:
    """The examples that are evaluated, ``max_eval_samples`` of them at most."""
    data = work.options.data
    return at_most(examples, data.max_eval_samples, work.task, data.split_seed)
