"""What a run's folder says of the run that it holds: mark.json."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from applications.pages.writing import write_json
from applications.runs.naming import MARK

FORMAT = "blo-torch run 1"
SAMPLE = 65_536
"""Most elements of a tensor that a digest looks at, evenly spaced."""


@dataclass(frozen=True)
class Mark:
    """Which run a folder holds, and on what its numbers depend beside the options.

    Attributes:
        command: the name of its command.
        method: its method.
        model: the base model's name or folder.
        model_digest: of its weights, the new head included.
        data: the number of rows and the digest of every split.
        threads: of torch.
        device: where it was trained.
        finished: the names in the folder that are its result; None for a run under way.
    """

    command: str
    method: str
    model: str
    model_digest: str
    data: Mapping[str, str]
    threads: int
    device: str
    finished: tuple[str, ...] | None = None

    def write(self, folder: Path) -> None:
        """Write mark.json."""
        write_json(folder / MARK, {"format": FORMAT, **asdict(self)})

    @property
    def early(self) -> bool:
        """Whether the folder was reserved for a run that has not begun."""
        return not self.data

    def differences(self, then: "Mark") -> str | None:
        """Why this run cannot go on from the one marked ``then``, in words; None where it can."""
        for name, flag in (("command", None), ("method", "--method"), ("model", "--model")):
            now, before = getattr(self, name), getattr(then, name)
            if now != before:
                remedy = f"python -m applications.{before}" if flag is None else f"{flag} {before}"
                return f"it holds a run with {name} {before!r}, not {now!r}; use {remedy}"
        if then.early:
            return None
        if self.model_digest != then.model_digest:
            return (
                f"the weights of {self.model!r} (or the seed of the new head) are no longer those "
                f"that its run began with; put them back"
            )
        for split in dict.fromkeys((*then.data, *self.data)):
            now, before = self.data.get(split, "none"), then.data.get(split, "none")
            if now != before:
                return (
                    f"the data have changed since its run began: the {split} split was {before} "
                    f"and is {now} (rows, digest); put the data back"
                )
        return None

    def other_machine(self, then: "Mark") -> str | None:
        """What makes the result differ in its last bits from an undisturbed one; None: nothing."""
        changed = [
            f"{name} {getattr(then, name)}, now {getattr(self, name)}"
            for name in ("threads", "device")
            if getattr(self, name) != getattr(then, name)
        ]
        if not changed or then.early:
            return None
        return (
            f"warning: the run began with {' and '.join(changed)}: its result is no longer "
            f"bit-identical to that of an undisturbed run"
        )


def read_mark(folder: Path) -> Mark | None:
    """The mark of a folder; None where there is none, or one that is no mark of ours."""
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = {field.name for field in fields(Mark)}
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT or set(found) != names:
        return None
    finished = found.pop("finished")
    return Mark(**found, finished=None if finished is None else tuple(finished))


def digest_of_data(splits: Mapping[str, Dataset]) -> dict[str, str]:
    """The number of rows and a digest of every split, which depends on what is in it alone."""
    return {split: f"{len(rows)} {digest_of_rows(rows)}" for split, rows in splits.items()}


def digest_of_rows(rows: Dataset) -> str:
    """A digest of the columns."""
    found = hashlib.sha256()
    for name in rows.column_names:
        found.update(json.dumps([name, list(rows[name])], default=str).encode())
    return found.hexdigest()[:16]


def digest_of_model(model: nn.Module) -> str:
    """A digest of the names, shapes and weights; of large tensors it looks at a sample."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLE)
        found.update(flat[::step].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def early_mark(command: str, method: str, model: str) -> Mark:
    """The mark of a folder that is reserved: model and data have not been looked at."""
    return Mark(command, method, model, "", {}, torch.get_num_threads(), "")


def mark_of(
    command: str,
    *,
    method: str,
    model: tuple[str, nn.Module],
    splits: Mapping[str, Dataset],
    device: torch.device,
) -> Mark:
    """The mark of a run that is about to begin."""
    name, network = model
    settings: dict[str, Any] = {"threads": torch.get_num_threads(), "device": str(device)}
    digest = digest_of_model(network)
    return Mark(command, method, name, digest, digest_of_data(splits), **settings)
