"""One run of applications.reweight, from options to a folder of results."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from applications.data.splits import Splits, split_task
from applications.families.family import Family
from applications.options.arguments import Options
from applications.options.completion import completed
from applications.options.versions import versions
from applications.options.weighting import WeightingOptions
from applications.pages.writing import write_json
from applications.runs.claim import Claim
from applications.runs.experiment import held, trained_in
from applications.runs.interruption import Signals
from applications.runs.mark import early_mark
from applications.runs.outputs import SUMMARY_KEYS
from applications.weighting.comparing import named
from applications.weighting.explanation import as_data
from applications.weighting.finetuning import weighted_phases, workload
from applications.weighting.found import Found, Say, by_features
from applications.weighting.gathering import Gathered, gather, repeated
from applications.weighting.mixture import Weighed, write_mixture
from applications.weighting.online import online_phases
from applications.weighting.report import write_page


def prepared(options: Options, family: Family) -> tuple[Options, WeightingOptions]:
    """The options with LoRA as the default method, and a folder."""
    weighting = options.weighting or WeightingOptions()
    adapter = replace(options.adapter, method=options.adapter.method or "lora")
    place = options.run.output_dir
    if place is None:
        stem = Path(str(weighting.target_file)).stem
        place = f"runs/reweight/{stem}-{adapter.method}-seed{options.run.seed}"
    run = replace(options.run, output_dir=place)
    options = replace(options, adapter=adapter, run=run, weighting=weighting)
    return completed(options, family), weighting


def reweight(
    options: Options, family: Family, *, say: Say = print
) -> tuple[dict[str, Any], list[Weighed], list[dict[str, Any]]]:
    """Weigh the sources, fine-tune with the weights, finish on the target, write the folder.

    Returns:
        The summary, as in summary.json, the sources with their weights, and a row a control.
        Without fine-tuning the ``test_metric`` is that of the head on frozen features, finished on
        the target, and what belongs to a training is None.

    Raises:
        UsageError: something that was asked for cannot be done; the message says how to go on.
    """
    options, weighting = prepared(options, family)
    with held(options) as (claim, asked):
        return weighed(claim, asked, options, weighting, family, say)


def weighed(
    claim: Claim,
    asked: Signals,
    options: Options,
    weighting: WeightingOptions,
    family: Family,
    say: Say,
) -> tuple[dict[str, Any], list[Weighed], list[dict[str, Any]]]:
    """Do so in a folder that is held against other runs."""
    folder = claim.place
    model = options.model.model_name_or_path
    early = early_mark(family.command, str(options.adapter.method), model)
    claim.reserve(early)
    gathered = gather(options.data, weighting, family, folder)
    splits = split_task(gathered.task, options.data)
    splits = replace(splits, notes=(*splits.notes, *repeated(gathered, splits)))
    if not weighting.fine_tune:  # training says them itself
        for note in splits.notes:
            say(f"{gathered.task.name}: {note}")
    if weighting.route == "features":
        found, metric = by_features(options, weighting, family, gathered, splits, say)
        sources = write(folder, options, weighting, gathered, splits, found)
        if weighting.fine_tune:
            work = workload(options, family, gathered, splits, found.weights)
            phases = weighted_phases(work, splits.train, weighting)
            summary = trained_in(claim, asked, work, phases, say)
        else:
            summary = without_training(options, gathered, splits, metric)
            place = claim.begin(early, say).path
            write_json(place / "config.json", options.as_dict())
            write_json(place / "summary.json", summary)
            claim.finish()
    else:
        summary, found = along(claim, asked, options, weighting, family, gathered, splits, say)
        sources = write(folder, options, weighting, gathered, splits, found)
    say(f"weights: {folder / 'weights.json'}, {folder / 'mixture.json'}, {folder / 'weights.html'}")
    return summary, sources, found.controls


def along(
    claim: Claim,
    asked: Signals,
    options: Options,
    weighting: WeightingOptions,
    family: Family,
    gathered: Gathered,
    splits: Splits,
    say: Say,
) -> tuple[dict[str, Any], Found]:
    """The route along the fine-tuning."""
    work, weights, sequence = online_phases(options, family, gathered, splits, weighting)
    summary = trained_in(claim, asked, work, sequence, say)
    values = named(weights().detach(), gathered.names)
    return summary, Found(values, {}, {}, {"route": "online", "form": weighting.form})


def write(
    folder: Path,
    options: Options,
    weighting: WeightingOptions,
    gathered: Gathered,
    splits: Splits,
    found: Found,
) -> list[Weighed]:
    """Write weights.json, mixture.json and the page; returns the sources with their weights."""
    names = gathered.names
    groups_of = {n: [g for g in gathered.groups if n in g.members] for n in names}
    where = {g.members[0]: g.path for g in gathered.groups if len(g.members) == 1}
    sources = [
        Weighed(
            n,
            where.get(n, ""),
            sum(len(g.examples) for g in own),
            found.weights[n],
            found.low.get(n),
            found.high.get(n),
            part=sum(len(g.examples) / len(g.members) for g in own),
        )
        for n, own in groups_of.items()
    ]
    groups = [
        Weighed(
            g.name,
            g.path,
            len(g.examples),
            sum(found.weights[n] for n in g.members) / len(g.members),
            *(
                (None, None)
                if len(g.members) > 1
                else (found.low.get(g.members[0]), found.high.get(g.members[0]))
            ),
        )
        for g in gathered.groups
    ]
    write_mixture(folder, groups)
    write_json(
        folder / "weights.json",
        {
            "sources": {
                s.name: {"weight": s.weight, "low": s.low, "high": s.high, "size": s.size}
                for s in sources
            },
            "signs": {name: {**vars(s), "harms": s.harms} for name, s in found.signs.items()},
            **found.about,
            "controls": found.controls,
            "explained": as_data(found.explained),
            "target_examples": len(splits.train),
            "versions": versions(),
        },
    )
    write_page(
        folder,
        title=f"Weights of {len(names)} sources for {gathered.task.name}",
        lead=f"{len(splits.train)} trusted examples, route {found.about['route']}, form "
        f"{weighting.form}.",
        sources=sources,
        signs=found.signs,
        controls=found.controls,
        explained=found.explained,
        steps=found.steps,
        options=options.as_dict(),
        notes=splits.notes,
    )
    return sources


def without_training(
    options: Options, gathered: Gathered, splits: Splits, metric: float
) -> dict[str, Any]:
    """The summary of a run that learns weights alone."""
    known: dict[str, Any] = {
        "method": "frozen features",
        "task": gathered.task.name,
        "model": options.model.model_name_or_path,
        "seed": options.run.seed,
        "train_size": len(gathered.union),
        "metric_name": "pearson" if gathered.task.kind == "regression" else "accuracy",
        "test_metric": metric,
        "versions": versions(),
    }
    return {**dict.fromkeys(SUMMARY_KEYS), **known}
