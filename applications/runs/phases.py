"""What a run trains, one phase after the other: a search, and what follows it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, set_seed

from adapters import retrain, retrain_config
from applications.data.batches import Collator, Encoded, training_batches
from applications.data.examples import TaskData
from applications.data.splits import Splits, folds, two_levels
from applications.errors import UsageError
from applications.families.family import Family, Setting
from applications.models import adapting
from applications.models.loading import device
from applications.models.soundness import check_known
from applications.options.arguments import Options
from applications.runs import graphs
from applications.runs.cross_fitting import cross_fitted
from applications.runs.graphs import Plan
from blo import ProblemGraph

Model = PreTrainedModel | PeftModel


class Stateful(Protocol):
    """What a checkpoint keeps beside the engine's state."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken."""


@dataclass(frozen=True)
class Phase:
    """One training of one model."""

    name: str
    model: Model
    graph: ProblemGraph
    updates: Plan
    last: bool
    """Whether it leaves the run's result; no phase follows."""
    stateful: tuple[Stateful, ...] = ()

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each problem, without its schedule."""
        problems = self.graph.problems
        groups = {problem.name: problem.optimizer.param_groups[0] for problem in problems}
        return {name: group.get("initial_lr", group["lr"]) for name, group in groups.items()}


@dataclass(frozen=True)
class Workload(Setting):
    """All that the phases of one run share.

    ``lower`` and ``upper`` are D1 and D2, a partition of the training examples. With the control
    ``same_data`` both are all of them. For one-level methods the controls ``two_stage``,
    ``lower_data_only`` and ``upper_data_only`` alone divide them; the last has D2 in both.
    """

    family: Family
    splits: Splits
    base: PreTrainedModel
    lower: Dataset
    upper: Dataset
    mixed: Sequence[tuple[Dataset, float]] = ()
    """The groups that the training examples consist of, with their weights; none: all alike."""

    def batches(self, examples: Dataset, seed: int) -> Any:
        """Shuffled training batches; of all training examples by their weights, where they have
        any.
        """
        size, collator = self.options.run.per_device_train_batch_size, self.collator
        if self.mixed and examples is self.splits.train:
            groups = [(self.encoded(group), weight) for group, weight in self.mixed]
            rows = [row for group, _ in groups for row in group]
            weights = [weight for group, weight in groups for _ in group]
            return training_batches(rows, collator, size=size, seed=seed, weights=weights)
        return training_batches(self.encoded(examples), collator, size=size, seed=seed)

    @property
    def collator(self) -> Collator:
        """From rows to a padded batch."""
        return self.family.collator(self.tokenizer)

    def encoded(self, examples: Dataset) -> Encoded:
        """Training rows."""
        return self.family.encode(examples, self.tokenizer, self.options)


def prepare(options: Options, family: Family, task: TaskData, splits: Splits) -> Workload:
    """The base model, and the training examples divided between the levels.

    The seed is set first: new heads and adapters' factors are drawn from it.

    Raises:
        UsageError: the model cannot be loaded or cannot read the examples, or there are too few of
            them to divide.
    """
    set_seed(options.run.seed)
    base, tokenizer = family.load_base(options.model, task)
    level, train = options.levels, splits.train
    lower, upper = train, train
    whole = level.control in ("joint", "same_data") or level.cross_fitting is not None
    divided = not whole if options.adapter.bi_level else level.control != "none"
    if divided:
        fraction, seed = level.upper_fraction, options.data.split_seed
        lower, upper = two_levels(train, task, upper_fraction=fraction, seed=seed)
    if level.control == "upper_data_only":
        lower = upper
    work = Workload(options, task, tokenizer, family, splits, base, lower, upper)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    family.check(base, {name: part for name, part in parts.items() if part is not None}, work)
    check_known(family.texts(splits.train), tokenizer, options.model.model_name_or_path)
    return work


def phases(work: Workload) -> Iterator[Phase]:
    """The phases in their order. Each is built when the one before it has been trained.

    One level: ``training``, and with the control two_stage ``finishing``. Two levels: ``warm_up``
    (where asked for), ``search``, and ``retraining`` where the method has one. Controls:
    ``training`` of both levels' parameters (joint); ``training`` of the lower ones, then
    ``values`` (two_stage).
    """
    options = work.options
    adapter, level, run = options.adapter, options.levels, options.run
    steps = graphs.num_updates(num_rows(work, work.lower), run)
    config = adapting.adapter_config(adapter, work.family.task_type, num_steps=steps)
    model = adapting.adapted(work.base, config, adapter)
    place(model, options)
    if not adapter.bi_level:
        yield from one_level(work, model, steps)
    elif level.control == "joint":
        yield joint(work, model, steps)
    elif level.control == "two_stage":
        yield from two_stage(work, model, steps)
    elif level.cross_fitting is not None:
        yield cross_fitting(work, model, steps, level.cross_fitting)
        yield retraining(work, model)
    else:
        yield from search(work, model, steps)
        if level.retraining != "none":
            yield retraining(work, model)


def place(model: nn.Module, options: Options) -> None:
    """Move the model to the device of the run, in training mode."""
    model.to(device(options.model))
    model.train()


def num_rows(work: Workload, examples: Dataset) -> int:
    """The number of training rows in an epoch over some examples."""
    return len(work.encoded(examples))


def one_level(work: Workload, model: Model, steps: int) -> Iterator[Phase]:
    """Plain training of all trainable parameters; with the control two_stage then as many passes
    over D2, with an optimizer of its own.
    """
    finished = work.options.levels.control == "two_stage"
    yield plain(work, model, steps, last=not finished)
    if finished:
        passes = steps / len(work.lower)
        yield plain(work, model, math.ceil(passes * len(work.upper)), last=True, upper=True)


def plain(work: Workload, model: Model, steps: int, *, last: bool, upper: bool = False) -> Phase:
    """All trainable parameters on D1, or on D2."""
    options, run = work.options, work.options.run
    optimizer = graphs.adamw(trainable(model), options.learning_rate, run.weight_decay, run)
    row = options.adapter.row
    hook = row.finishing if upper else row.hook
    stateful = () if hook is None else (hook(optimizer, model, steps, None),)
    examples, seed = (work.upper, run.seed + 1) if upper else (work.lower, run.seed)
    graph = graphs.one_level(
        model,
        work.batches(examples, seed),
        optimizer=optimizer,
        schedule=graphs.scheduler(optimizer, steps, run),
        options=options,
    )
    name = "finishing" if upper else "training"
    return Phase(name, model, graph, Plan(steps, 1, False), last, stateful)


def hooks(
    work: Workload, model: Model, optimizer: Optimizer, steps: int, upper: Optimizer | None = None
) -> tuple[Stateful, ...]:
    """What acts after each step of the optimizer of A and B, where the method has such a thing."""
    hook = work.options.adapter.row.hook
    return () if hook is None else (hook(optimizer, model, steps, upper),)


def joint(work: Workload, model: Model, steps: int) -> Phase:
    """The parameters of both levels trained together on all the data, each at its own rate."""
    options, run = work.options, work.options.run
    optimizer = graphs.lower_adamw(model, options)
    (upper,) = graphs.upper_adamw(model, options).param_groups
    optimizer.add_param_group(upper)
    graph = graphs.one_level(
        model,
        work.batches(work.splits.train, run.seed),
        optimizer=optimizer,
        schedule=graphs.scheduler(optimizer, steps, run),
        options=options,
        penalty=[*graphs.penalties(options.adapter), *graphs.upper_penalties(options.adapter)],
    )
    stateful = hooks(work, model, optimizer, steps)
    return Phase("training", model, graph, Plan(steps, 1, False), True, stateful)


def two_stage(work: Workload, model: Model, steps: int) -> Iterator[Phase]:
    """The lower level on D1 to its end, then the upper one on D2: no nesting."""
    options, run = work.options, work.options.run
    lower = graphs.lower_adamw(model, options)
    graph = graphs.one_level(
        model,
        work.batches(work.lower, run.seed),
        optimizer=lower,
        schedule=graphs.scheduler(lower, steps, run),
        options=options,
        penalty=graphs.penalties(options.adapter),
    )
    yield Phase("training", model, graph, Plan(steps, 1, False), False)
    upper_steps = -(-steps // options.levels.lower_steps)
    upper = graphs.upper_adamw(model, options)
    graph = graphs.one_level(
        model,
        work.batches(work.upper, run.seed + 1),
        optimizer=upper,
        schedule=graphs.upper_scheduler(upper, upper_steps, options),
        options=options,
        penalty=graphs.upper_penalties(options.adapter),
        name="upper",
    )
    yield Phase("values", model, graph, Plan(upper_steps, 0, True), True)


def search(work: Workload, model: Model, steps: int) -> Iterator[Phase]:
    """The two levels, after a warm-up of the lower one where it is asked for."""
    options, level, run = work.options, work.options.levels, work.options.run
    # Rounds are whole: the last one may take a few lower steps more than were asked for.
    warm_up = level.upper_warmup_steps
    if warm_up >= steps:
        raise UsageError(
            f"argument --upper_warmup_steps: must be less than the {steps} updates of the run, got "
            f"{warm_up}"
        )
    updates = Plan(-(-(steps - warm_up) // level.lower_steps), level.lower_steps, True)
    lower = graphs.lower_adamw(model, options)
    schedule = graphs.scheduler(lower, warm_up + updates.num_lower_steps, run)
    lower_batches = work.batches(work.lower, run.seed)
    if warm_up:
        graph = graphs.one_level(
            model,
            lower_batches,
            optimizer=lower,
            schedule=schedule,
            options=options,
            penalty=graphs.penalties(options.adapter),
        )
        yield Phase("warm_up", model, graph, Plan(warm_up, 1, False), False)
    graph = graphs.bi_level(
        model,
        lower_batches=lower_batches,
        upper_batches=work.batches(work.upper, run.seed + 1),
        lower=lower,
        lower_schedule=schedule,
        updates=updates,
        options=options,
    )
    (upper,) = (p.optimizer for p in graph.problems if p.name == "upper")
    stateful = hooks(work, model, lower, updates.num_lower_steps, upper)
    yield Phase("search", model, graph, updates, level.retraining == "none", stateful)


def cross_fitting(work: Workload, model: Model, steps: int, count: int) -> Phase:
    """One upper level over a lower one for each fold; the first fold's model is the result."""
    options = work.options
    updates = Plan(-(-steps // options.levels.lower_steps), options.levels.lower_steps, True)
    size, collator = options.run.per_device_train_batch_size, work.family.collator(work.tokenizer)
    parts = folds(work.splits.train, work.task, count=count, seed=options.data.split_seed)
    graph = cross_fitted(
        model,
        folds=[work.family.encode(part, work.tokenizer, options) for part in parts],
        collator=collator,
        batches=lambda rows, seed: training_batches(rows, collator, size=size, seed=seed),
        updates=updates,
        options=options,
    )
    return Phase("search", model, graph, updates, False)


def retraining(work: Workload, searched: Model) -> Phase:
    """All training examples from the start, with what the search has found.

    ``values``: the upper parameters fixed, the lower ones new. ``ranks``: stock LoRA of the ranks
    selected, on the base model with the head it started with.
    """
    options = work.options
    adapter, level, run = options.adapter, options.levels, options.run
    assert isinstance(searched, PeftModel)
    if level.retraining == "ranks":
        config = retrain_config(searched)
        set_seed(run.seed)
        base, _ = work.family.load_base(options.model, work.task)
        model: Model = adapting.adapted(base, config, adapter)
        place(model, options)
        parameters, penalty = trainable(model), list[Any]()
    else:
        model, parameters = searched, retrain(searched)
        penalty = graphs.penalties(adapter)
    steps = level.retraining_steps or graphs.num_updates(num_rows(work, work.splits.train), run)
    decay = level.retraining_weight_decay
    optimizer = graphs.adamw(
        parameters,
        level.retraining_learning_rate or options.learning_rate,
        run.weight_decay if decay is None else decay,
        run,
    )
    graph = graphs.one_level(
        model,
        work.batches(work.splits.train, run.seed + 2),
        optimizer=optimizer,
        schedule=graphs.scheduler(optimizer, steps, run),
        options=options,
        penalty=penalty,
    )
    return Phase("retraining", model, graph, Plan(steps, 1, False), True)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that require a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
