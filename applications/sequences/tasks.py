"""The classes of a data set, dealt to tasks that come one after the other."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from applications.data.batches import Encoded
from applications.errors import UsageError


@dataclass(frozen=True)
class Order:
    """One order of the classes.

    Args:
        number: the order, and the seed of all that is drawn with it.
        classes: the classes in the order in which they come; class ``classes[k]`` is called k.
        ends: how many classes have come when each task is over, ascending.
    """

    number: int
    classes: Sequence[int]
    ends: Sequence[int]

    def begin(self, task: int) -> int:
        """The number of classes that came before a task."""
        return self.ends[task - 1] if task else 0

    def renamed(self, rows: Encoded) -> Encoded:
        """The rows with the labels that their classes have in this order."""
        place = {kind: k for k, kind in enumerate(self.classes)}
        return [row | {"labels": place[row["labels"]]} for row in rows]

    def of(self, task: int, rows: Encoded) -> Encoded:
        """Those of the renamed rows that belong to a task."""
        return [row for row in rows if self.begin(task) <= row["labels"] < self.ends[task]]


def drawn(number: int, num_classes: int, num_tasks: int) -> Order:
    """The order of that number: classes shuffled, and dealt to tasks as equally as can be.

    Raises:
        UsageError: there are fewer than two classes for a task.
    """
    if num_classes < 2 * num_tasks:
        most = num_classes // 2
        remedy = f"use at most {most}" if most > 1 else "give data with 4 or more"
        raise UsageError(
            f"argument --num_tasks: {num_classes} classes are too few for {num_tasks} tasks of at "
            f"least two, got {num_tasks}; {remedy}"
        )
    classes = list(range(num_classes))
    random.Random(number).shuffle(classes)
    ends = [(k + 1) * num_classes // num_tasks for k in range(num_tasks)]
    return Order(number, classes, ends)


def kept(order: Order, rows: Encoded, per_class: int) -> tuple[Encoded, Encoded]:
    """The examples of each class that are kept in memory, and all others.

    Args:
        order: whose number draws them.
        rows: renamed training rows.
        per_class: how many of each class, at most half of it.
    """
    members: dict[int, list[int]] = {}
    for position, row in enumerate(rows):
        members.setdefault(row["labels"], []).append(position)
    chosen: set[int] = set()
    for kind in sorted(members):
        draw = random.Random(1_000_003 * order.number + kind)
        chosen.update(draw.sample(members[kind], min(per_class, len(members[kind]) // 2)))
    memory = [row for position, row in enumerate(rows) if position in chosen]
    return memory, [row for position, row in enumerate(rows) if position not in chosen]
