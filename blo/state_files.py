"""Files of a state: written whole or not at all, and read whole or not at all."""

from __future__ import annotations

import collections
import hashlib
import io
import logging
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("blo")

# A file is what torch.save writes, a zip archive, with the checksum as the comment of the archive:
# torch.load reads it as any other.
LABEL = b"blo state, sha256 "
END = b"PK\x05\x06"  # of a zip archive, followed by 16 bytes and the length of the comment
PLAIN = (int, float, str, bool, bytes, type(None), torch.dtype, torch.device, torch.Size)


def previous(path: Path) -> Path:
    """Return where the file that was at `path` before is kept."""
    return path.with_name(path.name + ".previous")


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`: to another file first, which takes the place of `path` when it is
    whole and on the disk. What was at `path` is kept beside it.

    Raises:
        TypeError: if the state holds what cannot be read back.
        OSError: if it cannot be written; what was there is as it was.
    """
    buffer = io.BytesIO()
    torch.save(plain(state, "state"), buffer)
    content = sealed(buffer.getvalue())
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            _keep(path)
        os.replace(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise OSError(
            error.errno,
            f"the state was not saved ({error.strerror}), and files saved before are as they were",
            str(path),
        ) from error


def read(path: Path) -> tuple[dict[str, Any], Path]:
    """Return the state at `path`, and the file it is from: the one before where `path` is damaged
    or missing, with a warning.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if no whole state is there, naming each file and what is wrong with it.
    """
    wrong = []
    for place in (path, previous(path)):
        try:
            state = _read(place)
        except FileNotFoundError:
            wrong.append(f"{place} does not exist")
            continue
        except ValueError as error:
            wrong.append(str(error))
            continue
        if wrong:
            logger.warning("%s; going on from the state before, %s", wrong[0], place)
        return state, place
    if not path.exists() and not previous(path).exists():
        raise FileNotFoundError(f"no state was saved at {path}: {'; '.join(wrong)}")
    raise ValueError(f"no whole state is at {path}: {'; '.join(wrong)}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if not is_sealed(content):
        raise ValueError(f"{path} is damaged: it is not what Engine.save wrote")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read by this release of torch: {error}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state")
    return state


def sealed(archive: bytes) -> bytes:
    """Return a zip archive with its checksum as its comment."""
    if archive[-22:-18] != END:
        raise ValueError("an archive without a comment must end with its directory")
    seal = LABEL + hashlib.sha256(archive[:-2]).hexdigest().encode()
    return archive[:-2] + len(seal).to_bytes(2, "little") + seal


def is_sealed(content: bytes) -> bool:
    """Return whether every byte is what `sealed` returned."""
    size = len(LABEL) + 64
    body, seal = content[: -size - 2], content[-size - 2 :]
    right = size.to_bytes(2, "little") + LABEL + hashlib.sha256(body).hexdigest().encode()
    return seal == right


def plain(value: Any, where: str) -> Any:
    """Return a state with numpy's numbers as Python's.

    Raises:
        TypeError: naming an entry that ``torch.load(weights_only=True)`` would refuse.
    """
    if isinstance(value, Tensor) or type(value) in PLAIN:
        return value
    if type(value) in (dict, collections.OrderedDict):
        return type(value)((k, plain(v, f"{where}[{k!r}]")) for k, v in value.items())
    if type(value) is collections.Counter:
        return value
    if type(value) in (list, tuple):
        return type(value)(plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return value.item()
    if isinstance(value, collections.defaultdict):
        return plain(dict(value), where)
    raise TypeError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which is read back "
        "only by running code from the file; let the state_dict of the object that it comes from "
        "hold tensors, numbers, strings, lists and dictionaries"
    )


def _keep(path: Path) -> None:
    """Keep the file at `path` as the one before, without a moment at which there is none."""
    link = path.with_name(f".{path.name}.{os.getpid()}.link")
    with suppress(OSError):
        link.unlink()
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        os.replace(path, previous(path))
        return
    try:
        os.replace(link, previous(path))
    except OSError:
        link.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, where the system can."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
