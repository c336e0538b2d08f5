"""Each method as a graph of problems over one adapted model."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from peft import PeftModel
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from adapters import Binarisation, DirectionOrthogonality, Orthogonality, levels, two_level
from applications.common.arguments import AdapterOptions, LevelOptions, RunOptions
from applications.common.batches import Batch
from blo import Method, Problem, ProblemGraph, alternating, cg, darts, neumann, t1t2


@dataclass(frozen=True)
class Plan:
    """How many updates: ``rounds`` of the top problem, each with ``steps`` of the lower one.

    With one level, a round is one update of it.
    """

    rounds: int
    steps: int
    bi_level: bool

    @property
    def num_lower_steps(self) -> int:
        """Updates of the weights: by the lower level, or by the only one."""
        return self.rounds * self.steps

    @property
    def num_upper_steps(self) -> int:
        """Updates of the upper level."""
        return self.rounds if self.bi_level else 0


def plan(num_examples: int, *, steps: int, bi_level: bool, options: RunOptions) -> Plan:
    """The updates that ``max_steps``, or the epochs over the lower level's examples, ask for."""
    per_round = steps if bi_level else 1
    total = options.max_steps
    if total < 0:
        batches = math.ceil(num_examples / options.per_device_train_batch_size)
        epochs = options.num_train_epochs
        total = max(1, math.ceil(epochs * batches / options.gradient_accumulation_steps))
    return Plan(math.ceil(total / per_round), per_round, bi_level)


def scheduler(optimizer: Optimizer, total: int, options: RunOptions) -> LRScheduler:
    """The learning-rate schedule over ``total`` updates, warm-up included."""
    warmup = math.ceil(options.warmup_ratio * total)
    schedule = get_scheduler(options.lr_scheduler_type, optimizer, warmup, total)
    assert isinstance(schedule, LRScheduler)
    return schedule


def method(options: LevelOptions) -> Method:
    """The hypergradient method that the options name."""
    scale, products = options.hypergradient_scale, options.hypergradient_products
    if options.hypergradient == "darts":
        return darts(scale)
    if options.hypergradient == "t1t2":
        return t1t2(scale)
    if options.hypergradient == "neumann":
        return neumann(products, scale=scale)
    if options.hypergradient == "cg":
        return cg(products)
    return alternating()


def one_level(
    model: PeftModel, batches: Iterable[Batch], updates: Plan, options: RunOptions
) -> ProblemGraph:
    """Plain training of all trainable parameters."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdamW(trainable, options.learning_rate, weight_decay=options.weight_decay)

    def loss(batch: Batch) -> Tensor:
        result: Tensor = model(**batch).loss
        return result

    problem = Problem(
        "lower",
        loss,
        model,
        optimizer,
        batches,
        scheduler=scheduler(optimizer, updates.num_lower_steps, options),
        accumulate=options.gradient_accumulation_steps,
    )
    return ProblemGraph([problem])


def bi_level(
    model: PeftModel,
    *,
    lower_batches: Iterable[Batch],
    upper_batches: Iterable[Batch],
    updates: Plan,
    adapter: AdapterOptions,
    level: LevelOptions,
    run: RunOptions,
) -> ProblemGraph:
    """The adapter's two levels, D1 below and D2 above."""
    split = levels(model)
    lower = AdamW(split.lower, run.learning_rate, weight_decay=run.weight_decay)
    upper_rate = level.upper_learning_rate or run.learning_rate
    upper = AdamW(split.upper, upper_rate, weight_decay=level.upper_weight_decay)

    def loss(batch: Batch) -> Tensor:
        result: Tensor = model(**batch).loss
        return result

    orthogonality = DirectionOrthogonality if adapter.method == "bidora" else Orthogonality
    weight, upper_weight = adapter.orthogonality, adapter.binarisation
    return two_level(
        model,
        loss=loss,
        upper_batches=upper_batches,
        lower_batches=lower_batches,
        upper_optimizer=upper,
        lower_optimizer=lower,
        method=method(level),
        steps=updates.steps,
        accumulate=run.gradient_accumulation_steps,
        upper_scheduler=scheduler(upper, updates.num_upper_steps, run),
        lower_scheduler=scheduler(lower, updates.num_lower_steps, run),
        penalty=[orthogonality(weight)] if weight > 0 else [],
        upper_penalty=[Binarisation(upper_weight)] if upper_weight > 0 else [],
    )
