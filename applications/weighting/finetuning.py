"""Fine-tuning with weighted sources, finished on the target."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from applications.data.splits import Splits
from applications.errors import UsageError
from applications.families.family import Family, Setting
from applications.models.soundness import check_known
from applications.options.arguments import Options
from applications.options.weighting import WeightingOptions
from applications.runs import graphs
from applications.runs.graphs import Plan
from applications.runs.phases import Model, Phase, Workload, phases, trainable
from applications.weighting.gathering import Gathered


def workload(
    options: Options,
    family: Family,
    gathered: Gathered,
    target: Splits,
    weights: Mapping[str, float],
) -> Workload:
    """All that fine-tuning needs: the sources are the training examples, the target's test split
    the test split. Methods with two levels see the weighted sources below and the target above.

    Raises:
        UsageError: no weight is left, or the model cannot be loaded.
    """
    if options.levels.cross_fitting is not None:
        raise UsageError(
            f"argument --cross_fitting: the target is the upper level's data, got "
            f"{options.levels.cross_fitting}; leave it out"
        )
    control, able = options.levels.control, ("none", "joint", "two_stage")
    if control not in (able if options.adapter.bi_level else able[:1]):
        raise UsageError(
            f"argument --control: the sources are the data below and the target that above, got "
            f"{control!r} with --method {options.adapter.method}; leave it out"
        )
    set_seed(options.run.seed)
    base, tokenizer = family.load_base(options.model, gathered.task)
    check_readable(options, family, gathered, target, base, tokenizer)
    mixed = [
        (group.examples, sum(weights[name] for name in group.members) / len(group.members))
        for group in gathered.groups
    ]
    if not any(weight > 0 for _, weight in mixed):
        raise UsageError("every source has the weight 0: nothing is left to train on")
    union = gathered.union
    splits = Splits(union, target.validation, target.test, target.notes)
    upper = target.train if options.adapter.bi_level else union
    return Workload(options, gathered.task, tokenizer, family, splits, base, union, upper, mixed)


def check_readable(
    options: Options,
    family: Family,
    gathered: Gathered,
    target: Splits,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Raise a UsageError for examples that the model cannot read, and for a target in words that
    it does not know; sources may be of such.
    """
    parts = {f"source {group.name!r}": group.examples for group in gathered.groups}
    parts |= {"target": target.train, "test": target.test}
    family.check(base, parts, Setting(options, gathered.task, tokenizer))
    check_known(family.texts(target.train), tokenizer, options.model.model_name_or_path)


def weighted_phases(
    work: Workload, target: Dataset, weighting: WeightingOptions
) -> Iterator[Phase]:
    """The phases of the method on the weighted sources, then ``target``."""
    finish = weighting.target_steps != 0
    model: Model | None = None
    for phase in phases(work):
        model = phase.model
        yield replace(phase, last=phase.last and not finish)
    if finish:
        assert model is not None
        yield on_target(work, model, target, weighting)


def on_target(work: Workload, model: Model, target: Dataset, weighting: WeightingOptions) -> Phase:
    """The same parameters trained further on the trusted examples."""
    options, run = work.options, work.options.run
    steps = weighting.target_steps
    if steps is None:
        steps = 3 * math.ceil(len(work.encoded(target)) / run.per_device_train_batch_size)
    rate = weighting.target_learning_rate or options.learning_rate
    optimizer = graphs.adamw(trainable(model), rate, run.weight_decay, run)
    graph = graphs.one_level(
        model,
        work.batches(target, run.seed + 3),
        optimizer=optimizer,
        schedule=graphs.scheduler(optimizer, steps, run),
        options=options,
        penalty=graphs.penalties(options.adapter) if options.adapter.bi_level else (),
    )
    return Phase("target", model, graph, Plan(steps, 1, False), True)
