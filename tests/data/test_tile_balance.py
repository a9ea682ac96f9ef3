"""Assignments worked by hand, and what holds for any of them."""

import numpy as np
import pytest

from paddlemix_vl2.data.tile_balance import assign_rows, imbalance


def totals(tiles, batch_size):
    assigned = assign_rows(tiles, batch_size)
    return [sum(tiles[place.rank][place.row] for place in rank) for rank in assigned]


def test_one_row_each_stays_where_the_order_says():
    assert assign_rows([[3], [7], [5]], batch_size=1) == [[(1, 0)], [(2, 0)], [(0, 0)]]


def test_micro_batches_of_one_row_by_hand():
    """Sorted 20 18 | 9 9 | 5 1. Rank 0 gets 20, rank 1 18; the lighter one is 1, which gets the first 9; both
    have 29 and 27 then, so rank 1 gets 5 as well."""
    tiles = [[20, 9, 1], [18, 9, 5]]
    assert assign_rows(tiles, batch_size=1) == [[(0, 0), (1, 1), (0, 2)], [(1, 0), (0, 1), (1, 2)]]
    assert totals(tiles, 1) == [30, 32]


def test_micro_batches_of_two_rows_by_hand():
    """Sorted 10 9 8 1: 10 to rank 0, 9 and 8 to rank 1, which is full then; the 1 goes to rank 0 though it
    would go there anyway. As sampled they have 19 and 9."""
    tiles = [[10, 9], [8, 1]]
    assert assign_rows(tiles, batch_size=2) == [[(0, 0), (1, 1)], [(0, 1), (1, 0)]]
    assert totals(tiles, 2) == [11, 17]


def test_rows_of_text_alone_fill_up():
    assert totals([[5, 5], [0, 0]], batch_size=1) == [5, 5]
    assert imbalance([10, 0]) == 2 and imbalance([5, 5]) == 1 and imbalance([0, 0]) == 1


@pytest.mark.parametrize(
    ("ranks", "batch_size", "accumulation"), [(1, 2, 3), (4, 1, 9), (8, 3, 2), (3, 4, 1)]
)
def test_every_row_is_computed_once_and_no_rank_has_much_more(ranks, batch_size, accumulation):
    """Totals differ by one row at most: within a micro-batch the lightest rank is served first."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        tiles = generator.choice([0, 0, 2, 3, 5, 10, 20], (ranks, batch_size * accumulation)).tolist()
        assigned = assign_rows(tiles, batch_size)
        assert {len(rank) for rank in assigned} == {batch_size * accumulation}
        places = [place for rank in assigned for place in rank]
        assert len(set(places)) == len(places) == ranks * batch_size * accumulation
        after = totals(tiles, batch_size)
        assert max(after) - min(after) <= 20 * batch_size
        for index in range(accumulation):
            # Each micro-batch has the rows with the most tiles that are left, over all ranks.
            now = slice(index * batch_size, (index + 1) * batch_size)
            rows = [tiles[place.rank][place.row] for rank in assigned for place in rank[now]]
            rest = [tiles[place.rank][place.row] for rank in assigned for place in rank[now.stop :]]
            assert min(rows) >= max(rest, default=0)


def test_many_rows_are_nearly_even():
    """64 ranks with 9 rows of 0 to 20 tiles: the slowest is 30 % above the mean as sampled, 1 % assigned."""
    tiles = np.random.default_rng(1).integers(0, 21, (64, 9)).tolist()
    assert imbalance([sum(rank) for rank in tiles]) > 1.3
    assert imbalance(totals(tiles, batch_size=1)) < 1.02
