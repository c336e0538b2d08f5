"""One upper problem over K lower ones: every training example is held out once.

Fold k's model trains on all folds but k; the upper parameters, which all models share, minimise the
mean over the folds of the loss on fold k at fold k's solution:

    min_x  1/K sum_k L(D_k; x, y_k*(x)),      y_k*(x) = argmin_y L(D without D_k; x, y)

With one split the upper level learns from a fifth of the examples, and the lower one never sees
them; here each level sees them all. The price is K lower problems a round. A retraining on all
examples with x fixed follows.

Ours: neither BiLoRA's nor BiDoRA's paper has it.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from adapters import levels, penalised
from applications import processes
from applications.data.batches import Batch, Collator, Encoded
from applications.options.arguments import Options
from applications.runs import graphs
from blo import Problem, ProblemGraph

FOLD = "fold"


@dataclass
class FoldBatches(Sampler[list[int]]):
    """Batches with the same number of rows of every fold, in an order drawn by ``generator``.

    An epoch ends when a fold has run out; the rows left over are others in the next one.
    """

    members: Sequence[Sequence[int]]
    rows: int
    generator: torch.Generator

    def __iter__(self) -> Iterator[list[int]]:
        orders = [
            [rows[k] for k in torch.randperm(len(rows), generator=self.generator).tolist()]
            for rows in self.members
        ]
        for start in range(0, len(self) * self.rows, self.rows):
            yield [row for order in orders for row in order[start : start + self.rows]]

    def __len__(self) -> int:
        return max(1, min(len(rows) for rows in self.members) // self.rows)


def held_out_batches(folds: Sequence[Encoded], collator: Collator, *, size: int, seed: int) -> Any:
    """Batches of at least ``size`` rows, equally many of each fold, which they name in ``fold``."""
    rows = [row | {FOLD: k} for k, fold in enumerate(folds) for row in fold]
    members, start = [], 0
    for fold in folds:
        members.append(range(start, start + len(fold)))
        start += len(fold)
    generator = torch.Generator().manual_seed(seed)
    per_fold = min(-(-size // len(folds)), min(map(len, folds)))
    return DataLoader(
        rows,  # type: ignore[arg-type]
        batch_sampler=processes.own_batches(FoldBatches(members, per_fold, generator)),
        collate_fn=collator,
        generator=generator,
    )


def fold_models(model: nn.Module, count: int) -> list[Any]:
    """The model and ``count - 1`` copies that share its frozen and its upper parameters with it.

    Lower parameters start equal and are each model's own.
    """
    own = {id(parameter) for parameter in levels(model).lower}
    shared = {id(p): p for p in model.parameters() if id(p) not in own}
    return [model, *(copy.deepcopy(model, dict(shared)) for _ in range(count - 1))]


def without(folds: Sequence[Encoded], left_out: int) -> Encoded:
    """All rows but those of one fold."""
    return [row for k, fold in enumerate(folds) if k != left_out for row in fold]


def cross_fitted(
    model: nn.Module,
    *,
    folds: Sequence[Encoded],
    collator: Collator,
    batches: Any,
    updates: graphs.Plan,
    options: Options,
) -> ProblemGraph:
    """The graph of one upper and K lower problems, ``lower_1`` to ``lower_K``.

    Args:
        model: with a bi-level adapter.
        folds: the encoded rows of each fold.
        collator: from rows to a batch.
        batches: from rows and a seed to the shuffled batches of a lower problem.
        updates: the rounds and the lower steps in each.
        options: optimizers, method, penalties.
    """
    adapter, level, run = options.adapter, options.levels, options.run
    models = fold_models(model, len(folds))
    losses = [graphs.training_loss(each, adapter) for each in models]
    upper = graphs.upper_adamw(model, options)

    def held_out(batch: Batch) -> Tensor:
        """The mean over the folds of each model's loss on the rows it has not trained on."""
        fold = batch[FOLD]
        parts = [
            loss({name: value[fold == k] for name, value in batch.items() if name != FOLD})
            for k, loss in enumerate(losses)
        ]
        return torch.stack(parts).mean()

    names = [f"lower_{k + 1}" for k in range(len(folds))]
    problems = [
        Problem(
            "upper",
            penalised(model, held_out, graphs.upper_penalties(adapter)),
            models,
            upper,
            held_out_batches(
                folds, collator, size=run.per_device_train_batch_size, seed=run.seed + 1
            ),
            reads=names,
            scheduler=graphs.upper_scheduler(upper, updates.num_upper_steps, options),
            accumulate=run.gradient_accumulation_steps,
        )
    ]
    for k, (name, each, loss) in enumerate(zip(names, models, losses, strict=True)):
        lower = graphs.lower_adamw(each, options)
        problems.append(
            Problem(
                name,
                penalised(each, loss, graphs.penalties(adapter)),
                each,
                lower,
                batches(without(folds, k), run.seed + 10 + k),
                steps=updates.steps,
                reads=["upper"],
                method=graphs.method(level),
                scheduler=graphs.scheduler(lower, updates.num_lower_steps, run),
                accumulate=run.gradient_accumulation_steps,
            )
        )
    return ProblemGraph(problems)
