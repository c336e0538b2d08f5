"""The route along the fine-tuning: weights of sources above, the adapter below, step by step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import TaskType
from torch import Tensor, nn

from applications.data.batches import Batch, training_batches
from applications.data.splits import Splits
from applications.errors import UsageError
from applications.families.family import Family
from applications.models import adapting
from applications.options.arguments import Options
from applications.options.weighting import WeightingOptions
from applications.runs import graphs
from applications.runs.graphs import Plan
from applications.runs.phases import Phase, Workload, hooks, num_rows, place, trainable
from applications.weighting.finetuning import on_target, workload
from applications.weighting.gathering import Gathered
from applications.weighting.weights import Weights
from blo import Problem, ProblemGraph

IGNORED = -100
MEMBERS = "members"
LR = 0.05


class SourceWeights(nn.Module):
    """The upper values of the weights of sources, as a module."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.form = weights
        self.values = nn.Parameter(weights.start.float())

    def forward(self) -> Tensor:
        """The weights ``(sources,)``."""
        return self.form(self.values)


def each_loss(outputs: Any, labels: Tensor, task_type: TaskType) -> Tensor:
    """The loss of each row ``(rows,)``: of texts their own, of words and tokens the mean of those
    that have a label.
    """
    logits = outputs.logits.float()
    if task_type == TaskType.SEQ_CLS:
        if logits.shape[-1] == 1:
            return F.mse_loss(logits[:, 0], labels.float(), reduction="none")
        return F.cross_entropy(logits, labels, reduction="none")
    if task_type == TaskType.CAUSAL_LM:
        logits, labels = logits[:, :-1], labels[:, 1:]
    found = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return found.sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def num_answers(labels: Tensor, task_type: TaskType) -> Tensor:
    """What each row counts in the model's own loss ``(rows,)``: a text 1, else its answers."""
    if task_type == TaskType.SEQ_CLS:
        return torch.ones(len(labels), device=labels.device)
    answers = labels[:, 1:] if task_type == TaskType.CAUSAL_LM else labels
    return (answers != IGNORED).sum(1)


def online(
    work: Workload,
    groups: Sequence[tuple[Dataset, Sequence[float]]],
    sizes: Tensor,
    target: Dataset,
    weighting: WeightingOptions,
) -> tuple[Phase, SourceWeights]:
    """One phase with two levels: ``min_w L_target(adapter*(w))`` over the weights, the adapter
    below on batches of all sources, each row's loss times the mean weight of its sources.

    Args:
        work: the model, and the sources as training examples.
        groups: examples, and how they belong to the sources ``(sources,)``.
        sizes: examples of each source.
        target: the trusted examples.
        weighting: the form of the weights and their learning rate.

    Raises:
        UsageError: the adapter has an upper level of its own.
    """
    options, level, run = work.options, work.options.levels, work.options.run
    if options.adapter.bi_level:
        raise UsageError(
            f"argument --method: with --route online the weights are the upper level, got "
            f"{options.adapter.method!r}, which has one of its own; use --route features"
        )
    steps = graphs.num_updates(num_rows(work, work.lower), run)
    config = adapting.adapter_config(options.adapter, work.family.task_type, num_steps=steps)
    model = adapting.adapted(work.base, config, options.adapter)
    place(model, options)
    weights = SourceWeights(Weights(sizes, weighting.form, weighting.floor))  # type: ignore[arg-type]
    weights.to(next(model.parameters()).device)
    updates = Plan(-(-steps // level.lower_steps), level.lower_steps, True)
    lower = graphs.adamw(trainable(model), options.learning_rate, run.weight_decay, run)
    upper = torch.optim.Adam(weights.parameters(), weighting.weight_learning_rate or LR)

    def weighted_loss(batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != MEMBERS}
        outputs, labels = model(**inputs), batch["labels"]
        each = each_loss(outputs, labels, work.family.task_type)
        result: Tensor = ((batch[MEMBERS] @ weights()) * each).mean()
        if getattr(config, "orth_reg_weight", 0):  # AdaLoRA's penalty, which PEFT adds to the loss
            shares = num_answers(labels, work.family.task_type)
            result = result + outputs.loss - (each * shares).sum() / shares.sum()
        return result

    lower_loss = graphs.averaged(model, weighted_loss, options.adapter)
    upper_loss = graphs.training_loss(model, options.adapter)
    if weighting.form == "non_negative":
        upper.register_step_post_hook(lambda *_: non_negative(weights))
    problems = [
        Problem(
            "weights",
            upper_loss,
            (model, weights),
            upper,
            work.batches(target, run.seed + 1),
            accumulate=run.gradient_accumulation_steps,
        ),
        Problem(
            "lower",
            lower_loss,
            (model, weights),
            lower,
            source_batches(work, groups),
            scheduler=graphs.scheduler(lower, updates.num_lower_steps, run),
            accumulate=run.gradient_accumulation_steps,
            steps=updates.steps,
            method=graphs.method(level),
        ),
    ]
    graph = ProblemGraph(problems)
    stateful = hooks(work, model, lower, updates.num_lower_steps)
    return Phase("sources", model, graph, updates, False, stateful), weights


def online_phases(
    options: Options,
    family: Family,
    gathered: Gathered,
    target: Splits,
    weighting: WeightingOptions,
) -> tuple[Workload, SourceWeights, Iterator[Phase]]:
    """The two levels over all sources, then the target where that is asked for; with what they
    share, and the weights that they move.
    """
    names = gathered.names
    work = workload(options, family, gathered, target, dict.fromkeys(names, 1.0))
    belongs = [[1 / len(g.members) * (n in g.members) for n in names] for g in gathered.groups]
    groups = list(zip([g.examples for g in gathered.groups], belongs, strict=True))
    sizes = sum(len(rows) * torch.tensor(share) for rows, share in groups)
    assert isinstance(sizes, Tensor)
    first, weights = online(work, groups, sizes, target.train, weighting)
    finish = weighting.target_steps != 0

    def sequence() -> Iterator[Phase]:
        yield replace(first, last=not finish)
        if finish:
            yield on_target(work, first.model, target.train, weighting)

    return work, weights, sequence()


def non_negative(weights: SourceWeights) -> None:
    """Project onto weights of at least 0."""
    with torch.no_grad():
        weights.values.clamp_(min=0)


def source_batches(work: Workload, groups: Sequence[tuple[Dataset, Sequence[float]]]) -> Any:
    """Shuffled batches of all sources, with ``members`` ``(rows, sources)``."""
    rows = [
        {**row, MEMBERS: list(belongs)}
        for examples, belongs in groups
        for row in work.encoded(examples)
    ]
    run = work.options.run
    return training_batches(
        rows,
        with_members(work.collator),
        size=run.per_device_train_batch_size,
        seed=run.seed,
    )


def with_members(collator: Callable[..., Batch]) -> Callable[[list[dict[str, Any]]], Batch]:
    """The collator, beside which the rows' sources are stacked."""

    def collate(rows: list[dict[str, Any]]) -> Batch:
        members = torch.tensor([row[MEMBERS] for row in rows])
        bare = [{k: v for k, v in row.items() if k != MEMBERS} for row in rows]
        return {**collator(bare), MEMBERS: members}

    return collate
