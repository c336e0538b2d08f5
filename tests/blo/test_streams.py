"""Streams of batches: a position is found again, whatever the batches are."""

import copy
import logging
import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from blo.streams import BatchStream


class Numbers(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return i


class Noisy(Numbers):
    """A data set that augments with numpy's generator and with one of its own."""

    def __init__(self):
        self.rng = np.random.default_rng(3)

    def __getitem__(self, i):
        return i + np.random.rand() + 100 * self.rng.random()


class Counting(Sampler):
    """Another order in every epoch, by a number of its own, as DistributedSampler's."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(self.epoch))
        self.epoch += 1
        return iter(order.tolist())

    def __len__(self):
        return 12


class Shuffled(Sampler):
    """An order drawn from a generator of some library."""

    def __init__(self, shuffle):
        self.shuffle = shuffle

    def __iter__(self):
        order = list(range(12))
        self.shuffle(order)
        return iter([order[i : i + 3] for i in range(0, 12, 3)])

    def __len__(self):
        return 4


class Endless(IterableDataset):
    """Goes on where it stands, as a stream of text does."""

    def __init__(self):
        self.at = 0

    def __iter__(self):
        while True:
            self.at += 1
            yield self.at - 1
            if self.at % 10 == 0:
                return

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Restarting(IterableDataset):
    """Begins every pass at the loaded position, as datasets.IterableDataset."""

    def __init__(self):
        self.now, self._starting_state_dict = {"at": 0}, None

    def __iter__(self):
        for i in range((self._starting_state_dict or {"at": 0})["at"], 12):
            self.now = {"at": i + 1}
            yield i

    def state_dict(self):
        return dict(self.now)

    def load_state_dict(self, state):
        self._starting_state_dict = state


class Own:
    """Batches with a state, and their own order."""

    def __init__(self):
        self.rng, self.order = random.Random(5), []

    def __iter__(self):
        if not self.order:
            self.order = self.rng.sample(range(7), 7)
        while self.order:
            yield self.order.pop()

    def state_dict(self):
        return {"order": list(self.order), "rng": self.rng.getstate()}

    def load_state_dict(self, state):
        self.order = list(state["order"])
        self.rng.setstate(state["rng"])


def weighted():
    return WeightedRandomSampler(torch.arange(1.0, 13.0), 12)


def with_own_generator():
    sampler = RandomSampler(Numbers(), generator=torch.Generator().manual_seed(4))
    return DataLoader(Numbers(), batch_sampler=BatchSampler(sampler, 5, drop_last=False))


KINDS = {
    "list": lambda: list(range(5)),
    "shuffled": lambda: DataLoader(Numbers(), 4, shuffle=True),
    "own generator": lambda: DataLoader(
        Numbers(), 4, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "batch sampler with its own": with_own_generator,
    "weighted": lambda: DataLoader(Numbers(), 4, sampler=weighted()),
    "counted epochs": lambda: DataLoader(Numbers(), 4, sampler=Counting()),
    "python": lambda: DataLoader(Numbers(), batch_sampler=Shuffled(random.shuffle)),
    "own random.Random": lambda: DataLoader(
        Numbers(), batch_sampler=Shuffled(random.Random(2).shuffle)
    ),
    "numpy": lambda: DataLoader(Numbers(), batch_sampler=Shuffled(np.random.shuffle)),
    "own numpy": lambda: DataLoader(
        Numbers(), batch_sampler=Shuffled(np.random.default_rng(2).shuffle)
    ),
    "augmented": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "iterable with a state": lambda: DataLoader(Endless(), 4),
    "iterable that begins anew": lambda: DataLoader(Restarting(), 4),
    "own state": Own,
    "generator": lambda: (i for i in range(100)),
}


def seeded(kind):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    stream = BatchStream(KINDS[kind](), "p")
    stream.peek()  # as a graph does
    return stream


def globals_now():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def set_globals(state):
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


def drawn(stream, n):
    """Batches, between which the global generators move as by a loss."""
    found = []
    for _ in range(n):
        torch.rand(1), random.random(), np.random.rand()
        batch = stream.next()
        found.append(batch.tolist() if isinstance(batch, torch.Tensor) else batch)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_where_it_was(kind):
    for before in (0, 1, 3, 8, 13):
        straight = seeded(kind)
        drawn(straight, before)
        state, place = copy.deepcopy(straight.state_dict()), globals_now()
        right = drawn(straight, 11)
        resumed = seeded(kind)
        resumed.check(state)
        random.seed(9)
        here = globals_now()
        resumed.load_state_dict(state)
        assert random.getstate() == here[1]
        set_globals(place)
        assert drawn(resumed, 11) == right, before


def test_kept_workers_go_on_in_the_same_order(caplog):
    make = lambda: DataLoader(Numbers(), 4, shuffle=True, num_workers=1, persistent_workers=True)
    torch.manual_seed(0)
    straight = BatchStream(make(), "p")
    drawn(straight, 4)
    state, place = straight.state_dict(), globals_now()
    right = drawn(straight, 4)
    resumed = BatchStream(make(), "p")
    resumed.peek()
    with caplog.at_level(logging.WARNING):
        resumed.load_state_dict(state)
    set_globals(place)
    assert drawn(resumed, 4) == right
    assert "problem 'p'" in caplog.text
    assert "draws that the workers make" in caplog.text


def test_positions_that_workers_hide_are_warned_of_once_at_construction():
    with pytest.warns(UserWarning, match="problem 'p'.*dataset.*Endless.*cannot be known") as seen:
        BatchStream(DataLoader(Endless(), 4, num_workers=1), "p")
    assert len(seen) == 1


class Late:
    """Draws its order anew in the middle of a pass, from the global generator."""

    def __iter__(self):
        for _ in range(4):
            yield from torch.randperm(3).tolist()


def test_orders_drawn_late_are_warned_of_when_they_are_passed_over(caplog):
    stream = BatchStream(Late(), "p")
    drawn(stream, 7)
    state = stream.state_dict()
    with caplog.at_level(logging.WARNING):
        stream.load_state_dict(state)
    assert "draw from the global random generators" in caplog.text


def test_a_loader_is_begun_once_an_epoch_as_in_a_plain_loop():
    loader = DataLoader(Numbers(), 4, shuffle=True)
    torch.manual_seed(0)
    plain = [b.tolist() for _ in range(3) for b in loader]
    torch.manual_seed(0)
    stream = BatchStream(loader, "p")
    assert [stream.next().tolist() for _ in range(9)] == plain


def test_a_position_that_cannot_be_reached_is_refused_before_anything_moves():
    long, short = BatchStream([1, 2, 3], "p"), BatchStream([1], "p")
    drawn(long, 3)
    with pytest.raises(ValueError, match="batch 3 of an epoch, and the batches of problem 'p' are"):
        short.check(long.state_dict())
    used = BatchStream(iter(range(9)), "p")
    state = used.state_dict()
    used.next()
    with pytest.raises(ValueError, match="one-shot iterator of which 1 are used up"):
        used.check(state)
    loaders = [
        BatchStream(DataLoader(Numbers(), 4, shuffle=True, generator=g), "p")
        for g in (torch.Generator(), None)
    ]
    loaders[0].next()
    with pytest.raises(ValueError, match=r"1 generators of their own .* they have 0"):
        loaders[1].check(loaders[0].state_dict())
    with pytest.raises(ValueError, match=r"positions of .*'batches'"):
        loaders[1].check(BatchStream(Own(), "p").state_dict())


def test_reading_on_the_side_disturbs_nothing():
    stream = BatchStream(DataLoader(Numbers(), 4, sampler=Counting()), "p")
    before = globals_now()
    with stream.undisturbed():
        drawn(stream, 5)
    assert stream._batches.sampler.epoch == 0
    assert torch.equal(before[0], torch.get_rng_state())
    assert random.getstate() == before[1]
    assert not stream.moves_when_read()
    assert BatchStream(Own(), "p").moves_when_read()
