"""The pairs of data sets: what sources are drawn from, and what is trusted."""

from dataclasses import dataclass

CLEAN, HALF, MOST = 0.0, 0.5, 0.9


@dataclass(frozen=True)
class Shards:
    """A task.

    Args:
        name: in the rows.
        sources: the set that shards are drawn from.
        target: the set of the trusted examples and of the test.
        rates: the share of wrong labels of each shard.
        size: examples of a shard.
        num_test: test examples.
    """

    name: str
    sources: str
    target: str
    rates: tuple[float, ...]
    size: int
    num_test: int


PAIRS = {
    task.name: task
    for task in (
        Shards("sst2_cr", "sst2", "cr", (CLEAN,) * 10 + (HALF,) * 5 + (MOST,) * 5, 100, 1500),
        Shards("trec_shards", "trec", "trec", (CLEAN,) * 6 + (0.4,) * 3 + (0.8,) * 3, 100, 500),
    )
}
