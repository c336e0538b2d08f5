"""One task of a sequence: the adapter trained on it, on one level or two."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from torch.optim import AdamW

from adapters import levels, two_level
from applications.data.batches import Batch, Collator, Encoded, training_batches
from applications.methods import HYPERGRADIENTS
from applications.models.loading import precision
from applications.options.arguments import LevelOptions, ModelOptions, RunOptions
from applications.options.sequences import SequenceOptions
from applications.runs import graphs
from applications.sequences.losses import incremental_cross_entropy
from applications.sequences.variants import Variant
from blo import Engine, Problem, ProblemGraph

Loss = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Task:
    """The examples of one task, and what is kept of those before it.

    Attributes:
        number: from 0.
        own: all of its training examples.
        rest: those of them that are not kept.
        memory: the kept ones, of it and of all tasks before.
        first: the number of classes that came before it.
        seen: the number of classes that have come with it.
    """

    number: int
    own: Encoded
    rest: Encoded
    memory: Encoded
    first: int
    seen: int

    def replayed(self) -> Encoded:
        """Its own, and what is kept of the tasks before."""
        return [*self.own, *(row for row in self.memory if row["labels"] < self.first)]


def updates(num_examples: int, options: SequenceOptions) -> tuple[int, int]:
    """The updates of a task's direction, and those of the magnitudes where they have their own."""
    batches = math.ceil(num_examples / options.per_device_train_batch_size)
    steps = max(1, math.ceil(options.num_train_epochs * batches))
    return steps, math.ceil(steps / options.lower_steps)


def cost(variant: Variant, num_examples: int, options: SequenceOptions) -> tuple[int, int]:
    """The gradient units of a task before it is trained, and its Hessian products at most.

    The first response of a difference takes up to two units more, to compare two radii.
    """
    steps, rounds = updates(num_examples, options)
    if variant.magnitudes == "afterwards":
        return steps + rounds, 0
    if variant.magnitudes != "upper":
        return steps, 0
    row, level = HYPERGRADIENTS[options.hypergradient], LevelOptions()
    price = row.price(level.hypergradient_products, options.lower_steps)
    return rounds * (options.lower_steps + 1 + price.gradients), rounds * price.products


@dataclass(frozen=True)
class Learner:
    """Trains tasks.

    Attributes:
        model: the adapted model.
        variant: how.
        options: of the sequence.
        place: which device and precision.
        collator: from rows to a padded batch.
        seed: of the order of the batches.
    """

    model: PeftModel
    variant: Variant
    options: SequenceOptions
    place: ModelOptions
    collator: Collator
    seed: int

    def learn(self, task: Task) -> int:
        """Train a task; returns the gradient units that it took.

        The direction takes as many steps in every variant: those of the task's own examples.
        """
        steps, rounds = updates(len(task.own), self.options)
        self.model.train()
        if self.variant.magnitudes == "upper":
            return self._two_level(task, rounds)
        rows = task.rest if self.variant.fitted else task.own
        rows = task.replayed() if self.variant.replay else rows
        spent = self._one_level(self._direction(), rows, task, steps, apart=True)
        if self.variant.magnitudes == "afterwards":
            magnitudes = self._adamw(levels(self.model).upper, self.options.upper_learning_rate)
            spent += self._one_level(magnitudes, task.memory, task, rounds, apart=False)
        return spent

    def _direction(self) -> AdamW:
        fixed = self.variant.magnitudes in ("frozen", "afterwards")
        trained = [p for p in self.model.parameters() if p.requires_grad]
        held = levels(self.model).lower if fixed else trained
        return self._adamw(held, self.options.learning_rate)

    def _adamw(self, parameters: Sequence[nn.Parameter], rate: float) -> AdamW:
        return graphs.adamw(parameters, rate, 0.0, RunOptions())

    def _batches(self, rows: Encoded, task: Task, stream: int) -> Any:
        size, seed = self.options.per_device_train_batch_size, 1000 * self.seed + 2 * task.number
        return training_batches(rows, self.collator, size=size, seed=seed + stream)

    def _loss(self, task: Task, *, apart: bool) -> Loss:
        def loss(batch: Batch) -> Tensor:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            return incremental_cross_entropy(
                self.model(**inputs).logits,
                batch["labels"],
                first=task.first,
                seen=task.seen,
                apart=apart,
            )

        return loss

    def _one_level(
        self, optimizer: AdamW, rows: Encoded, task: Task, steps: int, *, apart: bool
    ) -> int:
        problem = Problem(
            "lower" if apart else "upper",
            self._loss(task, apart=apart),
            self.model,
            optimizer,
            self._batches(rows, task, 0 if apart else 1),
            scheduler=graphs.scheduler(optimizer, steps, RunOptions()),
        )
        return self._run(ProblemGraph([problem]), steps)

    def _two_level(self, task: Task, rounds: int) -> int:
        """The magnitudes on the memory, above the direction on the rest of the task."""
        options, split = self.options, levels(self.model)
        upper = self._adamw(split.upper, options.upper_learning_rate)
        lower = self._adamw(split.lower, options.learning_rate)
        graph = two_level(
            self.model,
            loss=self._loss(task, apart=True),
            upper_loss=self._loss(task, apart=False),
            lower_batches=self._batches(task.rest, task, 0),
            upper_batches=self._batches(task.memory, task, 1),
            upper_optimizer=upper,
            lower_optimizer=lower,
            method=graphs.method(LevelOptions(hypergradient=options.hypergradient)),
            steps=options.lower_steps,
            upper_scheduler=graphs.scheduler(upper, rounds, RunOptions()),
            lower_scheduler=graphs.scheduler(lower, rounds * options.lower_steps, RunOptions()),
        )
        return self._run(graph, rounds)

    def _run(self, graph: ProblemGraph, rounds: int) -> int:
        engine = Engine(graph, precision=precision(self.place))
        engine.run(rounds)
        return engine.num_gradients
