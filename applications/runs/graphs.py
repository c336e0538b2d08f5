"""Each method as a graph of problems over one adapted model."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from adapters import levels, mean_loss, penalised, two_level
from applications import processes
from applications.data.batches import Batch
from applications.methods import HYPERGRADIENTS, Penalty
from applications.options.arguments import AdapterOptions, LevelOptions, Options, RunOptions
from blo import Method, Problem, ProblemGraph

Loss = Callable[[Batch], Any]


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


def num_updates(num_examples: int, options: RunOptions) -> int:
    """The updates that ``max_steps``, or the epochs over ``num_examples``, ask for."""
    if options.max_steps > 0:
        return options.max_steps
    batches = math.ceil(num_examples / (options.per_device_train_batch_size * processes.count()))
    epochs = options.num_train_epochs
    return max(1, math.ceil(epochs * batches / options.gradient_accumulation_steps))


def adamw(
    parameters: Sequence[nn.Parameter], rate: float, decay: float, options: RunOptions
) -> AdamW:
    """AdamW, by default that of PyTorch."""
    betas = (options.adam_beta1, options.adam_beta2)
    return AdamW(parameters, rate, betas, options.adam_epsilon, weight_decay=decay)


def scheduler(optimizer: Optimizer, total: int, options: RunOptions) -> LRScheduler:
    """The learning-rate schedule over ``total`` updates, warm-up included."""
    warmup = math.ceil(options.warmup_ratio * total)
    schedule = get_scheduler(options.lr_scheduler_type, optimizer, warmup, total)
    assert isinstance(schedule, LRScheduler)
    return schedule


def upper_scheduler(optimizer: Optimizer, total: int, options: Options) -> LRScheduler:
    """The upper level's schedule, that of the lower one where it has none of its own."""
    kind = options.levels.upper_lr_scheduler_type or options.run.lr_scheduler_type
    return scheduler(optimizer, total, replace(options.run, lr_scheduler_type=kind))


def method(options: LevelOptions) -> Method:
    """The hypergradient method that the options name."""
    row = HYPERGRADIENTS[options.hypergradient]
    known = {
        "scale": options.hypergradient_scale,
        "products": options.hypergradient_products,
        "damping": options.hypergradient_damping,
    }
    return row.make(**{parameter: known[name] for parameter, name in row.takes.items()})


def training_loss(model: nn.Module, options: AdapterOptions) -> Loss:
    """The model's own loss; under LoRA Dropout its mean under ``num_masks`` masks."""

    def loss(batch: Batch) -> Tensor:
        result: Tensor = model(**batch).loss
        return result

    return averaged(model, loss, options)


def averaged(model: nn.Module, loss: Loss, options: AdapterOptions) -> Loss:
    """The loss; under LoRA Dropout its mean under ``num_masks`` masks."""
    return mean_loss(model, loss, num_masks=options.num_masks) if options.masks else loss


def penalties(options: AdapterOptions) -> list[Penalty]:
    """What is added to the lower loss."""
    row, weight = options.row, options.orthogonality
    made = [] if row.penalty is None else [row.penalty()]
    if row.orthogonality is not None and weight > 0:
        made.append(row.orthogonality(weight, options.orthogonality_squared))
    return made


def upper_penalties(options: AdapterOptions) -> list[Penalty]:
    """What is added to the upper loss."""
    row, weight = options.row, options.binarisation
    return [row.binarisation(weight)] if row.binarisation is not None and weight > 0 else []


def lower_adamw(model: nn.Module, options: Options) -> AdamW:
    """The optimizer of the lower level."""
    run = options.run
    return adamw(levels(model).lower, options.learning_rate, run.weight_decay, run)


def upper_adamw(model: nn.Module, options: Options) -> AdamW:
    """The optimizer of the upper level."""
    level, rate = options.levels, options.upper_learning_rate
    run = replace(options.run, adam_epsilon=level.upper_adam_epsilon)
    return adamw(levels(model).upper, rate, level.upper_weight_decay, run)


def one_level(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    optimizer: Optimizer,
    schedule: LRScheduler,
    options: Options,
    penalty: Sequence[Penalty] = (),
    name: str = "lower",
) -> ProblemGraph:
    """Plain training of what the optimizer holds."""
    problem = Problem(
        name,
        penalised(model, training_loss(model, options.adapter), penalty),
        model,
        optimizer,
        batches,
        scheduler=schedule,
        accumulate=options.run.gradient_accumulation_steps,
    )
    return ProblemGraph([problem])


def bi_level(
    model: nn.Module,
    *,
    lower_batches: Iterable[Batch],
    upper_batches: Iterable[Batch],
    lower: Optimizer,
    lower_schedule: LRScheduler,
    updates: Plan,
    options: Options,
) -> ProblemGraph:
    """The adapter's two levels, D1 below and D2 above."""
    adapter = options.adapter
    upper = upper_adamw(model, options)
    return two_level(
        model,
        loss=training_loss(model, adapter),
        upper_batches=upper_batches,
        lower_batches=lower_batches,
        upper_optimizer=upper,
        lower_optimizer=lower,
        method=method(options.levels),
        steps=updates.steps,
        accumulate=options.run.gradient_accumulation_steps,
        upper_scheduler=upper_scheduler(upper, updates.num_upper_steps, options),
        lower_scheduler=lower_schedule,
        penalty=penalties(adapter),
        upper_penalty=upper_penalties(adapter),
    )
