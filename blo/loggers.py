"""Where the records of rounds go: a bar on the screen, a file of JSON lines, TensorBoard.

What they need beside torch is imported when they are made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from blo.record import Record


class JsonLines:
    """A callback that appends a line of JSON a round to a file: `Record.as_dict`.

    A line is in the file as soon as its round has ended. A run that goes on from a saved state
    appends the rounds after it, so that of two lines with one ``round`` the later is valid. Of
    several processes, give it to one.

    Args:
        path: of the file; folders on the way are made.

    Example:
        >>> import json, tempfile, torch
        >>> from blo import Engine, JsonLines, Problem, ProblemGraph
        >>> y = torch.nn.ParameterList([torch.tensor(2.0)])
        >>> sgd = torch.optim.SGD(y.parameters(), 0.25)
        >>> problem = Problem("fit", lambda _: (y[0] - 1) ** 2, y, sgd, [None])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = JsonLines(f"{folder}/rounds.jsonl")
        ...     _ = Engine(ProblemGraph([problem]), callbacks=[log]).run(2)
        ...     [json.loads(line)["losses"] for line in log.path.read_text().splitlines()]
        [{'fit': 1.0}, {'fit': 0.25}]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def __call__(self, record: Record) -> None:
        """Append the record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.as_dict(), allow_nan=False) + "\n")


class TensorBoard:
    """A callback that writes losses, other numbers, residuals and learning rates of every round for
    TensorBoard, under ``losses/PROBLEM`` and so on.

    Args:
        folder: what ``tensorboard --logdir`` is given.

    Raises:
        ImportError: if the package tensorboard is not installed.

    Example:
        >>> import tempfile, torch
        >>> from blo import Engine, Problem, ProblemGraph, TensorBoard
        >>> y = torch.nn.ParameterList([torch.tensor(2.0)])
        >>> sgd = torch.optim.SGD(y.parameters(), 0.25)
        >>> problem = Problem("fit", lambda _: (y[0] - 1) ** 2, y, sgd, [None])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = TensorBoard(folder)
        ...     _ = Engine(ProblemGraph([problem]), callbacks=[log]).run(2)
        ...     log.close()
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard(folder) needs the package tensorboard: pip install tensorboard, or "
                "log with JsonLines(path)"
            ) from error
        self.writer: Any = SummaryWriter(os.fspath(folder))

    def __call__(self, record: Record) -> None:
        """Write the record."""
        for name, value in _scalars(record):
            self.writer.add_scalar(name, value, record.round)

    def close(self) -> None:
        """Write what is waiting, and close the file."""
        self.writer.close()


def _scalars(record: Record) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record that are finite, each by its path."""
    found = record.as_dict()
    for group in ("losses", "learning_rates"):
        yield from ((f"{group}/{name}", v) for name, v in found[group].items() if v is not None)
    for problem, metrics in found["metrics"].items():
        for name, value in metrics.items():
            if value is not None:
                yield f"metrics/{problem}/{name}", value
    for pair, info in found["responses"].items():
        if info["residual"] is not None:
            yield f"residuals/{pair}", info["residual"]
    yield "cost/gradients", found["num_gradients"]
    yield "cost/products", found["num_products"]


def check_bar() -> None:
    """Raise ImportError unless tqdm is installed."""
    try:
        import tqdm  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "progress=True needs the package tqdm: pip install tqdm, or leave progress out"
        ) from error


def with_bar(records: Iterable[Record], num_rounds: int) -> Iterator[Record]:
    """Yield the records under a bar with the losses, on a terminal or in a notebook; of several
    processes, the first shows it.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    group = torch.distributed
    other = group.is_available() and group.is_initialized() and group.get_rank() > 0
    with tqdm(total=num_rounds, unit="round", disable=True if other else None) as bar:
        for record in records:
            losses = {name: f"{loss:.4g}" for name, loss in record.losses.items()}
            bar.set_postfix(losses, refresh=False)
            bar.update()
            yield record
