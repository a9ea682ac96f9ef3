"""Maps a sample index to a source and one of its samples: a pure function of the index.

So a run resumes from one number, every process of a parallel run computes its part by itself, and nothing has
to be replayed.
"""

import math
from collections.abc import Sequence

import numpy as np

BLOCK = 1000
# Permuting this many takes seconds and a gigabyte, and no run sees them all.
SEQUENTIAL_FROM = 10**8
# First entries of the seeds, so that the order of a block never repeats that of a source.
_BLOCK_ORDER, _SOURCE_ORDER = 0, 1


class Mixture:
    """Samples from several sources in proportion to their weights.

    Indices come in blocks of 1000. After every block each source has had its share of all indices so far, but
    for rounding (Webster's method, which never takes one back when the total grows). Within a block the
    sources are shuffled. A source goes through all its samples in a fresh order, then again in another.

    Args:
        lengths: samples of each source.
        weights: of each source; their sum may be anything above 0.
        seed: of all orders.

    Raises:
        ValueError: an empty source, or weights that are negative, not finite or all 0.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int = 0):
        if not lengths or len(lengths) != len(weights):
            raise ValueError(
                f"{len(lengths)} length(s) and {len(weights)} weight(s); every source has one of each"
            )
        for index, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
            if length < 1:
                raise ValueError(f"source {index} is empty")
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"weight of source {index} is {weight}; it must be a number of at least 0")
        if sum(weights) <= 0:
            raise ValueError("all weights are 0; at least one source must be drawn from")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must be at least 0")
        self.lengths = [int(length) for length in lengths]
        self.weights = [float(weight) / math.fsum(weights) for weight in weights]
        self.seed = int(seed)
        # The latest of each is kept for speed only: any index gives the same at any time.
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __getitem__(self, sample_index: int) -> tuple[int, int]:
        """Source and sample of an index (from 0, without end)."""
        if sample_index < 0:
            raise IndexError(f"sample index {sample_index}; they are counted from 0")
        sources, turns = self._block(sample_index // BLOCK)
        source = int(sources[sample_index % BLOCK])
        return source, self._item(source, int(turns[sample_index % BLOCK]))

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each index of a block: its source, and how often the source came before."""
        if block not in self._blocks:
            before, after = self._counts(block * BLOCK), self._counts((block + 1) * BLOCK)
            sources = np.repeat(np.arange(len(self.lengths)), np.subtract(after, before))
            np.random.default_rng([_BLOCK_ORDER, self.seed, block]).shuffle(sources)
            turns = np.zeros(BLOCK, dtype=np.int64)
            for source, first in enumerate(before):
                own = sources == source
                turns[own] = first + np.arange(own.sum())
            self._blocks = {block: (sources, turns)}
        return self._blocks[block]

    def _counts(self, total: int) -> list[int]:
        """How many of the first ``total`` indices each source has: Webster's apportionment.

        The k-th index of a source (from 0) has the rank weight / (2 k + 1), and the ``total`` highest ranks
        are taken; so a larger total only adds. A source's count is its exact share give or take half the
        number of sources, so all but the last few need no comparison.
        """
        slack = len(self.weights) / 2
        counts = [max(0, math.floor(weight * (total - slack)) - 2) for weight in self.weights]
        for _ in range(total - sum(counts)):
            ranks = [weight / (2 * count + 1) for weight, count in zip(self.weights, counts, strict=True)]
            counts[ranks.index(max(ranks))] += 1
        return counts

    def _item(self, source: int, turn: int) -> int:
        length = self.lengths[source]
        epoch, position = divmod(turn, length)
        if length >= SEQUENTIAL_FROM:
            return position
        if self._orders.get(source, (None,))[0] != epoch:
            order = np.arange(length, dtype=np.uint32)
            np.random.default_rng([_SOURCE_ORDER, self.seed, source, epoch]).shuffle(order)
            self._orders[source] = epoch, order
        return int(self._orders[source][1][position])
