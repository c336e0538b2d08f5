"""The processes of one run, where `torchrun` or `accelerate launch` has started several.

Every process does the same on its share of the examples, and the engine averages what is trained
(`blo.distributed`). The first process alone writes files and speaks. A process that was started by
itself is the first and only one; nothing is sent then.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.utils.data import Sampler

from applications.errors import UsageError

T = TypeVar("T")


def count() -> int:
    """The number of processes of the run."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """The number of this process, 0 for the first."""
    return distributed.get_rank() if _joined() else 0


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def launched() -> int:
    """The number of processes that a launcher has started for one run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def refuse_several(command: str) -> None:
    """Raise where a launcher has started several processes of a command that is one process.

    Raises:
        UsageError: naming the number.
    """
    if launched() > 1:
        raise UsageError(
            f"{command} is one process, and a launcher has started "
            f"{launched()} of it; start it with python -m {command}"
        )


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Join the other processes of the launcher for a block: Gloo on a CPU, NCCL on CUDA devices.

    Raises:
        UsageError: the device is not one that every process has to itself.
    """
    if launched() == 1 or _joined():
        yield
        return
    if device.type == "cuda":
        _check_devices(device)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    distributed.destroy_process_group()


def _check_devices(device: torch.device) -> None:
    if device.index is not None:
        raise UsageError(
            f"argument --device: {launched()} processes cannot share one device, got '{device}'; "
            f"use cuda, which gives each process one of its own"
        )
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE", launched())), torch.cuda.device_count()
    if here > there:
        raise UsageError(
            f"argument --device: {here} processes need a CUDA device each, and there are {there}; "
            f"start as many as there are devices (--nproc_per_node={there}), or use --device cpu"
        )


def gathered(value: T) -> list[T]:
    """The value of each process, in the order of their ranks, on all of them."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    distributed.all_gather_object(found, value)
    return found


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, on all of them.

    Raises:
        UsageError: that of the first process, on all of them.
    """
    if count() == 1:
        return make()
    sent: list[Any] = [None, None]
    if is_first():
        try:
            sent[0] = make()
        except UsageError as error:
            sent[1] = str(error)
    distributed.broadcast_object_list(sent)
    value, refusal = sent
    if refusal is not None:
        raise UsageError(refusal)
    made: T = value
    return made


def own_share(items: Sequence[T]) -> list[T]:
    """This process's share: every `count()`-th item. The shares together are all items, once."""
    return list(items[rank() :: count()])


def whole(shares: Sequence[Sequence[T]]) -> list[T]:
    """The items of all shares, in the order they were divided in by `own_share`."""
    found: list[Any] = [None] * sum(map(len, shares))
    for start, share in enumerate(shares):
        found[start :: len(shares)] = share
    return found


def own_batches(sampler: Sampler[list[int]]) -> Sampler[list[int]]:
    """This process's batches: every `count()`-th of them.

    All processes get batches of the same size: an epoch that does not come out even is filled up
    from its own beginning.
    """
    if count() == 1:
        return sampler
    from accelerate.data_loader import BatchSamplerShard

    own: Sampler[list[int]] = BatchSamplerShard(sampler, count(), rank())
    return own


def drawn_apart(made: Iterator[T]) -> Iterator[T]:
    """The items, each made from random numbers that all processes draw alike (new parameters), and
    used with numbers of each process's own (dropout, masks).
    """
    while True:
        if count() > 1:
            torch.set_rng_state(gathered(torch.get_rng_state())[0])
        try:
            item = next(made)
        except StopIteration:
            return
        if count() > 1:
            seeds = torch.randint(2**62, (count(),)).tolist()
            torch.manual_seed(seeds[rank()])
        yield item


def was_left(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return False
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, distributed.DistError) or any(s in str(error) for s in signs)
