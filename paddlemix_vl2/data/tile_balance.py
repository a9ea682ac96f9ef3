"""Which rank computes which rows of an optimizer step, so that all have about as many tiles."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class RowPlace(NamedTuple):
    """A row of the step: the rank of its sample index, and its number among the rows of that rank."""

    rank: int
    row: int


def assign_rows(tiles: Sequence[Sequence[int]], batch_size: int) -> list[list[RowPlace]]:
    """Give every rank as many rows as before, in micro-batches of equal size, with about as many tiles.

    The rows are sorted by tiles. The first ``ranks * batch_size`` of them become the first micro-batch of all
    ranks, and so on, so that ranks that wait for each other in every layer wait little; within a micro-batch
    the row with the most tiles goes to the rank that has the fewest so far (longest processing time first).

    Args:
        tiles: of every row that a rank has read, [ranks][rows]; the same number of rows everywhere, a
            multiple of ``batch_size``.
        batch_size: rows of a micro-batch.

    Returns:
        for each rank the places of its rows, micro-batch by micro-batch.

    >>> [[tuple(place) for place in rank] for rank in assign_rows([[9, 8], [1, 0]], batch_size=1)]
    [[(0, 0), (1, 1)], [(0, 1), (1, 0)]]
    """
    ranks = range(len(tiles))
    places = [RowPlace(rank, row) for rank in ranks for row in range(len(tiles[rank]))]
    # Equal rows in the order of their indices, so that any number of ranks has the same micro-batches.
    places.sort(key=lambda place: (-tiles[place.rank][place.row], place.row, place.rank))
    assigned: list[list[RowPlace]] = [[] for _ in ranks]
    totals = [0 for _ in ranks]
    together = len(ranks) * batch_size
    for first in range(0, len(places), together):
        open_ranks = [(totals[rank], rank) for rank in ranks]
        heapq.heapify(open_ranks)
        for place in places[first : first + together]:
            total, rank = heapq.heappop(open_ranks)
            assigned[rank].append(place)
            totals[rank] = total + tiles[place.rank][place.row]
            if len(assigned[rank]) * len(ranks) < first + together:
                heapq.heappush(open_ranks, (totals[rank], rank))
    return assigned


def imbalance(totals: Sequence[int]) -> float:
    """The largest of the ranks' tiles over their mean: how much longer than needed all wait for the slowest.
    1 where no rank has any.

    >>> imbalance([30, 10, 20])
    1.5
    """
    return max(totals) * len(totals) / sum(totals) if sum(totals) else 1.0
