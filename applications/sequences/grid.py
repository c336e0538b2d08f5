"""All sequences of one run: which are left, and the results of the finished ones."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from applications.errors import UsageError
from applications.options.arguments import Options
from applications.options.sequences import VARIANTS
from applications.pages.locking import held
from applications.pages.writing import append_line
from applications.runs.naming import LOCK
from applications.sequences.learning import cost
from applications.sequences.material import DATA, Material, settings
from applications.sequences.run import run_sequence
from applications.sequences.tasks import drawn
from applications.sequences.variants import ROWS

RESULTS = "results.jsonl"
NEEDED = ("order", "variant", "settings", "last", "average", "forgetting")


@dataclass(frozen=True)
class Grid:
    """The sequences of every variant and order.

    Args:
        folder: where their results are.
        options: which they are.

    Raises:
        UsageError: the folder holds results of other settings.
    """

    folder: Path
    options: Options

    def __post_init__(self) -> None:
        now = json.loads(json.dumps(settings(self.options)))
        for line in self.results():
            then = line["settings"]
            if None not in (then.get(DATA), now[DATA]) and then[DATA] != now[DATA]:
                raise UsageError(
                    f"argument --output_dir: {self.folder / RESULTS} holds results of other data "
                    f"(digest {then[DATA]}, now {now[DATA]}); put the data back, or give another "
                    f"folder"
                )
            changed = [name for name in now if name != DATA and then.get(name) != now[name]]
            if changed:
                name = changed[0]
                raise UsageError(
                    f"argument --{name}: {self.folder / RESULTS} holds results of "
                    f"{then.get(name)!r}, got {now[name]!r}; use the same options, or "
                    f"another --output_dir"
                )

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, held against other commands, which would learn the same sequences.

        Raises:
            UsageError: another one is at work there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with held(self.folder / LOCK, wait=False) as lock:
            if lock is None:
                raise UsageError(
                    f"argument --output_dir: another run is at work in {self.folder}; wait for its "
                    f"end, or give another folder"
                )
            yield

    def results(self) -> list[dict[str, Any]]:
        """The lines of the finished sequences."""
        file = self.folder / RESULTS
        if not file.is_file():
            return []
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line without an end is what an interruption has left of one.
        whole = [line for line in lines if line.endswith("\n")]
        return [read_line(line, f"{file}, line {n}") for n, line in enumerate(whole, start=1)]

    def left(self) -> list[tuple[int, str]]:
        """Order and variant of the sequences that are not finished; every variant of an order
        before the next order.
        """
        sequence = self.options.sequence
        assert sequence is not None
        done = {(line["order"], line["variant"]) for line in self.results()}
        orders = range(sequence.first_order, sequence.first_order + sequence.num_orders)
        every = [(order, name) for order in orders for name in sequence.variants or VARIANTS]
        return [each for each in every if each not in done]

    def costs(self, material: Material) -> Iterator[tuple[int, str, int, int]]:
        """Order, variant, gradient units and Hessian products of what is left."""
        for number, name in self.left():
            order = drawn(number, material.task.num_labels, material.sequence.num_tasks)
            train = order.renamed(material.train)
            tasks = [len(order.of(task, train)) for task in range(len(order.ends))]
            found = [cost(ROWS[name], size, material.sequence) for size in tasks]
            units, products = (sum(column) for column in zip(*found, strict=True))
            yield number, name, units, products

    def lines(self, material: Material) -> Iterator[dict[str, Any]]:
        """Run what is left; each line as it is finished, and written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, name in self.left():
            order = drawn(number, material.task.num_labels, material.sequence.num_tasks)
            state = self.folder / "states" / f"{number}-{name}"
            line = run_sequence(material, order, ROWS[name], state)
            append_line(self.folder / RESULTS, json.dumps(line))
            shutil.rmtree(state)
            yield line


def read_line(text: str, where: str) -> dict[str, Any]:
    """A line of results.

    Raises:
        UsageError: it is none.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {*NEEDED} <= {*found}:
        raise UsageError(
            f"argument --output_dir: {where} is no result of this command; give another folder, or "
            f"take the line away"
        )
    return found
